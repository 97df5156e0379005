"""BatchNorm called by recomputation, `TimeDistributed`, cells and accumulating optimizers."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import normal, product_of

from bn_keras import BatchNorm
from bn_keras.batch_norm import callers, reference
from bn_keras.diagnostics.conformance.replicas import spread, two_replicas

data = functools.partial(normal, mean=2.0)


# ------------------------------------------------------------ recomputation


def recomputed_gradient(layer, in_graph):
    block = tf.recompute_grad(lambda x: layer(x, training=True))

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(block(x) ** 3)
        return tape.gradient(loss, x)

    return tf.function(step) if in_graph else step


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 3, 3)], ids=["dense", "conv"])
def test_a_recomputed_pass_moves_nothing(shape, in_graph):
    layer, plain = (BatchNorm(momentum=None) for _ in range(2))
    layer.build(shape)
    step = recomputed_gradient(layer, in_graph)
    bad = np.full(shape, np.nan, "f")
    for x in (data(shape), bad, data(shape, seed=1)):
        gradient = step(tf.constant(x))
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            loss = tf.reduce_sum(plain(inputs, training=True) ** 3)
        np.testing.assert_allclose(gradient, tape.gradient(loss, inputs), atol=1e-4)
    assert int(layer.updates.numpy()) == 2 and layer.skipped_batches == 1
    np.testing.assert_allclose(layer.moving_mean, plain.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, plain.moving_variance, rtol=1e-6)


def rematerialized(where):
    """A compiled model with a batch normalization whose pass is recomputed."""

    def net():
        return keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4), BatchNorm(momentum=None, name="bn"),
             keras.layers.Activation("relu"), keras.layers.Dense(1)]
        )

    keras.utils.set_random_seed(0)
    if where == "outside":
        return net()
    with keras.RematScope(mode="full"):
        if where == "model in the scope":
            return net()
        layers = [keras.layers.Dense(4), BatchNorm(momentum=None, name="bn"),
                  keras.layers.Activation("relu"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.mark.slow
@product_of(
    where=["model in the scope", "layers in the scope"],
    jit_compile={"graph": False, "xla": True},
)
def test_fit_in_a_remat_scope_learns_and_moves_as_without(where, jit_compile):
    x = data((25, 3))  # the last batch has one example, and is left out
    found = []
    for place in ("outside", where):
        model = rematerialized(place)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
        model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)
        bn = model.get_layer("bn")
        assert bn.skipped_batches == 1 and int(bn.updates.numpy()) == 3
        found.append(bn.get_weights())
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5)


@keras.saving.register_keras_serializable(package="test_callers")
class Gate(keras.layers.Layer):
    """A layer with a keyword tensor: it needs its gradient, too."""

    def call(self, x, gate=None, training=None):
        return x * gate


def test_keyword_tensors_get_their_gradients_in_a_remat_scope():
    def gradients(scope):
        with keras.RematScope(mode=scope):
            layer = Gate()
            layer.build((4, 3))

        @tf.function
        def step(x, gate):
            with tf.GradientTape() as tape:
                tape.watch([x, gate])
                loss = tf.reduce_sum(layer(x, gate=gate, training=True) ** 2)
            return tape.gradient(loss, [x, gate])

        return step(tf.constant(data((4, 3))), tf.constant(data((4, 3), seed=1)))

    for found, expected in zip(gradients("full"), gradients(None), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# ------------------------------------------------------------ TimeDistributed

TIMES = {2: (6, 5, 3), 4: (3, 4, 2, 2, 3)}  # by the child's rank


@product_of(rank=[*TIMES], steps=["known", "open"], masked={"whole": False, "masked": True})
def test_time_distributed_normalizes_over_batch_and_time(rank, steps, masked, tmp_path):
    shape = TIMES[rank]
    x = data(shape) + np.arange(shape[1]).reshape(-1, *[1] * (rank - 1)).astype("f")
    if masked:
        x[0, 2:] = x[2, 3:] = 0
    inputs = keras.Input((shape[1] if steps == "known" else None, *shape[2:]))
    hidden = keras.layers.Masking()(inputs) if masked and rank == 2 else inputs
    wrapped = keras.layers.TimeDistributed(BatchNorm(momentum=0.0))
    given = np.any(x != 0, axis=tuple(range(2, rank + 1))) if masked else None
    model = keras.Model(inputs, wrapped(hidden))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    keep = None if given is None else np.broadcast_to(
        given.reshape(*shape[:2], *[1] * (rank - 2)), shape[:-1]
    )
    expected, mean, variance = reference.forward(x, mask=keep)
    for one in (model, again):
        layer = one.layers[-1]
        if masked and rank > 2:  # Masking knows rank 3 only; called by hand
            run = tf.function(lambda x, mask: layer(x, training=True, mask=mask))
            y = run(tf.constant(x), tf.constant(given))
        else:
            y = tf.function(one)(tf.constant(x), training=True)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(layer.layer.moving_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(layer.layer.moving_variance, variance, rtol=1e-5)


@pytest.mark.slow
def test_time_distributed_moves_once_in_fit_with_an_open_number_of_steps():
    inputs = keras.Input((None, 3))
    layer = BatchNorm(momentum=None)
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = data((6, 5, 3))
    model.fit(x, x, batch_size=6, verbose=0)
    assert int(layer.updates.numpy()) == 1
    np.testing.assert_allclose(layer.moving_mean, x.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("make", [
    lambda: keras.layers.Dense(2), lambda: keras.layers.BatchNormalization(momentum=0.5),
    lambda: keras.layers.LSTM(2), lambda: keras.layers.Dropout(0.5, seed=0),
], ids=["dense", "keras's batch norm", "lstm", "dropout"])
def test_time_distributed_is_untouched_around_other_layers(make):
    """`__wrapped__` is Keras's own method, as it was before this package was imported."""
    x = tf.constant(data((4, 3, 5, 2)))
    found = []
    for call in (keras.layers.TimeDistributed.call,
                 keras.layers.TimeDistributed.call.__wrapped__):
        keras.utils.set_random_seed(0)
        wrapper = keras.layers.TimeDistributed(make())
        wrapper.build(tuple(x.shape))
        found.append([call(wrapper, x, training=True), *wrapper.weights])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("caller", ["TimeDistributed", "an RNN cell"])
