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
import json, sys
{}
ours = sorted(name for name in sys.modules if name.startswith("bn_keras"))
print(json.dumps([sorted(sys.modules), ours]))
"""


def loaded(statement):
    """(all modules, ours) of a fresh process after a statement."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", CODE.format(statement)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )
    every, ours = json.loads(done.stdout.splitlines()[-1])
    return set(every), set(ours)


@pytest.mark.slow
def test_the_layer_loads_nothing_that_keras_does_not():
    keras, _ = loaded("import keras")
    layer, ours = loaded("from bn_keras import BatchNorm")
    assert {"tensorflow", "keras", "bn_keras.batch_norm.layer"} <= layer
    for name in OTHERS:
        assert (name in layer) <= (name in keras), f"{name} is loaded for the layer"
    homes = {name for home in LAYERS for name in (home, home.rpartition(".")[0])}
    rest = {name for name in ours - homes if not name.startswith("bn_keras.batch_norm.")}
    assert rest == {"bn_keras", "bn_keras.loading", "bn_keras.registry"}


def test_the_package_alone_loads_next_to_nothing():
    every, ours = loaded("import bn_keras")
    assert ours == {"bn_keras", "bn_keras.loading"}
    assert not {"tensorflow", "keras", "numpy", *OTHERS} & every
