"""`from bn_keras import BatchNorm` loads TensorFlow, Keras and the layers, and nothing beside."""

import json
import subprocess
import sys

import pytest
from make import ROOT

from bn_keras.loading import LAYERS

OTHERS = ("tensorflow_datasets", "tensorboard", "matplotlib", "scipy", "statsmodels", "rich",
          "pandas", "absl.flags", "importlib.metadata")
CODE = """
import json, os, sys
loaded = []
for statement in sys.argv[1:]:
    exec(statement)
    loaded.append(sorted(sys.modules))
print(json.dumps(loaded), flush=True)
os._exit(0)  # an orderly end takes TensorFlow a second
"""


def loaded(*statements):
    """The modules of a fresh process after each statement."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", CODE, *statements],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


def ours(names):
    return {name for name in names if name.startswith("bn_keras")}


@pytest.mark.slow
def test_the_layer_loads_nothing_that_keras_does_not():
    keras, layer = loaded("import keras", "from bn_keras import BatchNorm")
    assert {"tensorflow", "keras"} <= keras and "bn_keras.batch_norm.layer" in layer
    assert not ours(keras)
    for name in OTHERS:
        assert name not in layer - keras, f"{name} is loaded for the layer"
    homes = {name for home in LAYERS for name in (home, home.rpartition(".")[0])}
    rest = {name for name in ours(layer) - homes if not name.startswith("bn_keras.batch_norm.")}
    assert rest == {"bn_keras", "bn_keras.loading", "bn_keras.registry"}


def test_the_package_alone_loads_next_to_nothing():
    every, = loaded("import bn_keras")
    assert ours(every) == {"bn_keras", "bn_keras.loading"}
    assert not {"tensorflow", "keras", "numpy", *OTHERS} & every
