"""A copy of a model is equal to it, and independent of it, whatever kind of model it is."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import BN, NAMES, ZOO, inputs_of, predictions, told, training_call

from bn_keras.surgery.copies import NotCopyable, copy_model


def close(ones, others, **tolerance):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("name, make", list(zip(NAMES, ZOO)), ids=NAMES)
def test_a_copy_is_equal_and_independent(name, make):
    keras.utils.set_random_seed(0)
    model, x = make(), inputs_of(name)
    model(x, training=True)
    copy = copy_model(model)
    assert type(copy) is type(model)
    assert told(copy) == told(model)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}
    close(predictions(copy, x), predictions(model, x), atol=0)
    before = predictions(model, x)
    trained = training_call(copy, x)
    for variable in copy.variables:
        variable.assign(variable + keras.ops.ones_like(variable))
    close(before, predictions(model, x), atol=0)
    for ours, theirs in zip(trained, training_call(model, x), strict=True):
        close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name, make", list(zip(NAMES, ZOO)), ids=NAMES)
def test_nothing_in_the_copy_keeps_the_model_alive(name, make):
    model = make()
    copy = copy_model(model)
    alive = [weakref.ref(layer) for layer in model._flatten_layers()]
    del model
    gc.collect()
    assert copy.built and [ref() for ref in alive if ref() is not None] == []


def test_a_checkpoint_of_the_copy_holds_and_restores_the_copy(tmp_path):
    # Keras's own checkpoints leave out what a layer holds in lists, so a model without any.
    model, x = dict(zip(NAMES, ZOO))["shared"](), inputs_of("shared")
    copy = copy_model(model)
    copy(x, training=True)
    expected = predictions(copy, x)
    path = tf.train.Checkpoint(model=copy).save(tmp_path / "checkpoint")
    for weight in copy.weights:
        weight.assign(keras.ops.zeros_like(weight))
    tf.train.Checkpoint(model=copy).restore(path).assert_existing_objects_matched()
    close(predictions(copy, x), expected, atol=0)


@pytest.mark.parametrize("name, make", list(zip(NAMES, ZOO)), ids=NAMES)
def test_sharing_is_the_same_in_the_copy(name, make):
    model = make()
    copy = copy_model(model)
    pairs = list(zip(model._flatten_layers(), copy._flatten_layers(), strict=True))
    counterpart = {id(one): its for one, its in pairs}
    assert len({id(its) for _, its in pairs}) == len(counterpart)
    for one, its in pairs:
        for attribute, value in vars(one).items():
            if id(value) in counterpart:
                assert getattr(its, attribute) is counterpart[id(value)], attribute


def test_the_graph_of_the_copy_is_its_own():
    model = dict(zip(NAMES, ZOO))["shared"]()
    copy = copy_model(model)
    assert copy.get_config() == model.get_config()
    layers_of_copy = {id(layer) for layer in copy._flatten_layers()}
    for operation in copy.operations:
        for node in operation._inbound_nodes:
            assert id(node.operation) in layers_of_copy
    again = keras.models.clone_model(copy)
    assert [w.shape for w in again.get_weights()] == [w.shape for w in model.get_weights()]


def test_a_net_that_was_cut_out_does_not_bring_the_rest_along():
    model = dict(zip(NAMES, ZOO))["part_of_another"]()
    copy = copy_model(model)
    norm, = [layer for layer in copy.layers if isinstance(layer, BN)]
    assert len(model.layers[-1]._outbound_nodes) == 1 and not norm._outbound_nodes


@pytest.mark.slow
def test_a_compiled_model_is_copied_uncompiled_and_can_be_compiled_alike():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), BN()])
    model.compile(keras.optimizers.Adam(0.25), "mse", metrics=["mae"])
    x = inputs_of("")
    model.fit(x, x[:, :2], verbose=0)
    copy = copy_model(model)
    assert not copy.compiled and not hasattr(copy, "optimizer") and model.compiled
    copy.compile_from_config(model.get_compile_config())
    assert float(copy.optimizer.learning_rate) == 0.25
    assert copy.optimizer is not model.optimizer
    before = predictions(model, x)
    copy.fit(x, x[:, :2], verbose=0)
    close(before, predictions(model, x), atol=0)


def test_a_layer_of_the_copy_can_be_given_a_second_name():
    copy = copy_model(dict(zip(NAMES, ZOO))["subclassed"]())
    copy.alias = copy.norm  # Keras refuses new layers in a built model, and knows this one
    assert copy.layers.count(copy.norm) == 1
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        copy.more = BN()


@pytest.mark.slow
def test_a_deep_graph_needs_no_recursion():
    inputs = x = keras.Input((2,))
    for _ in range(400):
        x = layers.Activation("tanh")(x)
    copy = copy_model(keras.Model(inputs, x))
    assert len(copy.layers) == 401


def test_random_layers_go_on_with_the_same_numbers():
    model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5, seed=1)])
    x = np.ones((2, 50), "float32")
    model(x, training=True)
    copy = copy_model(model)
    one, other = (np.array(m(x, training=True)) for m in (model, copy))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, np.array(model(x, training=True)))


def test_what_cannot_be_copied_is_named():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="odd")])
    model.layers[0].fast = tf.function(model.layers[0].call)
    with pytest.raises(NotCopyable, match="'odd' .Dense.*'fast'.*tf.function"):
        copy_model(model)
    model.layers[0].fast = (number for number in range(3))
    with pytest.raises(NotCopyable, match="'odd' .Dense.*'fast'.*generator"):
        copy_model(model)
    with pytest.raises(TypeError, match="received a Dense; expected a keras.Model"):
        copy_model(layers.Dense(2))
    with pytest.raises(ValueError, match="not built.*called once"):
        copy_model(keras.Sequential([BN()]))


def test_an_exchanged_layer_takes_every_place_of_the_old_one():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)
            self.places = [self.dense, {"again": self.dense}]

        def build(self, shape):
            self.dense.build(shape)
            self.kernels = (self.dense.kernel,)

        def call(self, x):
            return self.places[1]["again"](self.dense(x))

    def replace(layer):
        if type(layer) is not layers.Dense:
            return None
        new = layers.EinsumDense("bi,io->bo", 3, bias_axes="o", name=layer.name)
        new.build(layer.get_build_config()["input_shape"])
        for name in ("kernel", "bias"):
            getattr(new, name).assign(getattr(layer, name))
        return new

    model, x = Twice(), inputs_of("")
    model(x)
    copy = copy_model(model, replace)
    assert type(copy.dense) is layers.EinsumDense
    assert copy.places[0] is copy.dense is copy.places[1]["again"]
    assert copy.kernels[0] is copy.dense.kernel
    np.testing.assert_allclose(copy(x), model(x), rtol=1e-6)
