"""What every dataset promises: fitting sets, a digest of them, a place, messages fit to print."""

import dataclasses
import os
import pickle
import time

import numpy as np
import pytest

from bn_keras import data
from bn_keras.data.checks import check
from bn_keras.data.nests import each, leaves
from bn_keras.data.reading.files import resolve
from bn_keras.data.reading.pixels import to_pixels
from bn_keras.data.splits import (
    DataError,
    Source,
    Split,
    Splits,
    make_splits,
    number_classes,
)
from bn_keras.registry import DATASETS


def part(count=12, images=None, labels=None):
    rng = np.random.default_rng(count)
    if images is None:
        images = rng.integers(0, 256, (count, 3, 3, 1)).astype(np.uint8)
    return Split(images, np.arange(len(images), dtype=np.int32) % 3 if labels is None else labels)


def splits(**changes):
    return dataclasses.replace(Splits(part(12), part(6), part(7), classes=3), **changes)


# --- digest -------------------------------------------------------------------------------------


def changed(split, name, *place):
    arrays = {key: array.copy() for key, array in vars(split).items()}
    arrays[name][place] += 1
    return Split(**arrays)


CHANGES = {
    **{f"a pixel of {name}": lambda s, n=name: {n: changed(getattr(s, n), "images", -1, 2, 2, 0)}
       for name in ("train", "validation", "test")},
    **{f"a label of {name}": lambda s, n=name: {n: changed(getattr(s, n), "labels", 0)}
       for name in ("train", "validation", "test")},
    "the classes": lambda s: {"classes": 4},
    "the order": lambda s: {"train": s.train.take(np.arange(12)[::-1])},
    "an image less": lambda s: {"train": s.train.first(11)},
    "an image moved to another set": lambda s: {
        "train": s.train.first(11),
        "validation": Split(np.concatenate([s.train.images[11:], s.validation.images]),
                            np.concatenate([s.train.labels[11:], s.validation.labels]))},
    "sets exchanged": lambda s: {"validation": s.test, "test": s.validation},
    "the shape": lambda s: {"train": part(images=s.train.images.reshape(12, 9, 1, 1))},
    "the type of labels": lambda s: {"train": part(12, labels=s.train.labels.astype(np.float32))},
    "the type of pixels": lambda s: {"train": part(images=s.train.images.astype(np.float32))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_changes_with(change):
    first = splits()
    other = dataclasses.replace(first, **CHANGES[change](first))
    assert first.digest() != other.digest()


def test_the_digest_is_the_same_for_the_same_data_however_they_lie_in_memory():
    first = splits()
    assert len(first.digest()) == 16 and int(first.digest(), 16) >= 0
    assert first.digest() == splits().digest() == splits(notes=("read so",)).digest()
    strided = np.zeros((12, 3, 3, 2), np.uint8)
    strided[..., :1] = first.train.images
    fortran = Split(np.asfortranarray(first.train.images), first.train.labels)
    for other in (Split(strided[..., :1], first.train.labels), fortran):
        assert splits(train=other).digest() == first.digest()


def test_the_digest_is_that_of_earlier_versions():
    """It finds stored runs: a change here makes every stored run a stranger."""
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    fixed = Split(images, np.array([0, 1], np.int32))
    assert Splits(fixed, fixed, fixed, classes=2).digest() == "42c88a69416d826f"


def test_the_digest_is_computed_once():
    many = Split(np.zeros((40_000, 28, 28, 1), np.uint8), np.zeros(40_000, np.int32))
    big = Splits(many, many.first(0), many.first(1), classes=2)
    start = time.perf_counter()
    first = big.digest()
    middle = time.perf_counter()
    assert big.digest() == first
    assert time.perf_counter() - middle < (middle - start) / 10


def test_the_digest_changes_with_the_names_of_inputs_and_with_their_being_as_given():
    array = part().images.astype(np.float32)

    def digest(images, as_given=True):
        split = Split(images, part().labels)
        return Splits(split, split, split, classes=3, as_given=as_given).digest()

    nests = [array, {"a": array, "b": array}, {"a": array, "c": array}, {"a": array}, (array,),
             (array, array), (array, (array,)), {"a": (array,)}]
    found = [*map(digest, nests), digest(array, as_given=False)]
    assert len(set(found)) == len(found)
    assert digest({"b": array, "a": array}) == digest({"a": array, "b": array})
    assert digest([array, array]) == digest((array, array))


# --- nests --------------------------------------------------------------------------------------


def test_each_keeps_the_structure_and_leaves_names_the_places():
    nest = {"b": [1, (2, 3)], "a": 4}
    assert each(lambda value, other: value + other, nest, nest) == {"b": [2, (4, 6)], "a": 8}
    assert list(leaves(nest, "x")) == [
        ("x['a']", 4), ("x['b'][0]", 1), ("x['b'][1][0]", 2), ("x['b'][1][1]", 3)
    ]


def test_several_inputs_are_taken_and_cut_together():
    numbers = np.arange(12, dtype=np.float32)
    split = Split({"a": numbers[:, None], "b": (numbers,)}, np.arange(12, dtype=np.int32) % 3)
    source = Source(split, split, 3, as_given=True)
    check("here", source)
    found = make_splits(source, train_size=4, validation_size=3, test_size=5)
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts] == [4, 3, 5] and found.scale == 1
    for part_ in parts:
        np.testing.assert_array_equal(part_.images["a"][:, 0], part_.images["b"][0])
        np.testing.assert_array_equal(part_.images["b"][0] % 3, part_.labels)
    taken = split.take(np.array([7, 2]))
    assert taken.images["b"][0].tolist() == [7, 2] and taken.labels.tolist() == [1, 2]
    assert split.first(2).images["a"].tolist() == [[0], [1]] and len(split.first(None)) == 12


# --- validation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count, expected", [
    (60_000, 5000), (25_000, 5000), (24_999, 4999), (10, 2), (4, 1), (2, 1),
])
def test_the_validation_set_has_5000_examples_or_a_fifth(count, expected):
    images = np.arange(count, dtype=np.float32)[:, None]
    split = Split(images, images[:, 0])
    found = make_splits(Source(split, split, 1, ordered=False))
    assert (len(found.validation), len(found.train)) == (expected, count - expected)
    assert found.validation.labels.tolist() == list(range(expected))


