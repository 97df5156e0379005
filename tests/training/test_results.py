"""The store: whole files or none, and only results of the very same settings and data."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest

from bn_keras.config import RunConfig
from bn_keras.results import RunResult, Store, write_atomically


def result(seed=0, accuracy=0.5, **changes):
    metrics = {"validation_accuracy": accuracy, "test_loss": 2.5, "steps_to_90_percent": None}
    curves = {"loss/train": [[10, 0.5], [20, None]], "accuracy/validation": [[20, accuracy]]}
    config = RunConfig(seed=seed, **changes)
    return RunResult(config, "ok", 20, 1.5, metrics, curves, "start", {"keras": "3"}, "data")


def stored(tmp_path):
    """(store, path, content) of one stored result."""
    store = Store(tmp_path)
    store.add(result())
    path = tmp_path / "runs" / "batch" / "seed_0.json"
    return store, path, json.loads(path.read_text())


def test_a_result_is_found_again_as_it_was(tmp_path):
    store, _, _ = stored(tmp_path)
    assert store.find(RunConfig()) == result()
    assert store.look_up(RunConfig(seed=1)) == (None, "not finished")
    store.remove(RunConfig())
    store.remove(RunConfig())
    assert store.find(RunConfig()) is None


def test_a_result_of_other_settings_is_not_taken(tmp_path):
    store, path, _ = stored(tmp_path)
    assert store.look_up(RunConfig(steps=7)) == (None, f"{path} is of other settings")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunResult)])
def test_a_field_that_is_missing_null_or_wrong_makes_a_result_unreadable(name, tmp_path):
    store, path, content = stored(tmp_path)
    wrong = [None, True, -1, 10**400, [[1]], {"a": {}}, {"loss/train": [[0, float("inf")]]},
             {"accuracy/train": [[0, 7]]}, {"accuracy/train": [[-1, 0.5]]},
             {"validation_accuracy": 1.5}, {"validation_images": 0},
             {"validation_commonest": 0}]
    right = {"metrics": {}, "curves": {}}.get(name)
    assert right is None or json.loads(json.dumps(right)) not in wrong
    for changed in [{key: content[key] for key in content if key != name},
                    *({**content, name: value} for value in wrong)]:
        path.write_text(json.dumps(changed))
        found, reason = store.look_up(RunConfig())
        assert found is None and reason.startswith(f"{path} cannot be read: "), changed
    path.write_text(json.dumps(content))
    assert store.find(RunConfig()) == result()


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("learning_rate", 10**400), ("model", None), ("measure", [[1]]), ("new", 1)],
)
def test_a_setting_that_this_version_does_not_know_makes_a_result_unreadable(
    name, value, tmp_path
):
    store, path, content = stored(tmp_path)
    path.write_text(json.dumps({**content, "config": {**content["config"], name: value}}))
    assert "cannot be read" in store.look_up(RunConfig())[1]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b"9" * 5000],
    ids=["empty", "cut", "no field", "list", "null", "no text", "nested", "long number"],
)
def test_a_broken_file_counts_as_no_result(content, tmp_path):
    store, path, _ = stored(tmp_path)
    path.write_bytes(content)
    assert "cannot be read" in store.look_up(RunConfig())[1]


def test_what_is_no_file_counts_as_no_result(tmp_path):
    store, path, _ = stored(tmp_path)
    path.unlink()
    path.mkdir()
    assert "cannot be read: [Errno 21]" in store.look_up(RunConfig())[1]
    with pytest.raises(OSError, match="Is a directory"):
        store.add(result())
    assert Store(path / "no" / "folder").look_up(RunConfig()) == (None, "not finished")


def test_curves_stand_in_the_csv_with_blanks_where_nothing_was_measured(tmp_path):
    Store(tmp_path).add(result())
    with open(tmp_path / "runs" / "batch" / "seed_0.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {"step": "10", "loss_train": "0.5", "accuracy_validation": ""},
        {"step": "20", "loss_train": "", "accuracy_validation": "0.5"},
    ]


def test_frames_are_given_back_or_none_if_they_are_damaged(tmp_path):
    store = Store(tmp_path)
    assert store.frames(RunConfig()) is None
    store.add_frames(RunConfig(), {"steps": np.arange(3)})
    np.testing.assert_array_equal(store.frames(RunConfig())["steps"], [0, 1, 2])
    path = tmp_path / "runs" / "batch" / "seed_0.npz"
    whole = path.read_bytes()
    for content in (b"", whole[:-30], b"garbage", b"\x80\x04K\x01."):  # the last is a pickle
        path.write_bytes(content)
        assert store.frames(RunConfig()) is None


def test_a_failing_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_characters_that_no_encoding_has_are_spelt_out(tmp_path):
    write_atomically(tmp_path / "text", "a\ud800–")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "a\\ud800–"


def test_json_holds_no_nan():
    broken = dataclasses.replace(result(), metrics={"test_loss": float("nan")})
    with pytest.raises(ValueError):
        broken.to_json()
    json.loads(result().to_json(), parse_constant=pytest.fail)
