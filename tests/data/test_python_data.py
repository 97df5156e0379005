"""Data that a program has in hand: every form of them, and what is refused."""

import re
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from bn_keras import data
from bn_keras.data import from_python
from bn_keras.data.splits import DataError, make_splits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = np.arange(20) % 3
VALIDATION, TEST = (X[:6] + 1, Y[:6]), (X[:7] + 2, Y[:7])


def same(split, pair):
    x, y = pair
    np.testing.assert_array_equal(split.images, x)
    np.testing.assert_array_equal(split.labels, y)
    assert split.images.dtype == np.float32 and split.labels.dtype == np.int32


# --- forms --------------------------------------------------------------------------------------

FORMS = {
    "four arrays": (X, Y, *TEST),
    "a list of four": [X, Y, *TEST],
    "two pairs": ((X, Y), TEST),
    "lists of two": [[X, Y], [*TEST]],
    "a dict": {"test": TEST, "train": (X, Y)},
    "lists of numbers": (X.tolist(), Y.tolist(), *TEST),
    "a list of examples": (list(X), list(Y), *TEST),
}


@pytest.mark.parametrize("form", FORMS)
def test_train_and_test_are_taken_from(form):
    source = from_python(FORMS[form])
    same(source.train, (X, Y))
    same(source.test, TEST)
    assert source.validation is None and source.classes == 3 and source.notes == ()
    assert source.as_given and source.ordered


@pytest.mark.parametrize("given", [
    ((X, Y), VALIDATION, TEST), {"train": (X, Y), "validation": VALIDATION, "test": TEST},
], ids=["three pairs", "a dict"])
def test_a_validation_set_comes_with(given):
    source = from_python(given)
    same(source.validation, VALIDATION)
    same(source.test, TEST)


@pytest.mark.parametrize(
    "given", [(X, Y), [X, Y], {"train": (X, Y)}], ids=["a tuple", "a list", "a dict"]
)
def test_a_fifth_is_drawn_for_testing_where_no_test_set_is_given(given):
    first, again = from_python(given), from_python(given)
    assert (len(first.train), len(first.test)) == (16, 4)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    both = np.concatenate([first.train.images, first.test.images])
    assert len(np.unique(both[:, 0])) == 20, "an example is lost or in two sets"
    assert first.test.images.tolist() != X[:4].tolist(), "cut off and not drawn"
    assert first.notes == ("data: no test set given; 4 examples are drawn for it",)


def test_two_examples_as_lists_are_no_pairs():
    source = from_python(([[1.0, 2.0], [3.0, 4.0]], [0, 1]))
    assert source.train.images.shape == (1, 2)


@pytest.mark.parametrize("given, kind", [
    ({"a": X, "b": X + 1}, dict), ((X, X + 1), tuple), ([X, X + 1], list),
    ({"a": X, "b": [X + 1, {"c": X}]}, dict),
], ids=["dict", "tuple", "list", "nested"])
def test_several_inputs_keep_their_structure(given, kind):
    source = from_python((given, Y))
    assert type(source.train.images) is kind
    found = make_splits(source)
    assert len(found.train) == 13 and found.scale == 1
    first = found.test.images["a" if kind is dict else 0]
    assert {row.tobytes() for row in first} <= {row.tobytes() for row in X}


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [
    "uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "bool",
])
@pytest.mark.parametrize("shape", [(20, 2), (20, 4, 5, 3), (20, 7, 2)], ids=str)
def test_numbers_of_every_type_and_rank_are_fed_as_they_are(dtype, shape):
    given = RNG.integers(0, 2, shape).astype(dtype)
    source = from_python((given, Y, given, Y))
    np.testing.assert_array_equal(source.train.images, given.astype(np.float64))
    assert source.train.images.dtype == ("uint8" if dtype == "uint8" else "float32")
    assert source.notes == () and make_splits(source).as_given
    # For the toolkit's own nets, which take pixels from 0 to 1.
    assert make_splits(source).scale == (1 / 255 if dtype == "uint8" else 1)


def test_bytes_are_not_copied():
    given = np.zeros((1000, 1000, 10), np.uint8)
    labels = np.arange(1000) % 2
    tracemalloc.start()
    from_python((given, labels, given, labels))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < given.nbytes


def test_one_number_an_example_gets_an_axis_and_a_note():
    source = from_python((X[:, 0], Y, X[:, 0], Y))
    assert source.train.images.shape == (20, 1)
    assert "one number an example, taken as the shape (20, 1)" in source.notes[0]


