"""Is a batch normalization layer right? Some fifty named probes, for any Keras layer.

    python -m bn_keras conformance keras.layers.BatchNormalization

A file here holds the probes of one kind; a probe is a function under `@probe(severity)` whose
docstring says why it matters. `plain` adapts classes that know nothing of Keras. The command runs
all of it in a process of its own, see `bn_keras.diagnostics.judging`.
"""

import importlib

from bn_keras.diagnostics.conformance.suite import FAIL, PASS, PROBES, SKIP, find_layer, run

KINDS = ("arithmetic", "statistics", "arguments", "guards", "replicas")
for _kind in KINDS:  # in the order in which a reader wants them
    importlib.import_module(f"{__name__}.{_kind}")

__all__ = ["FAIL", "KINDS", "PASS", "PROBES", "SKIP", "find_layer", "run"]