def test_single_time_steps_are_warned_of_once_by_name(caller):
    layer = BatchNorm(name="stepwise")
    if caller == "TimeDistributed":
        net = keras.layers.TimeDistributed(keras.Sequential([keras.layers.Dense(2), layer]))
    else:

        class Cell(keras.layers.SimpleRNNCell):
            def build(self, shape):
                super().build(shape)
                layer.build((None, 2))

            def call(self, x, states, training=None):
                y, states = super().call(x, states)
                return layer(y, training=training), states

        net = keras.layers.RNN(Cell(2))
    x = tf.constant(data((4, 3, 5)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            net(x, training=True)
    told = [str(one.message) for one in caught if "one time step at a time" in str(one.message)]
    assert len(told) == 1
    assert "'stepwise'" in told[0] and caller in told[0]
    assert "apply the layer to the whole sequence" in told[0]


# ------------------------------------------------------------ accumulated gradients


def pooled(batches, masks=None):
    """Mean, variance and number of values of several batches together, in float64."""
    masks = masks or [np.ones(batch.shape[:-1], bool) for batch in batches]
    values = np.concatenate([batch[mask] for batch, mask in zip(batches, masks)])
    values = values.astype(np.float64)
    return values.mean(0), values.var(0), len(values)


def compiled(settings, steps=4, jit_compile=False, scaled=False):
    layer = BatchNorm(**settings)
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=steps)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model, layer


SIZES = (6, 6, 6, 2)  # an unequal last batch
KINDS = {
    "plain": {}, "unbiased": {"unbiased_variance": True}, "debias": {"debias": True},
    "cumulative": {"momentum": None}, "renorm": {"renorm": True},
}


def expected_of(settings, groups):
    """Moving mean and variance after one update for each group of micro-batches."""
    mean, variance = np.zeros(3), np.ones(3)
    stddev = np.ones(3)
    for number, (batch_mean, batch_variance, n) in enumerate(groups):
        momentum = settings.get("momentum", 0.9)
        if momentum is None:
            momentum = number / (number + 1)
        elif settings.get("debias"):
            momentum = 1 - (1 - momentum) / (1 - momentum ** (number + 1))
        if settings.get("unbiased_variance"):
            batch_variance = batch_variance * n / (n - 1)
        mean = reference.moving_average(mean, batch_mean, momentum)
        variance = reference.moving_average(variance, batch_variance, momentum)
        stddev = reference.moving_average(stddev, np.sqrt(batch_variance + 1e-3), momentum)
    return mean, stddev**2 - 1e-3 if settings.get("renorm") else variance


WAYS = {
    "1 group": ("graph", 1), "2 groups": ("graph", 2), "3 groups": ("graph", 3),
    "xla": ("xla", 3), "loss scale": ("loss scale", 2),
}
TWICE = [  # each kind in two ways, and each way with two kinds
    (kind, [*WAYS][(number + turn) % len(WAYS)])
    for turn in range(2) for number, kind in enumerate(KINDS)
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, way", TWICE)
def test_a_group_of_micro_batches_moves_as_one_pooled_batch(kind, way):
    how, groups = WAYS[way]
    settings = {"momentum": 0.9, **KINDS[kind]}
    model, layer = compiled(settings, jit_compile=how == "xla", scaled=how == "loss scale")
    wanted = []
    for group in range(groups):
        batches = [data((size, 4, 3), mean=2 + 3 * part + group, seed=10 * group + part)
                   for part, size in enumerate(SIZES)]
        batches[1][2:, 2:] = 0  # masked
        batches[2][0, 0, 0] = np.nan  # left out
        for batch in batches:
            model.train_on_batch(batch, batch)
        counted = [batches[0], batches[1], batches[3]]
        wanted.append(pooled(counted, [np.any(batch != 0, -1) for batch in counted]))
    if groups == 2:  # an unfinished group changes nothing
        model.train_on_batch(batches[0], batches[0])
    mean, variance = expected_of(settings, wanted)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=2e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=2e-5)
    assert layer.skipped_batches == groups
    if layer.population.updates is not None:
        assert int(layer.updates.numpy()) == groups


@pytest.mark.slow
def test_fit_pools_too():
    model, layer = compiled({"momentum": 0.9})
    x = data((32, 4, 3))
    x += np.arange(32, dtype="f")[:, None, None]
    model.fit(x, x, batch_size=4, shuffle=False, verbose=0)
    mean, variance = expected_of({}, [pooled([x[:16]]), pooled([x[16:]])])
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=2e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=2e-5)