def test_whole_numbers_that_float32_lacks_are_noted():
    source = from_python((X.astype(np.int64) + 2**30 + 1, Y))
    assert any("as float32 the number 10737418" in note for note in source.notes)
    assert not any("float32" in note for note in from_python((X * np.float64(0.1), Y)).notes)


def test_frames_are_read_by_their_columns():
    frame = pd.DataFrame({"a": X[:, 0], "b": Y, "c": Y > 1})
    source = from_python((frame, frame["b"], frame, frame[["b"]]))
    same(source.train, (np.stack([X[:, 0], Y, Y > 1], 1), Y))
    same(source.test, (np.stack([X[:, 0], Y, Y > 1], 1), Y))
    texts = pd.Series(["cat", "dog"] * 10)
    for column in (texts, texts.astype("category"), texts.to_frame()):
        assert from_python((frame, column)).classes == 2


# --- labels -------------------------------------------------------------------------------------

CAT = np.array(["cat", "ant", "bee"])
LABELS = {
    "int64": (Y, None),
    "uint8": (Y.astype(np.uint8), None),
    "one column": (Y[:, None], None),
    "one-hot": (np.eye(3, dtype=int)[Y], "one-hot labels of 3 columns"),
    "one-hot floats": (np.eye(3)[Y], "one-hot labels of 3 columns are taken as the classes 0 to 2"),
    "one-hot booleans": (np.eye(3)[Y] == 1, "one-hot labels of 3 columns"),
    "texts": (np.array(["a", "bb", "ccc"])[Y], "labels 'a', 'bb', 'ccc' are taken as the class"),
    "texts as objects": (np.array(["a", "bb", "ccc"], object)[Y], "'a', 'bb', 'ccc'"),
    "bytes": (np.array([b"a", b"bb", b"ccc"])[Y], "'a', 'bb', 'ccc'"),
    "a list of texts": (["abc"[n] for n in Y], "'a', 'b', 'c'"),
    "one column of texts": (np.array(["a", "bb", "ccc"])[Y][:, None], "'a', 'bb', 'ccc'"),
}


@pytest.mark.parametrize("case", LABELS)
def test_classes_are_numbered_from_0(case):
    given, note = LABELS[case]
    source = from_python((X, given, X[:7], given[:7]))
    same(source.train, (X, Y))
    same(source.test, (X[:7], Y[:7]))
    assert source.classes == 3 and len(source.notes) == (note is not None)
    assert note is None or note in source.notes[0]


def test_whole_numbers_stay_the_classes_that_they_are():
    """A net's outputs are numbered from 0, whichever of them the examples at hand have."""
    source = from_python((X, 2 * Y + 5, X, 2 * Y + 5))
    assert source.train.labels.tolist() == (2 * Y + 5).tolist() and source.classes == 10
    assert source.notes == ("data: its labels are 5, 7, 9, 3 of the classes 0 to 9",)


@pytest.mark.parametrize("labels", [Y - 1, Y * 50_000], ids=["negative", "large"])
def test_whole_numbers_that_are_no_classes_are_refused(labels):
    with pytest.raises(DataError, match="expected classes numbered from 0"):
        from_python((X, labels, X, labels))


def test_texts_are_numbered_in_the_order_of_the_alphabet_and_booleans_from_false():
    assert from_python((X, CAT[Y], X, CAT[Y])).train.labels.tolist() == [[2, 0, 1][n] for n in Y]
    source = from_python((X, Y == 1, X, Y == 1))
    assert source.train.labels.tolist() == (Y == 1).astype(int).tolist() and source.notes == ()