def test_one_example_cannot_be_validated_on():
    with pytest.raises(DataError, match="1 training images; expected at least 2"):
        make_splits(Source(part(1), part(1), 3))


def test_a_validation_set_that_came_with_the_data_is_taken_as_it_is():
    source = Source(part(12), part(7), 3, ordered=False, validation=part(6))
    found = make_splits(source, train_size=11)
    assert len(found.train) == 11
    np.testing.assert_array_equal(found.validation.images, part(6).images)
    assert len(make_splits(source).train) == 12
    assert len(make_splits(source, validation_size=2).validation) == 2
    with pytest.raises(DataError, match="validation_size=7: the dataset has 6 validation images; "):
        make_splits(source, validation_size=7)
    with pytest.raises(DataError, match="train_size=13: the dataset has 12 training images; exp"):
        make_splits(source, train_size=13)


def test_every_set_of_an_ordered_source_is_shuffled_before_it_is_cut():
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    split = Split(labels.astype(np.float32).reshape(-1, 1), labels)
    source = Source(split, split, 3, validation=split)
    found = make_splits(source, train_size=20, validation_size=20, test_size=20)
    for part_ in (found.train, found.validation, found.test):
        assert len(np.unique(part_.labels)) == 3, "cut off a set in order of class"
        np.testing.assert_array_equal(part_.images[:, 0], part_.labels)
    assert make_splits(source, 20, 20, 20).digest() == found.digest()


# --- place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["idx", "csv", "notmnist"])
def test_the_place_is_the_same_from_every_folder(dataset, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "a")
    here = (f"{dataset}:{tmp_path}/a/x", None)
    for path, folder in (
        ("x", None), ("./../a/x", None), ("x", "."), ("x", "../a"), ("~/a/x", None), ("x", "~/a"),
    ):
        assert data.absolute(f"{dataset}:{path}", folder) == here
    assert data.absolute(*here) == data.absolute(here[0], "/other") == here
    monkeypatch.chdir(tmp_path / "b")
    assert data.absolute(f"{dataset}:x") != here == data.absolute(f"{dataset}:../a/x")


