"""Names known without an import, and messages for unknown ones."""

import pytest

from bn_keras.registry import MODELS, NORMALIZERS, Registry, UnknownName


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