NUMBERS = {
    "floats": (X[:, 0], 1, None),
    "a column of floats": (X[:, :1], 1, None),
    "several floats": (X, 3, None),
    "images": (RNG.normal(size=(20, 4, 5, 2)), 2, None),
    "several 0 and 1": ((X > 0).astype(int), 3, r"shape (n, 3) are taken as several, each 0 or 1"),
    "several booleans": (X > 0, 3, "each 0 or 1"),
    "several floats 0 and 1": ((X > 0).astype(float), 3, "each 0 or 1"),
    "counts": ((X * 9).astype(int), 3, "whole numbers of shape (n, 3) are taken as numbers to"),
    "bytes of images": (RNG.integers(0, 256, (20, 4, 5, 1)).astype(np.uint8), 1, "(n, 4, 5, 1)"),
    "whole floats": (Y.astype(float), 1, "labels are the floats 0 to 2, taken as numbers to pred"),
    "a column of them": (Y[:, None].astype(float), 1, "classes are given as whole numbers"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_to_predict_keep_their_shape(case):
    given, classes, note = NUMBERS[case]
    source = from_python((X, given, X, given))
    np.testing.assert_array_equal(source.train.labels, given.astype(np.float32))
    assert source.train.labels.dtype == np.float32 and source.classes == classes
    assert len(source.notes) == (note is not None) and (note is None or note in source.notes[0])
    assert make_splits(source).regression


# --- what is refused ----------------------------------------------------------------------------


class Gpu:
    """As a tensor of PyTorch's on a GPU answers."""

    shape = (20, 3)

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")


FRAME = pd.DataFrame({"a": X[:, 0], "city": ["x"] * 20, "when": pd.to_datetime(["2020"] * 20)})
MASKED = np.ma.masked_array(X, X > 1)
BAD = {
    "nothing": (None, "received a NoneType (does a function lack its return?); expected (x_train,"),
    "a name": ("mnist", "received a str (the name of a dataset goes to bn_keras.data.load)"),
    "an array": (X, "received a ndarray (its labels are missing)"),
    "a frame": (FRAME, "received a DataFrame (take the column of the labels out of it)"),
    "a generator": (((x, 1) for x in X), "received a generator (read it into arrays first)"),
    "a function": (len, "received a builtin_function_or_method (read"),
    "one": ((X,), "received a tuple of 1; expected (x_train"),
    "three arrays": ((X, Y, X), "received a tuple of 3"),
    "six": ((X, Y) * 3, "received a tuple of 6"),
    "no set": ({}, "received a dict with no key"),
    "odd keys": ({"train": (X, Y), "tset": TEST}, "a dict with 'train', 'tset'; expected"),
    "no train": ({"test": TEST}, "a dict with 'test'; expected"),
    "weights": ({"train": (X, Y, Y)}, "train: a tuple of 3; expected a pair, inputs and labels"),
    "an array as a set": ({"train": X}, "train: a ndarray; expected a pair"),
    "other lengths": ((X, Y[:5]), "train: 20 inputs and 5 labels; expected as many"),
    "one of two inputs shorter": (({"a": X, "b": X[:9]}, Y), "9 inputs['b'] and 20 labels"),
    "no examples": ((X[:0], Y[:0]), "0 inputs and 0 labels; expected as many, and at least one"),
    "no inputs": (({}, Y), "train inputs are {}; expected an array"),
    "an empty tuple": (((), Y), "train: 0 inputs and 20 labels"),
    "one example": ((X[:1], X[:1, 0]), "every train label is"),
    "NaN": ((np.where(X > 1, np.nan, X), Y), "holds NaN or infinity"),
    "NaN in a nest": (({"a": X, "b": X * np.nan}, Y), "train input['b'] 0 holds NaN or infinity"),
    "infinity in test": ((X, Y, X + np.inf, Y), "test input 0 holds NaN or infinity"),
    "NaN as a label": ((X, np.where(Y > 1, np.nan, Y)), "train label 2 holds NaN or infinity"),
    "beyond float32": ((X.astype(float) * 1e300, Y), "expected less than 3e38"),
    "one class": ((X, Y * 0 + 4), "every label is 4; expected labels of at least two classes"),
    "one text": ((X, ["cat"] * 20), "every label is 'cat'; expected labels of at least two"),
    "one number": ((X, np.ones(20)), "every train label is 1.0; expected ones that differ"),
    "objects": ((X.astype(object), Y), "train inputs are of type object; expected numbers"),
    "texts": ((CAT[Y][:, None], Y), "train inputs are of type <U3; expected numbers"),
    "complex": ((X.astype(complex), Y), "train inputs are of type complex128"),
    "dates": ((X.astype("datetime64[s]"), Y), "train inputs are of type datetime64[s]"),
    "columns of text": ((FRAME, Y), "are no numbers: 'city' (object), 'when' (datetime64["),
    "no columns": ((FRAME[[]], Y), "a frame without columns"),
    "columns of one name": ((pd.concat([FRAME["a"], FRAME["a"]], axis=1), Y), "have one name"),
    "masked": ((MASKED, Y), "are a masked array; expected a value everywhere"),
    "ragged": (([[1], [1, 2]], [0, 1]), "a list that NumPy cannot take (ValueError: "),
    "a tensor on a GPU": ((Gpu(), Y), "a Gpu that NumPy cannot take (TypeError: can't convert cud"),
    "a generator of inputs": (((x for x in X), Y), "train inputs are a generator; expected an arr"),
    "a number": ((3, Y), "train inputs are a int; expected an array"),
    "a text": (("abc", Y), "train inputs are 'abc'; expected an array"),
    "no values": ((X[:, :0], Y), "train inputs have the shape (20, 0)"),
    "no test labels": ((X, Y, X, None), "test labels are None; expected an array"),
    "labels missing": ((X, [None, "a"] * 10), "train labels are of type object and hold None"),
    "dates as labels": ((X, Y.astype("datetime64[s]")), "train labels are of type datetime64[s]"),
    "several labels": ((X, {"a": Y, "b": Y}), "train labels are a dict of 2; expected one array"),
    "texts of two columns": ((X, np.stack([CAT[Y]] * 2, 1)), "labels are texts of shape (n, 2)"),
    "no label": ((X, X[:, :0]), "labels are floats of shape (n, 0)"),
    "a class of test alone": ((X, Y, X, Y + 1), "6 test labels, such as 3, do not occur in train"),
    "a text of test alone": ((X, CAT[Y * 0 + Y % 2], X, CAT[Y]), "such as 'bee', do not occur"),
    "a column of test alone": ((X, np.eye(4)[Y], X, np.eye(4)[Y + 1]), "such as 3, do not occur"),
    "other kinds of labels": (
        (X, Y, X, X), "train labels are whole numbers of shape (n,) but test labels are floats of "
        "shape (n, 3); expected labels of one kind"),
    "another shape": ((X, Y, X[:, :2], Y), "train inputs have the shape (3,) but test inputs (2,)"),
    "another type": ((X, Y, X.astype(np.uint8), Y), "inputs are float32 but test inputs uint8"),
    "another structure": (((X, X), Y, X, Y), "train holds inputs[0], inputs[1], labels but test "),
}


@pytest.mark.parametrize("case", BAD)
def test_unfit_data_are_refused_with_what_was_received(case):
    given, message = BAD[case]
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        from_python(given, "here")
    assert str(refusal.value).startswith("here: ") and len(str(refusal.value)) < 700


# --- a function by name -------------------------------------------------------------------------


def test_a_function_of_a_file_returns_the_data(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/my_data.py").write_text(
        "import numpy as np\nimport my_rows\n\ndef load():\n"
        "    return np.ones((my_rows.COUNT, 2)), np.arange(my_rows.COUNT) % 2\n"
    )
    (tmp_path / "a/my_rows.py").write_text("COUNT = 12\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    splits = data.load("a/my_data.py:load")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 2, 2)
    here = (f"{tmp_path}/a/my_data.py:load", None)
    assert data.absolute("a/my_data.py:load") == data.absolute("my_data.py:load", "a") == here
    assert data.load("my_data.py:load", data_dir="a").digest() == splits.digest()
    assert data.absolute("my_package.data:load") == ("my_package.data:load", None)


FUNCTIONS = {
    "raises": "my_data.py:raises: raised KeyError: 'x' ({path}, line 2); expected a function of no",
    "takes": "raised TypeError: takes() missing 1 required positional argument: 'path'; expected a",
    "nothing": "my_data.py:nothing: received a NoneType (does a function lack its return?)",
    "leaves": "my_data.py:leaves: raised SystemExit: 3 ({path}, line 8)",
    "NUMBER": "my_data.py:NUMBER: is a int; expected a function of no argument",
    "lod": "my_data.py: has no 'lod'; it defines raises, takes, nothing, leaves",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_fails_is_named_with_the_place(name, tmp_path):
    path = tmp_path / "my_data.py"
    path.write_text(
        "def raises():\n    return {}['x']\ndef takes(path):\n    return path\n"
        "def nothing():\n    pass\ndef leaves():\n    raise SystemExit(3)\nNUMBER = 3\n"
    )
    with pytest.raises(DataError, match=re.escape(FUNCTIONS[name].format(path=path))):
        data.load(f"{path}:{name}")


def test_the_shape_that_labels_have_in_fit_is_kept_beside_the_classes():
    whole = np.arange(20) % 2
    shapes = {
        "numbers": (whole, None), "column": (whole[:, None], (1,)),
        "texts": (["a", "b"] * 10, None),
        "series": (pd.Series(whole), (1,)), "frame": (pd.DataFrame(whole), (1,)),
        "float series": (pd.Series(whole + 0.5), (1,)),
        "floats": (whole[:, None] + 0.5, None),
        "one-hot": (np.eye(2)[whole], (2,)),
        "two numbers": (np.ones((20, 2)) * whole[:, None], None),
    }
    x = np.arange(20.0)[:, None]
    sources = {name: from_python((x, y)) for name, (y, _) in shapes.items()}
    found = {name: source.label_shape for name, source in sources.items()}
    assert found == {name: shape for name, (_, shape) in shapes.items()}
    digests = {make_splits(sources[name]).digest() for name in ("numbers", "column", "one-hot")}
    assert len(digests) == 3
