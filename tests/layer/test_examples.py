"""Examples in every form that Keras takes, read as batches of inputs, labels and weights."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from bn_keras.surgery.examples import Examples

X, Y, W = np.arange(10.0).reshape(5, 2), np.arange(5), np.linspace(0, 1, 5)


def model_of(inputs):
    shapes = [keras.Input((2,), name=f"in_{number}") for number in range(inputs)]
    joined = shapes[0] if inputs == 1 else keras.layers.Add()(shapes)
    return keras.Model(shapes[0] if inputs == 1 else shapes, joined)


class Indexed(keras.utils.PyDataset):
    num_batches = 2

    def __getitem__(self, index):
        part = slice(3 * index, 3 * index + 3)
        return X[part], Y[part], W[part]


ONE_INPUT = {
    "arrays": (X, Y, W),
    "a dataset": tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(3),
    "a PyDataset": Indexed(),
    "a generator": ((X[i:i + 3], Y[i:i + 3], W[i:i + 3]) for i in (0, 3, 6)),
    "a list of batches": [(X[:3], Y[:3], W[:3]), (X[3:], Y[3:], W[3:])],
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_every_form_gives_the_same_batches(form):
    batches = [
        tuple(map(np.asarray, batch)) for batch in Examples(model_of(1), ONE_INPUT[form], 3, "read")
    ]
    assert [len(x) for x, _, _ in batches] == [3, 2]
    for given, parts in zip((X, Y, W), zip(*batches)):
        np.testing.assert_array_equal(np.concatenate(parts), given)


TWO_INPUTS = {
    "inputs alone": ((X, 2 * X), False),
    "a list of inputs": ([X, 2 * X], False),
    "inputs and labels": (((X, 2 * X), Y), True),
    "a dict and labels": (({"in_0": X, "in_1": 2 * X}, Y), True),
    "a dict": ({"in_0": X, "in_1": 2 * X}, False),
}


@pytest.mark.parametrize("form", TWO_INPUTS)
def test_two_inputs_are_not_taken_for_inputs_and_labels(form):
    data, labelled = TWO_INPUTS[form]
    for x, y, weight in Examples(model_of(2), data, 4, "read"):
        one, other = keras.tree.flatten(x)
        np.testing.assert_array_equal(other, 2 * one)
        assert (y is not None) == labelled and weight is None
        assert y is None or y[0] in (0, 4)


def test_labels_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"read: received arrays of \[4, 5\] examples"):
        Examples(model_of(1), (X, Y[:4]), 3, "read")


@pytest.mark.parametrize("form", ["NumPy", "tensors", "a frame"])
def test_shuffled_arrays_keep_their_labels_and_give_each_example_once(form):
    frame = pd.DataFrame(X, columns=["a", "b"])
    data = {"NumPy": (X, Y), "tensors": (tf.constant(X), tf.constant(Y)), "a frame": (frame, Y)}
    one, again = (Examples(model_of(1), data[form], 2, "read", shuffle=True) for _ in range(2))
    x, y, _ = map(np.concatenate, zip(*((batch.x, batch.y, [0]) for batch in one)))
    assert one.count == 5 and sorted(y) == Y.tolist() and y.tolist() != Y.tolist()
    np.testing.assert_array_equal(x, X[y])
    np.testing.assert_array_equal(y, np.concatenate([batch.y for batch in again]))


def test_the_number_of_examples_is_known_of_arrays_only():
    counts = {form: Examples(model_of(1), data, 3, "read").count for form, data in ONE_INPUT.items()
              if form != "a generator"}
    assert counts == {name: 5 if name == "arrays" else None for name in counts}


def two_inputs(structure):
    left, right = keras.Input((3,), name="left"), keras.Input((2, 1), name="right")
    given = {"left": left, "right": right} if structure is dict else structure((left, right))
    flat = keras.layers.Flatten()(right)
    return keras.Model(given, keras.layers.Dense(1)(keras.layers.Concatenate()([left, flat])))


@pytest.mark.parametrize("x", [
    {"left": np.zeros((4, 3)), "right": np.zeros((4, 2, 1))},
    {"right": np.zeros((4, 2)), "left": np.zeros((4, 3, 1))},
], ids=["exact", "last axis of 1"])
@pytest.mark.parametrize("structure", [dict, list])
def test_what_keras_takes_is_taken(structure, x):
    model = two_inputs(structure)
    assert model(x).shape == (4, 1)
    assert Examples(model, x, 4, "read").first.keys() == x.keys()


@pytest.mark.parametrize("x, message", [
    ({"left": np.zeros((4, 3))}, "received inputs 'left'; the model takes 'left', 'right'"),
    ({"left": np.zeros((4, 3)), "right": np.zeros((4, 1, 2))},
     r"received inputs of shape \(4, 1, 2\) for 'right'; the model takes \(None, 2, 1\)"),
    ([np.zeros((4, 2)), np.zeros((4, 2, 1))], r"of shape \(4, 2\) for 'left'; .* \(None, 3\)"),
    (np.zeros((4, 3)), "received 1 array as inputs; the model takes 2"),
], ids=["missing", "dict", "list", "one"])
@pytest.mark.parametrize("structure", [dict, list])
def test_inputs_of_other_shapes_are_refused(structure, x, message):
    with pytest.raises(ValueError, match=message):
        Examples(two_inputs(structure), x, 4, "read")


def test_what_a_graph_does_not_tell_and_keras_runs_is_taken():
    """Images of another size than the first ones; a part of the inputs in a dict of its own."""
    pooled = keras.Sequential([keras.layers.Conv1D(2, 3), keras.layers.GlobalAveragePooling1D()])
    pooled(np.zeros((2, 10, 3)))
    assert Examples(pooled, np.zeros((4, 20, 3)), 4, "read").first.shape == (4, 20, 3)
    with pytest.raises(ValueError, match=r"received inputs of shape \(4, 20, 5\); the model takes"):
        Examples(pooled, np.zeros((4, 20, 5)), 4, "read")
    left, right = (keras.Input((3,), name=name) for name in ("b", "c"))
    nested = keras.Model({"a": {"b": left}, "c": right}, keras.layers.Add()([left, right]))
    x = {"a": {"b": np.zeros((4, 3))}, "c": np.zeros((4, 3))}
    assert Examples(nested, x, 4, "read").first.keys() == x.keys()


@pytest.mark.parametrize("structure", [dict, list])
def test_an_optional_input_may_be_left_out(structure):
    class Sum(keras.layers.Layer):
        def call(self, one, other):
            return other if one is None else one + other

    inputs = keras.Input((3,), name="a", optional=True), keras.Input((3,), name="b")
    given = dict(zip("ab", inputs)) if structure is dict else list(inputs)
    model = keras.Model(given, Sum()(*inputs))
    x = dict(zip("ab", (None, np.ones((5, 3))))) if structure is dict else [None, np.ones((5, 3))]
    sizes = [len(keras.tree.flatten(batch.x)[1]) for batch in Examples(model, x, 2, "read")]
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("inputs", [1, 2])
def test_single_examples_are_not_taken_for_batches(inputs):
    x = X if inputs == 1 else (X, X)
    single = tf.data.Dataset.from_tensor_slices((x, Y))
    with pytest.raises(ValueError, match="of single examples, inputs of shape .2,.* dataset.batch"):
        Examples(model_of(inputs), single, 3, "read")


def test_labels_in_the_place_of_a_second_input_are_named():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 'in_1'.* with labels it is \(\(input"):
        Examples(model_of(2), (X, Y), 3, "read")
    listed = [(X, Y.tolist())]
    assert next(iter(Examples(model_of(1), listed, 3, "read"))).y == Y.tolist()
