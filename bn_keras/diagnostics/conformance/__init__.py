"""Is a batch normalization right? Some fifty named probes, for Keras layers and all others.

    python -m bn_keras conformance keras.layers.BatchNormalization

A file of KINDS holds the probes of one kind; a probe is a function under `@probe(severity)` whose
docstring says why it matters. `foreign` and its neighbours (`functions`, `objects`, `flax_modules`,
`kits`, `names`) adapt what is no Keras layer; `causes` finds the mistake behind wrong numbers.
TensorFlow is loaded by the first probe that needs it. The command runs all of it in a process of
its own, see `bn_keras.diagnostics.judging`; `bn_keras.check` runs it where it is called.
"""

import importlib

from bn_keras.diagnostics.conformance.suite import FAIL, PASS, PROBES, SKIP, find_layer, run

KINDS = ("arithmetic", "statistics", "arguments", "guards", "replicas")
for _kind in KINDS:  # in the order in which a reader wants them
    importlib.import_module(f"{__name__}.{_kind}")

__all__ = ["FAIL", "KINDS", "PASS", "PROBES", "SKIP", "find_layer", "run"]
