"""A model file with our layers loads in a fresh process that imported only bn_keras and keras."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import bn_keras
from bn_keras import loading
from bn_keras.surgery.convert import convert

PRELUDE = "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
LOAD = """
import sys
model = keras.models.load_model(sys.argv[1])
import numpy
numpy.testing.assert_allclose(model(numpy.ones((2, 3), 'float32')), numpy.load(sys.argv[2]), 1e-5)
assert not any(type(finder).__name__ == '_BehindKeras' for finder in sys.meta_path)
print('loaded', flush=True)
os._exit(0)  # an orderly end takes TensorFlow a second
"""


def run(code, *arguments, **environment):
    here = str(pathlib.Path(bn_keras.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)], capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": here, **environment}, timeout=300,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Paths of a model with every layer of ours, some of them by `convert`, and its outputs."""
    folder = tmp_path_factory.mktemp("stored")
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model = keras.Sequential([
        *convert(model)[0].layers, bn_keras.BatchNorm(debias=True),
        bn_keras.GhostBatchNorm(virtual_batch_size=2), bn_keras.BatchRenorm(),
        bn_keras.ActivatedBatchNorm(activation="relu"), bn_keras.ConditionalBatchNorm(),
        bn_keras.FrozenBatchNorm(freeze="affine"),
    ])
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model(x, training=True)
    model.save(folder / "model.keras")
    np.save(folder / "outputs.npy", model(np.ones((2, 3), "float32")))
    return folder / "model.keras", folder / "outputs.npy"


@pytest.mark.slow
@pytest.mark.parametrize("imports", [
    "import keras, bn_keras",
    "from bn_keras.surgery.convert import convert; import keras",
    "import bn_keras, tensorflow; keras = tensorflow.keras",
])
def test_a_fresh_process_loads_it(stored, imports):
    strict = "import warnings; warnings.simplefilter('error', RuntimeWarning)\n"
    result = run(f"{strict}{imports}{LOAD}", *stored)
    assert result.stdout.strip() == "loaded", result.stderr


@pytest.mark.slow
def test_it_loads_with_jax_and_while_threads_import_all_at_once(stored):
    code = """
import threading, importlib, warnings
warnings.simplefilter('error', RuntimeWarning)
import bn_keras
names = ['keras', 'bn_keras.normalizers.ghost', 'bn_keras.batch_norm.layer', 'keras']
gate = threading.Barrier(len(names))
failed = []
def work(name):
    gate.wait()
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=[name]) for name in names]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not failed, failed
import keras
"""
    result = run(code + LOAD, *stored, KERAS_BACKEND="jax")
    assert result.stdout.strip() == "loaded", result.stderr


@pytest.mark.slow
def test_a_file_of_an_older_version_loads_by_the_registered_name(stored, tmp_path):
    with zipfile.ZipFile(stored[0]) as old, zipfile.ZipFile(tmp_path / "old.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = content.decode().replace("bn_keras.batch_norm.layer", "bn_keras.norms.old")
                assert "bn_keras.norms.old" in config and "bn_keras>BatchNorm" in config
                content = json.dumps(json.loads(config)).encode()
            new.writestr(name, content)
    model = keras.models.load_model(tmp_path / "old.keras")
    np.testing.assert_allclose(model(np.ones((2, 3))), np.load(stored[1]), rtol=1e-5)


@pytest.mark.slow
def test_a_keras_that_cannot_be_imported_fails_with_its_own_error():
    result = run("import bn_keras, keras", KERAS_BACKEND="nonsense")
    assert "nonsense" in result.stderr and "bn_keras" not in result.stderr.splitlines()[-1]
    broken = """
import sys, bn_keras
sys.modules['keras'] = None
try:
    import keras
except ImportError as error:
    print(error)
import importlib; importlib.reload(bn_keras)
print([type(finder).__name__ for finder in sys.meta_path].count('_BehindKeras'))
"""
    result = run(broken)
    assert result.stdout.splitlines()[0].startswith("import of keras halted")
    assert result.stdout.splitlines()[1] == "1", "reloading the package added a second finder"


def test_an_error_in_our_layers_does_not_break_the_import_of_keras(monkeypatch):
    monkeypatch.setattr(loading, "LAYERS", ("bn_keras.no_such_module",))
    with pytest.warns(RuntimeWarning, match="not registered.*no_such_module"):
        loading.register_layers()


def test_every_registered_class_of_ours_is_in_the_list():
    root = pathlib.Path(bn_keras.__file__).parent
    homes = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for path in root.rglob("*.py")
        if "@keras.saving.register_keras_serializable" in path.read_text(encoding="utf-8")
    }
    assert homes == set(loading.LAYERS)
