"""A user's own functions by name: what is one, how it is imported, what a mistake gets."""

import os
import re
import subprocess
import sys

import pytest
from make import ROOT

from bn_keras import objects
from bn_keras.objects import ObjectError, absolute_name, digest_of, is_object_name, load_object
from bn_keras.texts import in_a_line

NAMES = [
    "net.py:build", "./net.py:build", "/a b/net.py:build", "~/net.py:build", "net.py", "net.py:",
    "../a.b/net.py:Net.make", "package.nets:build", "a.b.c:Net.make", r"C:\nets\net.py:build",
]
NOT = [
    "mnist", "mnist:", "tfds:mnist", "csv:table.py", "csv:a.py:load", "idx:a.b", "nets:build", "",
    "a.b", "a.b:", ":build", "net.keras", "tfds:mnist:3.0.1", "http://a.b:c", "a.b:c d", "1.5:x",
    "folder:my.package:x",
]


def test_names_of_objects_are_told_from_registered_ones():
    assert [name for name in NAMES if not is_object_name(name)] == []
    assert [name for name in NOT if is_object_name(name)] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with files, and sys.path and sys.modules restored behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "later.py").write_text("VALUE = 8\n")
    (tmp_path / "net.py").write_text(
        "import dataclasses\nimport pickle\nfrom neighbour import VALUE\n\n"
        "@dataclasses.dataclass\nclass Net:\n    size: int\n\n"
        "    @staticmethod\n    def make():\n        return Net(VALUE)\n\n"
        "def build():\n    import later\n    return pickle.loads(pickle.dumps(Net(later.VALUE)))\n"
    )
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(
        "from nets import other\n\ndef build():\n    return other.VALUE\n"
    )
    (package / "other.py").write_text("VALUE = 9\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_s_function_is_imported_with_its_neighbours(folder):
    assert load_object("net.py:build")().size == 8
    assert load_object("net.py:Net.make")().size == 7
    assert load_object("net.py:build") is load_object(str(folder / "./net.py:build"))
    assert "net" not in sys.modules
    assert sys.path[-1] == str(folder) and sys.path.count(str(folder)) == 1


def test_a_module_s_function_is_imported_from_the_working_directory(folder):
    assert load_object("nets.deep:build")() == 9


def test_a_changed_file_is_read_anew(folder):
    assert load_object("net.py:VALUE") == 7
    before = digest_of("net.py:VALUE")
    (folder / "net.py").write_text("VALUE = 70\n")
    assert load_object("net.py:VALUE") == 70
    assert digest_of("net.py:VALUE") != before


def test_the_digest_is_that_of_the_file(folder):
    digest = digest_of("nets.deep:build")
    assert re.fullmatch("[0-9a-f]{8}", digest)
    assert digest == digest_of("nets/deep.py:other") == digest_of(f"{folder}/nets/deep.py")
    assert "nets.deep" not in sys.modules, "it was imported"
    with pytest.raises(ObjectError, match="nat.py: no such file .did you mean 'net.py'"):
        digest_of("nat.py:build")


def test_a_name_can_be_made_absolute(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_name("net.py:build") == absolute_name("./a/../net.py:build")
    assert absolute_name("net.py:build") == f"{folder}/net.py:build"
    assert absolute_name("net.py") == absolute_name("net.py:") == f"{folder}/net.py"
    assert absolute_name("net.py:build", "/data") == "/data/net.py:build"
    assert absolute_name("~/net.py:build", "/data") == "/home/me/net.py:build"
    assert absolute_name("nets.deep:build") == "nets.deep:build"
    with pytest.raises(ObjectError, match="'mnist': expected FILE.py:FUNCTION"):
        absolute_name("mnist")


BAD = {
    "no.py:build": (None, "{folder}/no.py: no such file (did you mean 'net.py'?); expected"),
    "sub.py:build": ("", "{folder}/sub.py: not a file"),
    "net.py:biuld": (None, "{folder}/net.py: has no 'biuld'; it defines Net, build (did you"),
    "net.py:Net.mak": (None, "{folder}/net.py: has no 'Net.mak'"),
    "net.py": (None, "net.py: no function named; it defines Net, build; expected FILE.py:"),
    "x.py:a": ("def a(:\n", "{folder}/x.py, line 1: invalid syntax; expected Python."),
    "x.py:b": ("b = '\0'\n", "x.py"),
    "x.py:c": ("\n\nimport nonexistent\n", "x.py: importing it raised ModuleNotFoundError: No "
               "module named 'nonexistent' ({folder}/x.py, line 3)"),
    "x.py:d": ("def f():\n    return 1 / 0\nd = f()\n",
               "importing it raised ZeroDivisionError: division by zero ({folder}/x.py, line 2)"),
    "x.py:e": ("raise SystemExit(2)\n", "x.py: ends the program when it is imported; put what it"),
    "x.py:f": ("import y\n", "x.py: imports {folder}/y.py, line 2: "),
    "x.py:g": ("", "x.py: has no 'g'; it defines no function."),
    "x.py:h": ("raise ValueError('a\\x1b[2J\\nb')\n", r"raised ValueError: a\x1b[2J ("),
    "nets.no:build": (None, "nets.no: no such module, neither installed nor in {folder}; name"),
    "no.nets:build": (None, "no.nets: no such module"),
    "net.deep:build": (None, "net.deep: no such module"),
    "nets.deep:biuld": (None, "{folder}/nets/deep.py: has no 'biuld'; it defines build (did you"),
    "bad.nets:build": (None, "bad.nets: importing it raised RuntimeError: here ({folder}/bad/__in"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_named_with_its_place(name, folder):
    content, message = BAD[name]
    (folder / "y.py").write_text("a = 1\nb = = 2\n")
    (folder / "bad").mkdir()
    (folder / "bad/__init__.py").write_text("raise RuntimeError('here')\n")
    (folder / "sub.py").mkdir()
    if content is not None and name.startswith("x"):
        (folder / "x.py").write_text(content)
    before = set(sys.modules)
    with pytest.raises(ObjectError, match=re.escape(message.format(folder=folder))) as refusal:
        load_object(name)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 500
    private = [module for module in set(sys.modules) - before if module.startswith("_bn_keras_x")]
    assert private == [] or name == "x.py:g", "a half imported module stayed"


def test_an_error_is_told_with_the_last_line_of_the_user_s_own(folder):
    (folder / "x.py").write_text("import json\n\ndef f():\n    return json.loads('{')\n")
    with pytest.raises(ValueError) as error:
        load_object("x.py:f")()
    assert objects.told(error.value).endswith(f"({folder}/x.py, line 4)")
    assert objects.told(KeyError()) == "KeyError"
    assert objects.told(ValueError("\x1b[1mInput 0\x1b[0m \x1b]0;x")) == (
        r"ValueError: Input 0 \x1b]0;x"
    )


def test_an_error_in_a_graph_is_told_by_its_reason():
    """TensorFlow says that it was in a graph, then where, and at last why."""
    import keras
    import numpy as np

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(Exception) as error:
        model.evaluate(np.zeros((4, 3)), np.full(4, 7), verbose=0)
    assert "Graph execution error" in str(error.value)
    assert in_a_line(error.value).startswith("InvalidArgumentError: Received a label value of 7")


def test_no_tensorflow_is_loaded(folder):
    code = (
        "import sys\nfrom bn_keras import objects\nobjects.load_object('net.py:build')()\n"
        "print([name for name in sys.modules if name in ('tensorflow', 'keras', 'numpy')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")