@pytest.mark.slow
def test_micro_batches_far_from_zero_lose_no_digits():
    model, layer = compiled({"momentum": 0.0})
    batches = [data((6, 4, 3), mean=1e4 + part, seed=part) for part in range(4)]
    for batch in batches:
        model.train_on_batch(batch, batch)
    np.testing.assert_allclose(layer.moving_variance, pooled(batches)[1], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_a_loop_of_ones_own_may_stop_in_the_middle_of_a_group(in_graph, tmp_path):
    batches = [data((size, 3), mean=part, seed=part) for part, size in enumerate(SIZES)]
    settings = {"gradient_accumulation_steps": 4, "momentum": 0.9}

    def net():
        model = keras.Sequential([keras.Input((3,)), BatchNorm(**settings)])

        def step(x):
            return model(x, training=True)

        return model, tf.function(step, reduce_retracing=True) if in_graph else step

    model, step = net()
    for batch in batches[:2]:
        step(tf.constant(batch))
    assert model.layers[0].moving_mean.numpy().tolist() == [0, 0, 0]
    model.save_weights(tmp_path / "half.weights.h5")
    model, step = net()
    model.load_weights(tmp_path / "half.weights.h5")
    for batch in batches[2:]:
        step(tf.constant(batch))
    mean, variance = expected_of({}, [pooled(batches)])
    np.testing.assert_allclose(model.layers[0].moving_mean, mean, rtol=2e-5)
    np.testing.assert_allclose(model.layers[0].moving_variance, variance, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize("through_fit", [False, True], ids=["built", "after fit"])
def test_without_accumulation_the_variables_are_those_of_keras(renorm, through_fit):
    found = []
    for kind in (BatchNorm, keras.layers.BatchNormalization):
        model = keras.Sequential([keras.Input((3,)), kind(renorm=renorm, name="bn")], name="net")
        if through_fit:
            model.compile("sgd", "mse")
            model.fit(data((8, 3)), data((8, 3)), verbose=0)
        layer = model.layers[0]
        found.append([[(v.path, v.shape, v.dtype) for v in which]
                      for which in (layer.variables, layer.weights, model.variables)])
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_mean_of_micro_batches_on_replicas_is_kept():
    """Each replica pools its own micro-batches; whoever reads gets the mean over replicas."""
    strategy = two_replicas()
    with strategy.scope():
        layer = BatchNorm(momentum=0.0, gradient_accumulation_steps=2)
        layer.build((None, 3))
    step = tf.function(lambda x: layer(x, training=True))
    parts = [[data((4, 3), mean=4 * replica + turn, seed=2 * replica + turn) for turn in range(2)]
             for replica in range(2)]
    for turn in range(2):
        strategy.run(step, [spread([parts[replica][turn] for replica in range(2)])])
    means, variances, _ = zip(*(pooled(batches) for batches in parts))
    np.testing.assert_allclose(layer.moving_mean, np.mean(means, 0), rtol=2e-5)
    np.testing.assert_allclose(layer.moving_variance, np.mean(variances, 0), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BatchNorm, keras.layers.BatchNormalization])
def test_keras_has_no_accumulating_optimizer_on_replicas_yet(kind):
    """The optimizer fails with any layer; once it does not, pooling there needs a test."""
    with two_replicas().scope():
        model = keras.Sequential([keras.Input((3,)), kind()])
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    with pytest.raises(RuntimeError, match="merge_call"):
        model.fit(data((16, 3)), data((16, 3)), batch_size=8, verbose=0)


def test_outside_of_a_compiled_model_every_call_is_an_update():
    assert callers.micro_batches()[0] == 1
    layer = BatchNorm(momentum=None)
    for seed in range(3):
        layer(data((4, 3), seed=seed), training=True)
    assert int(layer.updates.numpy()) == 3


@pytest.mark.slow
def test_training_goes_on_from_a_file_in_step_with_the_optimizer(tmp_path):
    """Two micro-batches of four are in the file's past: the pool lacks them, the steps do not."""
    x = np.random.default_rng(0).normal(4, 1, (64, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), BatchNorm(momentum=0.0), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0, gradient_accumulation_steps=4), "mse")
    for part in np.split(x, 8)[:2]:
        model.train_on_batch(part, part[:, :1])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    means = []
    for part in np.split(x, 8)[2:]:
        again.train_on_batch(part, part[:, :1])
        means.append(again.layers[0].moving_mean.numpy())
    assert means[0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(means[1:5], [x[16:32].mean(0)] * 4, rtol=1e-5)
    np.testing.assert_allclose(means[5], x[32:].mean(0), rtol=1e-5)
