"""The walls of the house: who may import whom, what is public and documented."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import bn_keras

ROOT = pathlib.Path(bn_keras.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# Rows from the top down; a module may import from rows below its own.
ROWS = [
    ["__main__"],
    ["conformance_cli"],
    ["cli"],
    ["stack", "report"],
    ["runner", "executors", "study_report"],
    ["animation"],
    ["figures", "verdicts"],
    ["loop", "summaries", "diagnostics", "surgery"],
    ["models"],
    ["normalizers"],
    ["surgery.calls"],
    ["surgery.statistics", "surgery.copies"],
    ["batch_norm.layer"],
    ["batch_norm.renorm"],
    ["batch_norm.population"],
    ["batch_norm.callers", "batch_norm.arguments"],
    ["batch_norm.functional"],
    ["batch_norm.kernels", "batch_norm.torch_kernels", "batch_norm.reference"],
    ["data.tfds"],
    ["data.mnist", "data.idx", "data.csv_file", "data.not_mnist", "data.regression"],
    ["data.reading"],
    ["data"],
    ["data.reading.files"],
    ["data.splits", "losses", "optimizers"],
    ["studies"],
    ["stats", "intervals"],
    ["results"],
    ["config", "registry"],
    ["batch_norm", ""],
    ["loading", "native_log"],
]
# Folders whose files may import each other.
INSIDE = {"diagnostics", "models", "studies", "surgery"}
WITHOUT_TENSORFLOW = [
    "config", "registry", "results", "stats", "batch_norm.reference", "data", "data.splits",
    "data.idx", "data.mnist", "data.tfds", "data.csv_file", "data.not_mnist", "data.regression",
    "data.reading.files", "data.reading.idx", "data.reading.csv", "data.reading.safe_pickle",
    "data.reading.pixels", "studies", "verdicts", "figures", "animation",
    "study_report", "report", "cli", "__main__", "executors", "loading",
]


def row_of(module):
    name = module.removeprefix("bn_keras").lstrip(".")
    while True:
        for number, row in enumerate(ROWS):
            if name in row:
                return number
        assert "." in name, f"{module} stands in no row: add it to ROWS"
        name = name.rpartition(".")[0]


def imports(path):
    """Dotted names of ours that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES:
                yield name


def folder(module):
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    for other in imports(MODULES[module]):
        if folder(module) == folder(other) and folder(module) in INSIDE:
            continue
        assert row_of(other) > row_of(module), f"{module} imports {other}"


def test_the_oracle_imports_nothing_of_ours():
    assert not list(imports(MODULES["bn_keras.batch_norm.reference"]))
    assert not list(imports(MODULES["bn_keras.config"]))
    assert not list(imports(MODULES["bn_keras.registry"]))


def test_a_module_loads_without_tensorflow():
    """One process for all: what one module has loaded stays, so the first to blame is named."""
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(f'bn_keras.{module}')\n"
        "    found = [name for name in ('tensorflow', 'keras') if name in sys.modules]\n"
        "    print(module, found)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_TENSORFLOW], capture_output=True, text=True
    )
    assert result.stdout.splitlines() == [f"{module} []" for module in WITHOUT_TENSORFLOW]
    assert result.stderr == ""


def test_only_the_kernels_use_raw_tensorflow_in_the_layer():
    for module, path in MODULES.items():
        if module.startswith("bn_keras.batch_norm") and module != "bn_keras.batch_norm.kernels":
            assert "tensorflow" not in {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Import) for alias in node.names
            }, module


@pytest.mark.parametrize("module", MODULES)
def test_every_file_and_public_thing_has_a_docstring(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), module
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_the_public_names_are_all_there():
    assert "BatchNorm" in bn_keras.__all__
    for name in bn_keras.__all__:
        thing = getattr(bn_keras, name)
        assert not inspect.isclass(thing) or thing.__doc__
    with pytest.raises(AttributeError, match="'BatchNrm'"):
        bn_keras.BatchNrm


def test_the_version_is_the_installed_one():
    metadata = importlib.import_module("importlib.metadata")
    assert metadata.version("bn_keras") == bn_keras.__version__


def test_no_parametrization_shrank_to_nothing():
    assert len(MODULES) > 25 and all(row_of(module) >= 0 for module in MODULES)
