"""Parts that installed packages add: a real package, built and installed beside the others."""

import os
import shutil
import subprocess
import sys

import pytest
from make import ROOT

SETUP = """
[metadata]
name = {name}
version = 1.0
[options]
packages = find:
py_modules = {modules}
[options.entry_points]
{groups}
"""
PARTS = {
    "someones/__init__.py": "raise SystemExit('the package was imported')\n",
    "someones_norms.py": """
import sys
print("norms are imported", file=sys.stderr)
from bn_keras.registry import NORMALIZERS
import bn_keras.registry as registry

@NORMALIZERS.register("shifted", channelwise=True)
def shifted(channels, name, **settings):
    return "shifted"

def bare(channels, name, **settings):
    return "bare"

@registry.MODELS.register("their_model", loss="softmax", stacks=True)
class TheirModel:
    pass
""",
    "someones_studies.py": """
from bn_keras import study
from bn_keras.registry import COMMANDS, PROBES, STUDIES

@STUDIES.register("their_study")
def their_study():
    return study.Study(
        question="Whose study is it?", source="", duration="1 s", expected="theirs",
        base={"model": "ioffe_mlp"}, columns=("their_number",),
        arms={"shifted": {"normalizer": "shifted"}})

@PROBES.register("their_probe", metrics={"their_number": ("their number", "", "low")})
class TheirProbe: ...

@COMMANDS.register("greet", usage="greet NAME", does="says hello")
def greet(arguments):
    print("hello", *arguments)
    return 7
""",
    "someones_broken.py": """
from bn_keras.registry import NORMALIZERS
import there_is_no_such_module

@NORMALIZERS.register("fails_later")
def fails_later(): ...

@NORMALIZERS.register("another")
def other_name(): ...

@NORMALIZERS.register("computed", channelwise=bool(1))
def computed(): ...
""",
    "someones_garbage.py": "def part(:\n",
}
GOOD = {
    "normalizers": ["shifted = someones_norms:shifted", "bare = someones_norms:bare"],
    "models": ["their_model = someones_norms:TheirModel"],
    "studies": ["their_study = someones_studies:their_study"],
    "probes": ["their_probe = someones_studies:TheirProbe"],
    "commands": ["greet = someones_studies:greet"],
}
BAD = {"normalizers": [
    "batch = someones_norms:bare", "shifted = someones_norms:bare",
    "fails_later = someones_broken:fails_later", "one_name = someones_broken:other_name",
    "computed = someones_broken:computed", "garbage = someones_garbage:part",
    "gone = no_such_module:part", "absent = someones_norms:absent", "inner = someones.inner:part",
    "nested = someones_norms:TheirModel.make",
]}


