"""The walls of the house: the table in docs/architecture.md against the code; what is public."""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from make import ROOT

import bn_keras
from bn_keras import registry
from bn_keras.registry import Registry

PACKAGE = pathlib.Path(bn_keras.__file__).parent
PAGE = PACKAGE.parent / "docs/architecture.md"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FRAMEWORKS = {"tensorflow", "keras", "torch"}
# The machine, of which there is one: it finds parts by the names in a run's settings.
MACHINE = ("executors", "experiment", "loop", "plan", "runner")
PARTS = [part for part in vars(registry).values() if isinstance(part, Registry)]
# Words of the machine that happen to be a part's name as well.
HOMONYMS = {
    ("runner", "evaluation"),  # the moments at which probes are asked
    ("runner", "histograms"),  # the method of a probe
}


def table():
    """Room to (rooms that it may import, whether it loads without TensorFlow), from the top."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    found = {}
    for room, _, imports, tensorflow in rows:
        assert tensorflow in ("yes", "no"), room
        others = [] if imports == "nothing" else [one.strip("` ") for one in imports.split(",")]
        assert room.strip("`") not in found, f"{room} stands twice"
        found[room.strip("`")] = others, tensorflow == "no"
    return found


TABLE = table()


def room_of(module):
    """The most particular row that a module falls in."""
    path = MODULES[module].relative_to(PACKAGE).as_posix()
    return max((room for room in TABLE if path == room or room.endswith("/")
                and path.startswith(room)), key=len, default=None)


def running(node):
    """All nodes of a tree but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from running(child)


@functools.cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module):
    """Dotted names that a file imports, wherever in the file."""
    for node in running(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(module):
    """Modules of ours that a file imports."""
    for name in imported(module):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES:
            yield name


def test_the_table_is_read_whole():
    assert len(TABLE) > 25 and len(MODULES) > 100 and len(PARTS) > 10
    assert sum(free for _, free in TABLE.values()) > 10


@pytest.mark.slow
def test_every_module_stands_in_a_row_and_imports_what_its_row_allows():
    homeless = [module for module in MODULES if not room_of(module)]
    assert not homeless, f"they stand in no row of {PAGE.name}"
    forbidden = [
        f"{module} imports {other}, which {room_of(module)} may not"
        for module in MODULES for other in imports(module)
        if room_of(other) not in (room_of(module), *TABLE[room_of(module)][0])
    ]
    assert not forbidden


@pytest.mark.slow
def test_no_room_and_no_import_in_the_table_is_unused():
    used = {(room_of(module), room_of(other)) for module in MODULES for other in imports(module)}
    listed = {(room, other) for room, (others, _) in TABLE.items() for other in others}
    assert listed - used == set()
    assert set(TABLE) == {room_of(module) for module in MODULES}


def test_rooms_import_from_rows_below_their_own():
    order = list(TABLE)
    for room, (others, _) in TABLE.items():
        for other in others:
            assert order.index(other) > order.index(room), f"{room} imports {other}, above it"


@pytest.mark.slow
def test_no_files_import_each_other_in_a_circle():
    left = {module: set(imports(module)) - {module} for module in MODULES}
    # A file of a folder imports the folder by itself, whatever it imports from there.
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    assert not left, f"a circle among {', '.join(left)}"


@pytest.mark.slow
def test_rooms_without_tensorflow_load_without_it():
    """One process for all: what one module has loaded stays, so the first to blame is named."""
    modules = [module for module in MODULES if TABLE[room_of(module)][1]]
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    found = [name for name in ('tensorflow', 'keras') if name in sys.modules]\n"
        "    print(module, found)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *modules], capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout.splitlines() == [f"{module} []" for module in modules]
    assert result.stderr == ""


@pytest.mark.parametrize("room", [room for room, (_, free) in TABLE.items() if not free])
def test_rooms_with_tensorflow_need_it(room):
    mine = [module for module in MODULES if room_of(module) == room]
    direct = {name.partition(".")[0] for module in mine for name in imported(module)} & FRAMEWORKS
    assert direct or any(not TABLE[other][1] for other in TABLE[room][0]), f"mark {room} as free"


@pytest.mark.parametrize("module", MACHINE)
def test_the_machine_names_no_plug_in(module):
    tree = tree_of(f"bn_keras.{module}")
    known = {name for part in PARTS for name in part.names()}
    words = {
        node.value.partition(":")[0] for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    homonyms = {word for file, word in HOMONYMS if file == module}
    assert words & known <= homonyms and homonyms <= words & known
    homes = {home for part in PARTS for home, _ in part._known().values()}
    assert not homes & set(imports(f"bn_keras.{module}"))


def test_the_oracle_shares_nothing_with_what_it_judges():
    assert TABLE["batch_norm/reference.py"] == ([], True)


def test_only_the_kernels_use_raw_tensorflow_in_the_layer():
    for module in MODULES:
        if module.startswith("bn_keras.batch_norm") and module != "bn_keras.batch_norm.kernels":
            assert "tensorflow" not in {name.partition(".")[0] for name in imported(module)}, module


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_what_a_page_points_to_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    files = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", text)
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).exists() or (PACKAGE / file).exists(), f"{page} names {file}"


def test_the_checks_that_contributors_run_are_those_of_ci():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    checks = re.findall(r"^(?:flake8|isort|pydocstyle|mypy) .*", page, re.MULTILINE)
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert len(checks) == 4 and set(checks) <= set(ci)


@pytest.mark.slow
def test_every_file_and_public_thing_has_a_docstring():
    without = []
    for module in MODULES:
        tree = tree_of(module)
        public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                  and not node.name.startswith("_")]
        places = {module: tree, **{f"{module}.{node.name}": node for node in public}}
        without += [place for place, node in places.items() if not ast.get_docstring(node)]
    assert not without


def test_the_public_names_are_all_there():
    assert set(bn_keras.__all__) == {*bn_keras._HOMES, "__version__"}
    for name in bn_keras.__all__:
        thing = getattr(bn_keras, name)
        assert not inspect.isclass(thing) or thing.__doc__
    with pytest.raises(AttributeError, match="'BatchNrm'"):
        bn_keras.BatchNrm


def test_the_public_names_are_those_that_a_type_checker_sees():
    block, = [node for node in tree_of("bn_keras").body
              if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    seen["statistics"] += ".statistics"  # a module itself
    assert seen == bn_keras._HOMES


@pytest.mark.slow
def test_a_type_checker_of_a_user_knows_the_public_names(tmp_path):
    """Strict, as a user's mypy is, and without this checkout's settings."""
    program = tmp_path / "program.py"
    program.write_text(
        "from bn_keras import BatchNorm, RunConfig\n"
        "BatchNorm(momentum=0.9, debias=True)\n"
        "RunConfig(steps=3).total_steps(100).bit_length()\n"
        "BatchNorm(one_value=3)\n"
        "from bn_keras import BatchNrm\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
         f"--cache-dir={tmp_path / 'cache'}", str(program)],
        capture_output=True, text=True, cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
    )
    found = [line for line in result.stdout.splitlines() if line.startswith("program.py")]
    assert [line.rpartition("[")[2] for line in found] == ["arg-type]", "attr-defined]"], (
        result.stdout + result.stderr
    )
    assert 'incompatible type "int"; expected "str"' in found[0] and "BatchNrm" in found[1]


def test_the_version_is_the_installed_one():
    metadata = importlib.import_module("importlib.metadata")
    assert metadata.version("bn_keras") == bn_keras.__version__


def test_changelog_begins_with_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0].startswith(f"## {bn_keras.__version__}")
