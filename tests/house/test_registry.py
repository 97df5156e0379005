"""Names known without an import, and messages for unknown ones."""

import pytest

from bn_keras.registry import MODELS, NORMALIZERS, PartError, Registry, UnknownName


def test_names_are_read_off_the_files_of_a_folder(tmp_path, monkeypatch):
    package = tmp_path / "someones_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "from someones_registry import WIDGETS\n"
        "@WIDGETS.register('one', size=3)\ndef make():\n    return 1\n"
    )
    (package / "broken.py").write_text("raise SystemExit('imported')")
    (tmp_path / "someones_registry.py").write_text(
        "from bn_keras.registry import Registry\n"
        "WIDGETS = Registry('widget', 'WIDGETS', 'someones_parts')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from someones_registry import WIDGETS

    assert WIDGETS.names() == ["one"]
    assert WIDGETS.get("one")() == 1 and WIDGETS.properties("one") == {"size": 3}


def test_a_part_registered_outside_the_package_is_known():
    registry = Registry("model", "MODELS", "bn_keras.models")
    registry.register("mine")(int)
    assert "mine" in registry.names() and registry.get("mine") is int


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UnknownName) as error:
        NORMALIZERS.get("btach")
    known = ", ".join(NORMALIZERS.names())
    assert str(error.value) == (
        f"unknown normalizer 'btach'; known: {known} (did you mean 'batch'?)"
    )
    with pytest.raises(UnknownName) as error:
        MODELS.check("zzz")
    assert "did you mean" not in str(error.value)


def test_properties_are_read_off_the_decorators_without_an_import(tmp_path, monkeypatch):
    package = tmp_path / "other_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broken.py").write_text(
        "raise SystemExit('imported')\n"
        "@WIDGETS.register('round', stacks=True, metrics={'a_{}': ('title', '', None)})\n"
        "def make(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("widget", "WIDGETS", "other_parts")
    assert registry.properties("round") == {
        "stacks": True, "metrics": {"a_{}": ("title", "", None)}
    }
    with pytest.raises(UnknownName, match="unknown widget 'rond'; known: round .did you mean"):
        registry.properties("rond")


def test_properties_of_a_part_from_outside_are_those_it_was_registered_with():
    registry = Registry("model", "MODELS", "bn_keras.models")
    registry.register("mine", loss="squared")(int)
    assert registry.properties("mine") == {"loss": "squared"}
    assert registry.properties("ioffe_mlp") == {"loss": "softmax", "stacks": True, "xla": True}


def test_a_taken_name_is_refused_and_both_places_are_named():
    registry = Registry("model", "MODELS", "bn_keras.models")
    registry.register("mine")(int)
    with pytest.raises(PartError, match="model 'mine' of builtins.str: .* taken by builtins.int"):
        registry.register("mine")(str)
    with pytest.raises(PartError, match="'ioffe_mlp' of builtins.str: .* by bn_keras.models.mlp"):
        registry.register("ioffe_mlp")(str)
    assert registry.get("mine") is int and "ioffe_mlp" not in registry._registered


def test_a_part_that_is_defined_again_takes_the_place_of_the_older_one():
    def define(number):
        def part():
            return number

        return part

    registry = Registry("model", "MODELS", "bn_keras.models")
    for number in (1, 2):
        registry.register("mine")(define(number))
    assert registry.get("mine")() == 2


@pytest.mark.parametrize("broken, message", [
    ({"one.py": "x = 1\ndef part(:\n"}, "one.py, line 2: invalid syntax; expected Python"),
    ({"one.py": b"# \xff"}, "one.py: 'utf-8' codec can't decode .* expected Python in UTF-8"),
    ({name: "@WIDGETS.register('same')\ndef part(): ...\n" for name in ("one.py", "two.py")},
     "'same' of bad_parts.two: the name is taken by bad_parts.one"),
], ids=["no Python", "no UTF-8", "one name twice"])
def test_a_file_that_cannot_be_read_for_its_parts_is_named(broken, message, tmp_path, monkeypatch):
    package = tmp_path / "bad_parts"
    package.mkdir()
    for name, text in {"__init__.py": "", **broken}.items():
        (package / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PartError, match=message):
        Registry("widget", "WIDGETS", "bad_parts").names()