def install(folder, target, name, points, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    groups = "\n".join(
        f"bn_keras.{group} =\n    " + "\n    ".join(lines) for group, lines in points.items()
    )
    modules = ", ".join(path[:-3] for path in files if "/" not in path)
    (folder / "setup.cfg").write_text(SETUP.format(name=name, modules=modules, groups=groups))
    (folder / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--no-index", "--target", str(target), str(folder)],
        check=True, capture_output=True, text=True,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Folders of installed packages: a good one alone, and the same beside a bad one."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder / "good", folder / "alone", "good-parts", GOOD, PARTS)
    shutil.copytree(folder / "alone", folder / "both")
    install(folder / "bad", folder / "both", "x-bad-parts", BAD, {"nothing_else.py": ""})
    return folder


def python(target, code):
    """(standard output, standard error) of a program beside installed packages."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=target,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{target}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_names_and_properties_of_installed_parts_are_known_without_an_import(packages):
    output, errors = python(packages / "alone", """
import sys
from bn_keras.registry import COMMANDS, MODELS, NORMALIZERS
assert {"shifted", "bare", "batch", "none"} <= set(NORMALIZERS.names())
print(NORMALIZERS.properties("shifted"), NORMALIZERS.properties("bare"))
print(MODELS.properties("their_model"), COMMANDS.properties("greet"))
assert not [name for name in sys.modules if name.startswith("someones")]
assert COMMANDS.get("list").__module__ == "bn_keras.commands.list"
assert NORMALIZERS.properties("batch") and "someones_norms" not in sys.modules
print(NORMALIZERS.get("shifted")(3, "n"), NORMALIZERS.get("bare")(3, "n"))
assert MODELS.get("their_model").__name__ == "TheirModel" and "someones" not in sys.modules
print(NORMALIZERS.properties("shifted"), NORMALIZERS.properties("bare"))
""")
    assert output.splitlines() == [
        "{'channelwise': True} {}",
        "{'loss': 'softmax', 'stacks': True} {'usage': 'greet NAME', 'does': 'says hello'}",
        "shifted bare",
        "{'channelwise': True} {}",
    ]
    assert errors.count("norms are imported") == 1 and "Warning" not in errors


@pytest.mark.slow
def test_commands_list_call_and_plan_with_installed_parts(packages):
    output, errors = python(packages / "alone", """
import sys
from bn_keras.__main__ import main
assert [main([]), main(["list"]), main(["train", "--help"]), main(["greet", "you"])] == [0, 0, 0, 7]
from bn_keras.plan import make_plan, stacks
run, = make_plan("their_study", {}, seeds=1).runs
assert run.normalizer == "shifted" and stacks(run)
loaded = {"tensorflow", "someones_norms", "someones"} & set(sys.modules)
assert not loaded, loaded
""")
    assert "  greet NAME\n        says hello" in output and "hello you" in output
    for line in ("model: ", "normalizer: ", "probe: "):
        assert line in output
    assert "their_model" in output and "  their_study\n      Whose study is it?" in output
    choices = [line for line in output.splitlines() if line.startswith("        (activated, ")]
    assert choices and "shifted" in choices[0]
    assert errors == ""


@pytest.mark.slow
def test_a_part_that_cannot_be_taken_is_named_with_its_package_and_costs_no_other(packages):
    output, errors = python(packages / "both", """
import warnings
from bn_keras.registry import NORMALIZERS, PartError, UnknownName
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = NORMALIZERS.names()
    NORMALIZERS.names()
for one in caught:
    print(one.category.__name__, one.message)
assert {"batch", "shifted", "bare", "fails_later"} <= set(names)
assert not {"one_name", "computed", "garbage", "gone", "absent", "inner", "nested"} & set(names)
assert NORMALIZERS.get("batch").__module__ == "bn_keras.normalizers.batch"
assert NORMALIZERS.get("shifted")(3, "n") == "shifted"
for name in ("fails_later", "fails_later", "garbage"):
    try:
        NORMALIZERS.get(name)
    except (PartError, UnknownName) as error:
        print("ERROR", error)
""")
    told = [line for line in output.splitlines() if line.startswith("RuntimeWarning")]
    expected = {
        "absent": "someones_norms does not define absent; expected the file that defines it",
        "batch": "the name is taken by bn_keras.normalizers.batch; expected another one",
        "computed": "the decorator of someones_broken:computed: ",
        "garbage": "someones_garbage.py, line 1: invalid syntax; expected Python",
        "gone": "there is no no_such_module in Python source; expected module:function",
        "inner": "there is no someones.inner in Python source; expected module:function",
        "nested": "received 'someones_norms:TheirModel.make'; expected module:function",
        "one_name": "someones_broken:other_name is registered as another; expected that name",
        "shifted": "the name is taken by someones_norms; expected another one",
    }
    assert len(told) == len(expected)
    for line, (name, reason) in zip(told, expected.items()):
        assert line.startswith(
            f"RuntimeWarning normalizer '{name}' of the package x-bad-parts is left out: "
        )
        assert reason in line
    failed = [line for line in output.splitlines() if line.startswith("ERROR")]
    assert len(failed) == 3 and failed[2].startswith("ERROR unknown normalizer 'garbage'")
    for line in failed[:2]:
        assert line.startswith(
            "ERROR normalizer 'fails_later' of the package x-bad-parts: someones_broken cannot be "
            "imported (ModuleNotFoundError: No module named 'there_is_no_such_module'); expected"
        )
