"""The callback that watches a fit: it changes nothing, measures right, and tells what is wrong."""

import itertools
import math
import random
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from make import normal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zoo import NAMES, ZOO, inputs_of

from bn_keras import BatchNorm, callbacks
from bn_keras.callbacks import BatchNormMonitor
from bn_keras.diagnostics.evaluations import read
from bn_keras.diagnostics.monitoring import Watch

KERAS = layers.BatchNormalization
X, Y = normal((48, 5), 1, 2), np.arange(48) % 3


class Noise(layers.Layer):
    """Draws from Keras's own random numbers, in inference too."""

    def call(self, x):
        return x + keras.random.normal((5,), stddev=0.01)


class Own(keras.Model):
    """A model in code, with a model in it."""

    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(4), KERAS(), layers.Dropout(0.5, seed=3)])
        self.head = layers.Dense(3)
        self.calls = 0

    def call(self, x, training=False):
        self.calls += 1
        return self.head(self.inner(x, training=training))


def net(norm=KERAS, noise=False, **settings):
    return keras.Sequential([
        keras.Input((5,)), *([Noise()] if noise else []), layers.Dense(4, name="front"),
        norm(name="bn", **settings), layers.ReLU(), layers.Dropout(0.5), layers.Dense(3),
    ])


def functional():
    inputs = keras.Input((5,))
    norm = BatchNorm(name="bn")
    x = norm(layers.Dense(5, use_bias=False)(norm(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.Activation("relu")(x)))


def frozen():
    model = net()
    model.get_layer("bn").trainable = False
    return model


def half():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return net(BatchNorm)
    finally:
        keras.config.set_dtype_policy("float32")


def compiled(model, optimizer=None, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    if model.built:
        optimizer.build(model.trainable_variables)  # before fit: else it traces its step twice
    model.compile(optimizer, loss, **settings)
    return model


def batches():
    """Batches without a known number."""
    return tf.data.Dataset.from_generator(
        lambda: ((X[start:start + 16], Y[start:start + 16]) for start in (0, 16, 32)),
        output_signature=(tf.TensorSpec((None, 5)), tf.TensorSpec((None,), tf.int64)),
    )


def watched(model, data=(X, Y), epochs=1, **settings):
    """A monitor after a fit, and what it said."""
    said = []
    monitor = BatchNormMonitor(data, batch_size=16, share=math.inf, tell=said.append)
    settings = {"batch_size": 16, "shuffle": False, "verbose": 0, **settings}
    model.fit(X, Y, epochs=epochs, callbacks=[monitor], **settings)
    assert isinstance(data, tuple) <= (not monitor._watch.unseen)
    return monitor, said


CASES = {
    "noise": (lambda: compiled(net(noise=True)), {}),
    "functional, accumulated gradients": (lambda: compiled(
        functional(), keras.optimizers.Adam(gradient_accumulation_steps=2)), {}),
    "subclassed, unbuilt": (lambda: compiled(Own()), {}),
    "compiled with XLA": (lambda: compiled(net(BatchNorm), jit_compile=True), {}),
    "half precision": (lambda: compiled(half()), {}),
    "frozen": (lambda: compiled(frozen()), {}),
    "eager": (lambda: compiled(net(noise=True), run_eagerly=True), {}),
    "unknown length": (lambda: compiled(net(BatchNorm)), {"x": batches, "y": None}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # of an unknown length
@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_watched_is_the_same_to_the_last_bit(case, tmp_path):
    make, settings = CASES[case]

    def train(callbacks):
        keras.utils.set_random_seed(0)
        model = make()
        given = {"x": X, "y": Y, "batch_size": 16, **settings}
        if callable(given["x"]):
            given.update(x=given["x"](), batch_size=None, shuffle=False)
        history = model.fit(
            **given, epochs=3, verbose=0, callbacks=callbacks, validation_data=(X[:8], Y[:8]))
        draws = (random.random(), np.random.random(), float(keras.random.normal(())))
        return (
            [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)],
            history.history, draws, getattr(model, "calls", None),
        )

    monitor = BatchNormMonitor(
        (X, Y), tmp_path, batch_size=16, share=math.inf, tell=lambda text: None)
    (plain, *rest), (other, *others) = train(None), train([monitor])
    assert rest == others
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not monitor._watch.unseen
    assert {row["epoch"] for row in monitor.history} == {0, 1, 2}


@pytest.mark.slow
def test_what_is_measured_is_what_numpy_computes():
    keras.utils.set_random_seed(1)
    model = compiled(net(momentum=0.5), keras.optimizers.SGD(0.25))
    model.layers[3].rate = 0.0
    kernel = model.get_layer("front").kernel
    monitor = BatchNormMonitor((X, Y), batch_size=48, share=math.inf, tell=lambda text: None)
    start, norm = kernel.numpy().astype(float), model.get_layer("bn")
    model.fit(X, Y, batch_size=48, epochs=1, verbose=0, callbacks=[monitor])
    found = {(row["layer"], row["quantity"]): row["value"] for row in monitor.history}
    end = kernel.numpy().astype(float)
    path = kernel.path
    assert found[path, "update_ratio"] == pytest.approx(np.std(end - start) / np.std(start))
    assert found[path, "effective_learning_rate"] == pytest.approx(0.25 / np.sum(end ** 2))
    into = X.astype(float) @ end + model.get_layer("front").bias.numpy()
    mean, variance = (getattr(norm, f"moving_{name}").numpy() for name in ("mean", "variance"))
    exact = into.var(0) + 1e-3
    shift = np.sqrt(np.mean((mean - into.mean(0)) ** 2 / exact))
    factor = np.exp(np.sqrt(np.mean(np.log((variance + 1e-3) / exact) ** 2)))
    assert found["bn", "mean_lag"] == pytest.approx(shift, rel=1e-4)
    assert found["bn", "variance_lag"] == pytest.approx(factor, rel=1e-4)
    assert found["bn", "mean_change"] == pytest.approx(
        np.sqrt(np.mean(mean ** 2 / 1.001)), rel=1e-4)
    gamma, beta = norm.gamma.numpy(), norm.beta.numpy()
    out = gamma * (into - into.mean(0)) / np.sqrt(exact) + beta
    assert found["bn", "output_p85"] == pytest.approx(np.percentile(out, 85), rel=1e-3)
    assert found["bn", "dead_channels"] == np.mean((out <= 0).all(0))
    assert found["bn", "gamma"] == pytest.approx(np.abs(gamma).mean())
    assert found["bn", "values"] == 48 and found[None, "batches"] == 1
    inference = model.evaluate(X, Y, batch_size=48, verbose=0)
    norm.moving_mean.assign(into.mean(0))
    norm.moving_variance.assign(into.var(0))
    training = model.evaluate(X, Y, batch_size=48, verbose=0)
    assert found[None, "loss_in_inference"] == pytest.approx(inference, rel=1e-5)
    assert found[None, "loss_in_training_mode"] == pytest.approx(training, rel=1e-5)
    assert found[None, "gap"] == pytest.approx(inference - training, abs=1e-5)


def poisoned():
    model = compiled(net())
    model.get_layer("bn").moving_variance.assign([1, np.nan, 1, 1])
    return model


def skipping():
    return compiled(net(BatchNorm)), {"batch_size": 47}


def late_frozen():
    model = compiled(net())
    model.fit(X, Y, verbose=0)
    model.get_layer("bn").trainable = False
    return model


def late_thawed():
    model = compiled(frozen())
    model.get_layer("bn").moving_mean.assign(np.ones(4))
    model.fit(X, Y, verbose=0)
    model.get_layer("bn").trainable = True
    return model


class InInference(keras.Model):
    """A forgotten training argument."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = KERAS(name="bn"), layers.Dense(3)

    def call(self, x, training=None):
        return self.head(self.norm(x, training=False))


def in_inference():
    model = InInference()
    model(X)
    return compiled(model)


def dead():
    model = compiled(net())
    model.get_layer("bn").beta.assign([-50, -50, -50, 0])
    return model


def flat():
    model = net(gamma_initializer="zeros", beta_initializer="ones")
    return compiled(model, keras.optimizers.SGD(1e-4))


FAULTS = {
    "not_finite": (poisoned, "25% of the channels are no numbers"),
    "skipped": (skipping, "1 batches of this epoch were left out"),
    "frozen": (late_frozen, "compiled before it was frozen"),
    "thawed": (late_thawed, "nothing of it moved"),
    "never_updated": (in_inference, "no call of the layer has training=True"),
    "input": (lambda: compiled(net(momentum=0.5)), "on the data that are looked at is NaN"),
    "lag": (lambda: compiled(net()), "With momentum 0.99 they take some 500 steps, and there were"),
    "dead": (dead, "75% of its channels never are above 0"),
    "gamma": (flat, "of its channels, which therefore carry nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(FAULTS))
def test_every_fault_is_told_once_in_words(kind):
    make, words = FAULTS[kind]
    made = make()
    model, settings = made if isinstance(made, tuple) else (made, {})
    data = (np.where(X > 4, np.nan, X), Y) if kind == "input" else (X, Y)
    monitor, said = watched(model, data, **{"epochs": 2, **settings})
    told = [one for one in monitor.warnings if one["kind"] == kind]
    assert [one["layer"] for one in told] == ["bn"], monitor.warnings
    assert words in told[0]["text"]
    assert sum(told[0]["text"] in text for text in said) == 1


@pytest.mark.slow
def test_a_gap_is_told_for_the_model_and_said_to_be_gone():
    keras.utils.set_random_seed(2)
    model = compiled(net(momentum=0.5))
    model.layers[3].rate = 0.0
    model.get_layer("bn").moving_variance.assign([1e-3] * 4)
    said = []
    monitor = BatchNormMonitor((X, Y), batch_size=16, share=math.inf, tell=said.append)
    model.evaluate(X, Y, verbose=1, callbacks=[monitor])
    assert [one["kind"] for one in monitor.warnings] == ["lag", "gap"]
    assert "in inference: the moving statistics are why" in said[1]
    assert "an evaluation" in said[2] and "2 warnings; it took" in said[2]
    assert {row["epoch"] for row in monitor.history} == {None}
    model.fit(X, Y, batch_size=16, epochs=8, verbose=2, callbacks=[monitor])
    assert "2 warnings, 2 of which no longer hold" in said[-1]


@pytest.mark.slow
def test_a_healthy_training_is_told_of_in_one_line_that_says_its_cost(capsys):
    keras.utils.set_random_seed(0)
    model = compiled(net(momentum=0.5), keras.optimizers.SGD(0.01))
    monitor, said = watched(model, epochs=5, verbose=2)
    assert monitor.warnings == []
    assert len(said) == 1 and (
        "1 batch normalization over 5 epochs, with a look after 5 of them at 48 examples in 3"
    ) in said[0]
    assert "no warnings" in said[0] and "% of the training's" in said[0]
    assert "Not looked at" not in said[0] and "well" not in said[0].lower()


@pytest.mark.slow
def test_without_data_it_says_what_it_did_not_look_at():
    keras.utils.set_random_seed(0)
    monitor, said = watched(compiled(net()), data=None, verbose=2)
    assert "Not looked at: lag, gap and activations (no data" in said[-1]
    quantities = {row["quantity"] for row in monitor.history}
    assert "effective_learning_rate" in quantities and "mean_change" in quantities
    assert not quantities & {"mean_lag", "gap", "output_p50"}
    _, said = watched(compiled(net()), data=X, verbose=2)
    assert said[0].endswith("in inference: no labels: give data as (x, y)")
    assert said[-1].endswith("(no labels: give data as (x, y)).")


@pytest.mark.slow
def test_a_model_without_bn_has_nothing_to_look_at():
    model = compiled(keras.Sequential([keras.Input((5,)), layers.Dense(3)]))
    monitor, said = watched(model, epochs=2, verbose=2)
    assert said == [
        "\nBatchNormMonitor: nothing to look at: the model has no batch normalization."]
    assert monitor.history == []


@pytest.mark.slow
def test_a_model_that_cannot_be_copied_is_trained_and_named():
    class Opaque(layers.Layer):
        def build(self, shape):
            self.function = tf.function(lambda x: 2 * x)

        def call(self, x):
            return self.function(x)

    model = compiled(keras.Sequential([keras.Input((5,)), Opaque(name="mine"), KERAS(name="bn"),
                                       layers.Dense(3)]))
    said = []
    monitor = BatchNormMonitor((X, Y), share=math.inf, tell=said.append)
    model.fit(X, Y, verbose=2, callbacks=[monitor])
    assert "Not looked at: the model's forward pass (NotCopyable: copy_model: 'mine'" in said[-1]
    assert monitor.values("mean_change").keys() == {"bn"}


@pytest.mark.slow
def test_it_looks_less_often_to_stay_in_its_share():
    keras.utils.set_random_seed(0)
    monitor = BatchNormMonitor((X, Y), batch_size=16, share=1e-9, tell=lambda text: None)
    model = compiled(net())
    model.fit(X, Y, batch_size=16, epochs=5, verbose=0, callbacks=[monitor])
    assert monitor.values("batches") == {None: [(0, 1.0), (4, 1.0)]}, "first, last; one batch each"
    assert len(monitor.values("mean_change")["bn"]) == 5
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[monitor])
    assert len(monitor.values("batches")[None]) == 2, "one epoch at a time is no way around it"


@pytest.mark.slow
def test_the_last_epoch_is_looked_at_where_a_later_callback_ends_the_training(tmp_path):
    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    monitor = BatchNormMonitor(
        (X, Y), tmp_path, batch_size=16, share=1e-9, tell=lambda text: None)
    compiled(net()).fit(X, Y, batch_size=16, epochs=9, verbose=0, callbacks=[monitor, Ends()])
    assert monitor.values("batches") == {None: [(0, 1.0), (2, 1.0)]}
    rows = [(row["epoch"], row["layer"], row["quantity"]) for row in monitor.history]
    assert len(set(rows)) == len(rows), "nothing is told twice"
    assert [epoch for epoch, _ in monitor.values("seconds")[None]] == [0, 1, 2]
    events = EventAccumulator(str(tmp_path / "batch_norm"))
    events.Reload()
    assert [one.step for one in events.Tensors("mean_lag/bn")] == [0, 2]


@pytest.mark.slow
def test_a_resumed_fit_goes_on_in_the_same_history_and_folder(tmp_path):
    keras.utils.set_random_seed(0)
    model = compiled(net())
    monitor = BatchNormMonitor((X, Y), tmp_path, share=math.inf, tell=lambda text: None)
    numbers = itertools.pairwise((0, 2, 3))
    for begin, end in numbers:
        model.fit(X, Y, initial_epoch=begin, epochs=end, verbose=0, callbacks=[monitor])
        time.sleep(1)  # TensorBoard sorts files of one second by a counter, "10" before "9"
    assert [epoch for epoch, _ in monitor.values("gap")[None]] == [0, 1, 2]
    assert [row["fit"] for row in monitor.history if row["quantity"] == "gap"] == [0, 0, 1]
    events = EventAccumulator(str(tmp_path / "batch_norm"))
    events.Reload()
    gaps = [(one.step, float(tf.make_ndarray(one.tensor_proto)))
            for one in events.Tensors("gap/model")]
    assert gaps == [(epoch, pytest.approx(value, rel=1e-6))
                    for epoch, value in monitor.values("gap")[None]]
    assert "mean_lag/bn" in events.Tags()["tensors"]
    assert "updated/bn" not in events.Tags()["tensors"]
    with pytest.raises(ValueError, match="no 'gpa' was measured; measured: affine_updated, "):
        monitor.values("gpa")


@pytest.mark.parametrize("given, error, message", [
    ({"data": 3}, TypeError, "BatchNormMonitor: received a int; expected an array"),
    ({"data": "x"}, TypeError, "BatchNormMonitor: received a str; expected an array"),
    ({"data": (X, Y), "batch_size": 0}, ValueError, "BatchNormMonitor: batch_size=0"),
    ({"data": (X, Y), "examples": 1}, ValueError, "BatchNormMonitor: examples=1; expected"),
    ({"data": (X, Y), "loss": "foo"}, ValueError, "BatchNormMonitor: loss='foo'; expected a loss"),
    ({"share": 0}, ValueError, "BatchNormMonitor: share=0; expected a number above 0"),
])
def test_bad_input_is_refused_at_once(given, error, message):
    with pytest.raises(error, match=message):
        BatchNormMonitor(**given)


def test_data_without_examples_are_refused_before_the_training():
    model = compiled(net())
    with pytest.raises(ValueError, match="BatchNormMonitor: received 0 examples"):
        model.fit(X, Y, verbose=0, callbacks=[BatchNormMonitor((X[:0], Y[:0]))])
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("make", [net, frozen, functional], ids=["batch", "frozen", "called twice"])
def test_nan_in_its_own_data_is_told_by_the_shortest_look(make):
    model, x = make(), X.copy()
    x[5, 2] = np.nan
    watch = Watch(model, read(model, (x, Y), 3, 48, "test"), "mse")
    assert watch.not_finite == 1
    watch.begin()
    found = watch.passes(lambda: False)
    assert found[None, "batches"] == 1 and found["bn", "inputs_not_finite"] == 1
    (told,) = [text for kind, text in callbacks._faults(
        watch, "bn", watch.layers["bn"],
        {name: value for (place, name), value in found.items() if place == "bn"}, 1,
    ) if kind == "input"]
    assert "is NaN or infinite, as one of the examples is, so that nobody knows" in told


@pytest.mark.parametrize("number", range(len(ZOO)), ids=NAMES)
def test_every_kind_of_model_can_be_watched_and_stays_as_it_is(number):
    model, x = ZOO[number](), inputs_of(NAMES[number])
    before = [variable.numpy() for variable in model.variables]
    watch = Watch(model, read(model, x, 3, 6, "test"))
    assert set(watch.unseen) == {"the loss in training mode and in inference"}
    watch.begin()
    for layer in watch.layers.values():
        layer.moving_mean.assign(layer.moving_mean + 1)
    found = watch.changes()
    assert {layer for layer, name in found if name == "mean_change"} == set(watch.layers)
    assert all(found[path, "updated"] for path in watch.layers)
    assert all(found[path, "mean_change"] == pytest.approx(1, rel=2e-3) for path in watch.layers)
    found = watch.passes(lambda: True)
    assert {layer for layer, name in found if name == "output_p50"} == {
        path for path, calls in watch.called.items() if calls}
    for layer in watch.layers.values():
        layer.moving_mean.assign(layer.moving_mean - 1)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