@pytest.mark.parametrize("dataset", ["mnist", "tfds:mnist"])
def test_the_place_of_a_set_with_a_name_is_its_data_dir(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.absolute(dataset) == (dataset, None)
    assert data.absolute(dataset, "x") == (dataset, str(tmp_path / "x"))


@pytest.mark.parametrize("path", ["idx:~nouser/x", "csv:~nouser/x", "notmnist:~nouser/x"])
def test_an_unknown_user_in_a_path_gets_a_message(path):
    for function in (data.load, data.absolute):
        with pytest.raises(DataError, match="~nouser/x: there is no user 'nouser' .* ./~nouser"):
            function(path)


@pytest.mark.parametrize("dataset", ["mnist", "tfds:mnist", "idx:x", "csv:x", "notmnist:x"])
@pytest.mark.parametrize("data_dir, message", [
    ("~nouser/x", "there is no user 'nouser'"), ("a\0b", r"a\\x00b: not a path"),
    ("gs://bucket", "gs://bucket: not a path"),
], ids=["unknown user", "NUL", "address"])
def test_a_data_dir_that_cannot_be_gets_a_message(
    dataset, data_dir, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        data.load(dataset, data_dir)
    assert not os.listdir(tmp_path)


def test_a_folder_whose_name_begins_with_a_tilde_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("./~nouser") == tmp_path / "~nouser"


# --- what is checked of every dataset -----------------------------------------------------------

NAN = np.full((12, 3, 3, 1), np.nan, np.float32)
UNFIT = {
    "another size": (part(), part(images=np.zeros((12, 4, 4, 1), np.uint8)),
                     r"train images have the shape \(3, 3, 1\) but test images \(4, 4, 1\)"),
    "no images": (part(0), part(), "0 train images and 0 train labels"),
    "labels lacking": (part(), part(12, labels=np.zeros(11, np.int32)),
                       "12 test images and 11 test labels"),
    "NaN": (part(), part(images=NAN), "test image 0 holds NaN"),
    "NaN label": (part(12, labels=np.full(12, np.inf, np.float32)), part(), "train label 0 holds"),
    "negative label": (part(), part(12, labels=np.full(12, -1)), "test label 0 is -1; .* 0 to 2"),
    "large label": (part(12, labels=np.full(12, 3)), part(), "train label 0 is 3; expected 0 to 2"),
    "float64": (part(images=np.zeros((12, 3, 3, 1))), part(), "train images of type float64"),
    "another type": (part(), part(images=np.zeros((12, 3, 3, 1), np.float32)),
                     "train images are uint8 but test images float32"),
    "several images": (Split((part().images,), part().labels), part(),
                       "train images are a tuple of 1; expected one array"),
    "labels of two axes": (part(12, labels=np.zeros((12, 2), np.int32)), part(),
                           r"train labels are int32 of shape \(12, 2\)"),
    "texts": (part(12, labels=np.array(["a"] * 12)), part(), "train labels are <U1 of shape"),
    "columns that are not counted": (part(12, labels=np.zeros((12, 2), np.float32)), part(),
                                     r"\(12, 2\) with classes=3"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_dataset_that_keeps_not_its_promise_is_refused_by_name(case, monkeypatch):
    train, test, message = UNFIT[case]
    monkeypatch.setitem(
        DATASETS._registered, "planted", (lambda argument, data_dir: Source(train, test, 3), {})
    )
    with pytest.raises(DataError, match=f"^planted:x: .*{message}"):
        data.load("planted:x", validation_size=2)


@pytest.mark.parametrize("name", ["mnist", "quadratic"])
def test_the_datasets_that_ship_keep_their_promise(name):
    check(name, DATASETS.get(name)("", None))


def test_data_beyond_the_memory_get_a_message(monkeypatch):
    def planted(argument, data_dir):
        return np.empty(2**58)

    monkeypatch.setitem(DATASETS._registered, "planted", (planted, {}))
    with pytest.raises(DataError, match="planted: does not fit in this machine's memory"):
        data.load("planted")


@pytest.mark.parametrize("sizes, message", [
    ({"train_size": 0}, "train_size=0: .* at least 1 and at most 10"),
    ({"test_size": -1}, "test_size=-1: .* at least 1 and at most 12"),
    ({"validation_size": -1}, "validation_size=-1: .* at least 1 and at most 11"),
    ({"train_size": 0.5}, "train_size=0.5: .* at least 1"),
    ({"validation_size": 0}, "validation_size=0: .* at least 1 and at most 11"),
    ({"validation_size": 5000}, "validation_size=5000: the dataset has 12 training images; exp"),
    ({"validation_size": 2.0}, "validation_size=2.0: .* at least 1"),
])
def test_sizes_that_are_no_counts_are_refused(sizes, message):
    with pytest.raises(DataError, match=message):
        make_splits(Source(part(), part(), 3), **{"validation_size": 2, **sizes})


def test_notes_of_a_source_reach_the_splits():
    source = Source(part(), part(), 3, notes=("one", "two"))
    assert make_splits(source, validation_size=2).notes == ("one", "two")


# --- pixels -------------------------------------------------------------------------------------


def test_the_scale_maps_stored_pixels_to_1():
    assert splits().scale == 1 / 255
    floats = part(images=np.ones((12, 3, 3, 1), np.float32))
    assert Splits(floats, floats, floats, 3).scale == 1


RAMP = np.linspace(0, 1, 12).reshape(12, 1, 1, 1)
PIXELS = {
    "uint8": ((RAMP * 255).astype(np.uint8), np.uint8, False),
    "int64 bytes": ((RAMP * 255).astype(np.int64), np.uint8, False),
    "uint16": ((RAMP * 65535).astype(np.uint16), np.float32, False),
    "uint16 of bytes": ((RAMP * 255).astype(np.uint16), np.uint8, False),
    "float16": (RAMP.astype(np.float16), np.float32, False),
    "float64": (RAMP, np.float32, False),
    "float to 255": ((RAMP * 255).astype(np.float32), np.float32, True),
}


@pytest.mark.parametrize("case", PIXELS)
def test_pixels_of_every_type_come_to_lie_between_0_and_1(case):
    images, dtype, noted = PIXELS[case]
    before = images.copy()
    # The second part is dark: it must be scaled as the first.
    (first, dark), notes = to_pixels("here", images, images[:2])
    assert first.dtype == dark.dtype == dtype and bool(notes) == noted
    scale = splits(train=Split(first, np.zeros(12, np.int32))).scale
    np.testing.assert_allclose(first * scale, RAMP, atol=1 / 255)
    np.testing.assert_array_equal(first[:2], dark)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("images, received", [
    (RAMP - 0.5, "float64 from -0.5 to 0.5"),
    (RAMP * 256, "float64 from 0.0 to 256.0"),
    (NAN, "float32 from nan to nan"),
    (np.where(RAMP == 1, np.inf, RAMP), "float64 from 0.0 to inf"),
    ((RAMP * 256).astype(np.int64), "int64 from 0 to 256"),
    (-(RAMP * 100).astype(np.int8), "int8 from -100 to 0"),
    (RAMP > 0.5, "bool"),
    (RAMP.astype(complex), "complex128"),
    (RAMP.astype(object), "object"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_pixels_of_another_range_are_refused_with_it(images, received):
    with pytest.raises(DataError, match=f"here: its pixels are {received}.*; expected uint8"):
        to_pixels("here", images, images[:1])


# --- messages -----------------------------------------------------------------------------------


def test_a_message_is_printable_whatever_it_quotes():
    error = DataError("a\x1b[31m\n\x00\x9b\u202e\udcff b é …")
    assert str(error) == r"a\x1b[31m \x00\x9b\u202e\udcff b é …"
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[-1, 0, 2], [5, 6], [0, 2], [-3, -1]], ids=str)
def test_any_whole_numbers_become_classes_from_0(values):
    (first, second), classes, (note,) = number_classes(
        "here", np.array(values), np.array(values[1:])
    )
    assert first.tolist() == list(range(len(values))) and first.dtype == np.int32
    assert second.tolist() == first.tolist()[1:] and classes == len(values)
    assert f"classes 0 to {classes - 1}" in note
