"""tf.data.Datasets in the place of arrays: batched or not, shuffled, endless, odd."""

import re

import numpy as np
import pytest
import tensorflow as tf

from bn_keras.data import from_python
from bn_keras.data.reading import tf_data
from bn_keras.data.splits import DataError

X = np.random.default_rng(0).normal(size=(30, 4, 2)).astype(np.float32)
Y = np.arange(30) % 3


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays)


def rows(split, name=None):
    images = split.images if name is None else split.images[name]
    return sorted((x.tobytes(), y.tobytes()) for x, y in zip(images, split.labels))


EXPECTED = sorted((x.tobytes(), y.tobytes()) for x, y in zip(X, Y.astype(np.int32)))
FORMS = {
    "single examples": lambda: slices(X, Y),
    "batches": lambda: slices(X, Y).batch(7),
    "batches of batches apart": lambda: slices(X, Y).batch(7).unbatch(),
    "mapped and prefetched": lambda: slices(X, Y).batch(8).map(lambda x, y: (x, y)).prefetch(1),
    "shuffled": lambda: slices(X, Y).shuffle(30).batch(4),
    "float64": lambda: slices(X.astype(np.float64), Y).batch(4),
    "one-hot": lambda: slices(X, np.eye(3)[Y]),
    "one-hot in batches": lambda: slices(X, np.eye(3)[Y]).batch(4),
    "columns": lambda: slices(X, Y[:, None]).batch(4),
    "texts": lambda: slices(X, np.array(["a", "b", "c"])[Y]).batch(4),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_gives_the_examples_of_the_arrays(form):
    source = from_python((FORMS[form](), FORMS[form]()))
    assert rows(source.train) == EXPECTED and source.classes == 3
    # A shuffled dataset comes in another order each time, and the sets must not change.
    again = from_python((FORMS[form](), FORMS[form]()))
    np.testing.assert_array_equal(source.train.images, again.train.images)
    assert "data: train: read into memory: 30 examples, 0.0 MB" in source.notes


def test_datasets_of_several_inputs_and_for_every_set():
    def pairs():
        return tf.data.Dataset.from_tensor_slices(({"a": X, "b": X[:, 0]}, Y))

    source = from_python({"train": pairs(), "validation": pairs().batch(5), "test": pairs()})
    for split in (source.train, source.validation, source.test):
        assert rows(split, "a") == EXPECTED
        np.testing.assert_array_equal(split.images["a"][:, 0], split.images["b"])


def test_a_dataset_alone_has_a_fifth_drawn_for_testing():
    source = from_python(slices(X, Y).batch(4))
    assert (len(source.train), len(source.test)) == (24, 6)


def test_an_example_is_named_by_its_place_in_the_dataset():
    x = X.copy()
    x[17, 2] = np.nan
    with pytest.raises(DataError, match="train input 17 holds NaN"):
        from_python(slices(x, Y).batch(4))


def test_numbers_to_predict_are_read_in_batches_and_singly():
    targets = X[:, :3]
    for dataset in (slices(X, targets), slices(X, targets).batch(4), slices(X, X).batch(5)):
        assert len(from_python((dataset, dataset)).train) == 30


def raising():
    yield X[0], Y[0]
    raise KeyError("no such file")


def generated(function, x=(4, 2), y=()):
    signature = (tf.TensorSpec(x, tf.float32), tf.TensorSpec(y, tf.int64))
    return tf.data.Dataset.from_generator(function, output_signature=signature)


BAD = {
    "endless": (lambda: slices(X, Y).repeat(), "this dataset is endless; expected a finite one"),
    "one tensor": (lambda: tf.data.Dataset.from_tensor_slices(X), "are a TensorSpec"),
    "a dict": (lambda: tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}), "are a dict of 2; ex"),
    "weights": (lambda: slices(X, Y, Y), "are a tuple of 3; expected pairs"),
    "several labels": (lambda: slices(X, (Y, Y)), "are a tuple of 2; expected pairs"),
    "empty": (lambda: slices(X, Y).take(0), "this dataset is empty"),
    "either": (lambda: slices(X, X), "have the shapes (4, 2), (4, 2), and may be batches"),
    "full batches": (lambda: slices(X, Y).batch(6, drop_remainder=True), "(6, 4, 2), (6,), and"),
    "ragged": (lambda: slices(tf.RaggedTensor.from_row_lengths(range(30), [1] * 30), Y),
               "neither ragged nor sparse"),
    "no shape": (lambda: generated(raising, x=None), "known number of axes"),
    "raises": (lambda: generated(raising), "reading this dataset raised "),
    "changing shapes": (lambda: generated(lambda: ((X[:n], 0) for n in (1, 2)), x=(None, 4, 2)),
                        "reading this dataset raised "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_that_is_none_of_pairs_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        from_python((make(), (X, Y)))
    assert str(refusal.value).startswith("data: train: ") and len(str(refusal.value)) < 600


def test_labels_that_do_not_fit_in_memory_are_refused_at_the_bound(monkeypatch):
    monkeypatch.setattr(tf_data, "MAX_BYTES", 1000)
    seen = []

    def examples():
        for n in range(5000):
            seen.append(n)
            yield X[0], 0

    long = tf.data.Dataset.from_generator(examples, output_signature=(
        tf.TensorSpec((4, 2), tf.float32), tf.TensorSpec((), tf.int64)))
    refusal = "labels .* more than 1,000 bytes .* after 256 examples.* by .take"
    with pytest.raises(DataError, match=refusal):
        from_python((long, (X, Y)))
    assert len(seen) < 2000
