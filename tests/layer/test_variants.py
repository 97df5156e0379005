"""The variants of BatchNorm: each against its definition, and against BatchNorm where it is one."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import product_of

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference
from bn_keras.diagnostics.conformance import FAIL, run
from bn_keras.normalizers.activated import ActivatedBatchNorm
from bn_keras.normalizers.conditional import ConditionalBatchNorm
from bn_keras.normalizers.frozen import FrozenBatchNorm
from bn_keras.normalizers.ghost import GhostBatchNorm
from bn_keras.normalizers.renorm import BatchRenorm, Ramp

VARIANTS = {
    "ghost": functools.partial(GhostBatchNorm, virtual_batch_size=3),
    "renorm": functools.partial(BatchRenorm, rmax=Ramp(1, 3, 2, 4), dmax=Ramp(0, 5, 2, 4)),
    "activated": functools.partial(ActivatedBatchNorm, activation="tanh"),
    "conditional": ConditionalBatchNorm,
    "frozen statistics": functools.partial(FrozenBatchNorm, freeze="statistics"),
    "frozen affine": functools.partial(FrozenBatchNorm, freeze="affine"),
}


def data(shape, seed=0):
    return np.random.default_rng(seed).normal(1.5, 2.0, shape).astype("float32")


def gradients(layer, x, dy, **arguments):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **arguments)
    sources = [x, *(weight.value for weight in layer.trainable_variables)]
    return y.numpy(), [g.numpy() for g in tape.gradient(y, sources, output_gradients=dy)]


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_variant_predicts_and_trains_on_alike(name, tmp_path):
    model = keras.Sequential([keras.Input((4,)), VARIANTS[name](momentum=0.5)])
    x = data((7, 4))
    for _ in range(3):
        model(x, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == model.layers[0].get_config()
    for training in (False, True, False):
        np.testing.assert_allclose(again(x, training=training), model(x, training=training))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_variant_does_in_a_graph_what_it_does_in_eager_calls(name, jit_compile):
    layers = [VARIANTS[name](momentum=0.5) for _ in range(2)]
    for layer in layers:
        layer.build((None, 5, 4))
    call = tf.function(lambda x: layers[0](x, training=True), jit_compile=jit_compile)
    for seed in range(5):
        x = tf.constant(data((7, 5, 4), seed))
        np.testing.assert_allclose(call(x), layers[1](x, training=True), atol=1e-4)
    for one, other in zip(layers[0].weights, layers[1].weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_training_as_a_tensor(name):
    layers = [VARIANTS[name](momentum=0.5) for _ in range(2)]
    layers[0].build((None, 4))
    call = tf.function(lambda x, training: layers[0](x, training=training))
    for seed, training in enumerate((True, True, False)):
        x = tf.constant(data((7, 4), seed))
        expected = layers[1](x, training=training)
        np.testing.assert_allclose(call(x, tf.constant(training)), expected, atol=1e-5)


# Where a variant is BatchNorm, it must pass what BatchNorm passes. Renorm keeps a moving standard
# deviation in place of the moving variance, and three weights more, in Keras's layer too.
LIMITS = {
    "ghost": (GhostBatchNorm, set()),
    "activated": (ActivatedBatchNorm, set()),
    "renorm": (
        type("RenormAtRest", (BatchRenorm,), {"__init__": lambda self, **settings: super(
            type(self), self).__init__(**{"rmax": 1, "dmax": 0, **settings})}),
        {"moving variance averages the biased variance", "weights stand in the order of keras",
         "variance keeps its digits far from zero", "synchronized variance keeps its digits",
         "masked positions do not count",
         "a mask without the last axis means what it means to keras"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_a_variant_at_rest_passes_the_conformance_suite(name):
    layer_class, excepted = LIMITS[name]
    failed = {
        outcome.probe.name: outcome.evidence
        for outcome in run(layer_class)
        if outcome.verdict == FAIL and "renorm" not in outcome.probe.name
        and "clipping" not in outcome.probe.name
    }
    assert set(failed) <= excepted, failed


# ---------------------------------------------------------------- ghosts


@pytest.mark.parametrize("shape, axis", [((8, 3), -1), ((7, 4, 3), -1), ((9, 3, 4), 1)])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_each_ghost_is_a_batch_of_its_own(shape, axis, masked):
    """The last one takes what is left over; gradients are the reference's for each."""
    layer = GhostBatchNorm(virtual_batch_size=3, axis=axis, momentum=0.0)
    layer.build(shape)
    gamma, beta = data((3,), 1), data((3,), 2)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    x, dy = data(shape), data(shape, 3)
    mask = np.random.default_rng(4).random(np.delete(shape, axis)) < 0.7 if masked else None
    y, (dx, dgamma, dbeta) = gradients(layer, x, dy, mask=mask)
    cuts = [3 * number for number in range(1, shape[0] // 3)]
    masks = [None] * len(cuts + [0]) if mask is None else np.split(mask, cuts)
    parts = list(zip(np.split(x, cuts), np.split(dy, cuts), masks))
    expected = [reference.forward(p, gamma, beta, axis=axis, mask=m) for p, _, m in parts]
    back = [reference.backward(d, p, gamma, axis=axis, mask=m) for p, d, m in parts]
    np.testing.assert_allclose(y, np.concatenate([e[0] for e in expected]), atol=1e-4)
    np.testing.assert_allclose(dx, np.concatenate([b[0] for b in back]), atol=1e-4)
    np.testing.assert_allclose(dgamma, sum(b[1] for b in back), atol=1e-3)
    np.testing.assert_allclose(dbeta, sum(b[2] for b in back), atol=1e-3)
    counts = [(np.ones_like(p) if m is None else np.broadcast_to(
        np.expand_dims(m, axis), p.shape)).sum() / 3 for p, _, m in parts]
    for weight, of_ghosts in (
        (layer.moving_mean, [e[1] for e in expected]),
        (layer.moving_variance, [e[2] for e in expected]),
    ):
        np.testing.assert_allclose(weight, np.average(of_ghosts, 0, counts), rtol=1e-4)


def test_ghosts_of_an_open_batch_size_are_those_of_the_batch():
    layer = GhostBatchNorm(virtual_batch_size=4, momentum=0.0)
    layer.build((None, 3))
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, 3])]
    )
    for rows in (2, 4, 9):
        x = data((rows, 3))
        expected = GhostBatchNorm(virtual_batch_size=4)(x, training=True)
        np.testing.assert_allclose(call(tf.constant(x)), expected, atol=1e-5)
    assert call(tf.zeros((0, 3))).shape == (0, 3) and layer.skipped_batches == 1


@pytest.mark.slow
def test_the_unbiased_variance_of_ghosts_counts_a_mean_for_each():
    """The average over many batches is the population's variance, though ghosts are small."""
    layer = GhostBatchNorm(virtual_batch_size=2, momentum=None, unbiased_variance=True)
    for seed in range(50):
        layer(data((16, 100), seed), training=True)
    assert np.mean(layer.moving_variance) == pytest.approx(4.0, rel=0.03)


def test_one_value_in_every_ghost_is_told():
    with pytest.warns(UserWarning, match="one value per channel"):
        GhostBatchNorm(virtual_batch_size=1)(data((8, 3)), training=True)
    GhostBatchNorm(virtual_batch_size=1)(data((8, 5, 3)), training=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"virtual_batch_size": 0}, "virtual_batch_size=0; expected"),
        ({"virtual_batch_size": 2, "renorm": True}, "renorm=True, synchronized=False with"),
        ({"virtual_batch_size": 2, "synchronized": True}, "renorm=False, synchronized=True with"),
        ({"virtual_batch_size": 2, "axis": 0}, "axis=0 of input shape"),
    ],
)
def test_ghosts_refuse_what_they_do_not_go_with(settings, message):
    with pytest.raises(ValueError, match=message):
        GhostBatchNorm(**settings).build((4, 3))


# ---------------------------------------------------------------- renorm


def test_renorm_bounds_follow_their_schedules():
    """At each update it equals the layer whose bounds are constants of the schedule's values."""
    scheduled = BatchRenorm(rmax=Ramp(1, 3, 2, 4), dmax=Ramp(0, 5, 2, 4), momentum=0.9,
                            renorm_momentum=0.5)
    for update, (rmax, dmax) in enumerate([(1, 0), (1, 0), (1, 0), (2, 2.5), (3, 5), (3, 5)]):
        x = data((6, 3), update) * (update + 1)
        plain = BatchNorm(
            renorm=True, renorm_clipping={"rmax": rmax, "rmin": 1 / rmax, "dmax": dmax}
        )
        plain.build(x.shape)
        if update:
            plain.set_weights(scheduled.get_weights()[:-1])
        expected = plain(x, training=True)
        np.testing.assert_allclose(scheduled(x, training=True), expected, atol=1e-5)
    assert int(scheduled.updates) == 6


def test_renorm_starts_as_batch_normalization_with_the_papers_schedule():
    layer = BatchRenorm()
    x = data((6, 3))
    np.testing.assert_allclose(layer(x, training=True), BatchNorm()(x, training=True), atol=1e-5)
    found = [
        (float(layer.rmax(updates)), float(layer.dmax(updates)))
        for updates in (0, 5000, 15000, 22500, 25000, 40000, 10**6)
    ]
    assert found == [(1, 0), (1, 0), pytest.approx((1 + 2 * 10 / 35, 2.5)), (2, 4.375),
                     pytest.approx((1 + 2 * 20 / 35, 5)), (3, 5), (3, 5)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rmax": 0.5}, "rmax=0.5; expected a number of at least 1"),
        ({"dmax": -1}, "dmax=-1; expected a number of at least 0"),
    ],
)
def test_renorm_refuses_bounds_that_bound_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm(**settings)
    with pytest.raises(ValueError, match="begin=5, end=5"):
        Ramp(1, 3, 5, 5)


# ---------------------------------------------------------------- activation


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_an_activated_layer_is_the_layer_and_its_activation(activation):
    x, dy = data((6, 3)), data((6, 3), 1)
    pair = keras.Sequential([BatchNorm(momentum=0.5), keras.layers.Activation(activation)])
    pair.build(x.shape)
    y, found = gradients(ActivatedBatchNorm(activation=activation, momentum=0.5), x, dy)
    expected_y, expected = gradients(pair, x, dy)
    np.testing.assert_allclose(y, expected_y, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# ---------------------------------------------------------------- conditional


@pytest.mark.parametrize("shape, axis", [((5, 3), -1), ((5, 4, 4, 3), -1), ((5, 3, 4), 1)])
@pytest.mark.parametrize("per_example", [False, True], ids=["shared", "per example"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_conditional_scale_and_offset_are_those_of_the_call(shape, axis, per_example, training):
    layer = ConditionalBatchNorm(axis=axis)
    size = (5, 3) if per_example else (3,)
    gamma, beta = data(size, 1), data(size, 2)
    x = data(shape)
    y = layer(x, gamma=gamma, beta=beta, training=training)
    x_hat = (
        reference.forward(x, axis=axis)[0] if training
        else reference.inference(x, np.zeros(3), np.ones(3), axis=axis)
    )
    last = np.moveaxis(x_hat, axis, -1)
    middle = (1,) * (len(shape) - 2)
    wide = [v.reshape(5, *middle, 3) if per_example else v for v in (gamma, beta)]
    expected = np.moveaxis(last * wide[0] + wide[1], -1, axis)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    assert not layer.trainable_variables


@pytest.mark.slow
def test_a_conditional_model_learns_its_conditions_and_is_saved(tmp_path):
    """An embedding of the class predicts gamma and beta: the model can tell classes apart."""
    x, label = keras.Input((4,)), keras.Input((), dtype="int32")
    gamma = keras.layers.Embedding(3, 4, embeddings_initializer="ones")(label)
    beta = keras.layers.Embedding(3, 4, embeddings_initializer="zeros")(label)
    model = keras.Model([x, label], ConditionalBatchNorm(momentum=0.5)(x, gamma=gamma, beta=beta))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    inputs, labels = data((48, 4)), np.arange(48) % 3
    targets = np.repeat(labels[:, None], 4, axis=1).astype("float32")
    first = model.evaluate([inputs, labels], targets, verbose=0)
    model.fit([inputs, labels], targets, epochs=60, verbose=0)
    assert model.evaluate([inputs, labels], targets, verbose=0) < 0.1 * first
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again([inputs, labels]), model([inputs, labels]), atol=1e-6)


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_a_conditional_layer_names_a_shape_that_does_not_fit(name):
    with pytest.raises(ValueError, match=rf"{name} of shape \(4,\) for inputs of shape \(5, 3\)"):
        ConditionalBatchNorm()(data((5, 3)), **{name: data((4,))})


# ---------------------------------------------------------------- renorm in every dtype

BOUNDS = {
    "default": {},
    "ramps": {"rmax": Ramp(1, 3, 0, 2), "dmax": Ramp(0, 5, 0, 2)},
    "numbers": {"rmax": 1.5, "dmax": 0.25},
    "no bounds": {"rmax": None, "dmax": None},
    "keras schedule": {
        "rmax": keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 1.5]), "dmax": 0.5,
    },
}
ACCURATE = {"float64": 1e-12, "float32": 1e-5, "mixed_bfloat16": 0.06, "float16": 0.02,
            "mixed_float16": 0.02, "bfloat16": 0.06}


def renormed(batches, rmax, dmax, momentum, epsilon):
    """Outputs of algorithm 1 over some batches, in float64; bounds as functions of the updates."""
    mean, stddev, outputs = np.zeros(3), np.ones(3), []
    for updates, x in enumerate(batches):
        sigma = np.sqrt(x.var(0) + epsilon)
        r = np.clip(sigma / stddev, 1 / rmax(updates), rmax(updates))
        d = np.clip((x.mean(0) - mean) / stddev, -dmax(updates), dmax(updates))
        outputs.append((x - x.mean(0)) / sigma * r + d)
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        stddev = momentum * stddev + (1 - momentum) * sigma
    return outputs


def bound(value, infinite):
    """A bound as a function of the updates, by arithmetic of the test's own."""
    if value is None:
        return lambda updates: infinite
    if isinstance(value, Ramp):
        start, stop, begin, end = value.get_config().values()
        return lambda updates: np.interp(updates, [begin, end], [start, stop])
    if callable(value):
        return lambda updates: 1.0 if updates <= 0 else 1.5
    return lambda updates: value


@pytest.mark.slow
@product_of(name=list(BOUNDS), dtype=list(ACCURATE), how=["eager", "graph", "xla"])
def test_renorm_is_its_formula_in_every_dtype(name, dtype, how):
    layer = BatchRenorm(momentum=0.9, renorm_momentum=0.5, dtype=dtype, **BOUNDS[name])
    layer.build((None, 3))
    layer.gamma.assign([1.0, -2.0, 0.5])
    layer.beta.assign([0.0, 1.0, -1.0])

    def step(x):
        return layer(x, training=True)

    if how != "eager":
        step = tf.function(step, jit_compile=how == "xla")
    batches = [tf.cast(data((16, 3), seed), layer.compute_dtype) for seed in range(4)]
    found = [step(x) for x in batches]
    assert {y.dtype.name for y in found} == {layer.compute_dtype}
    bounds = {"rmax": 1.0, "dmax": 0.0, **BOUNDS[name]}  # the default ramps rise later
    expected = renormed(
        [tf.cast(x, "float64").numpy() for x in batches], bound(bounds["rmax"], np.inf),
        bound(bounds["dmax"], np.inf), 0.5, layer.epsilon,
    )
    for y, wanted in zip(found, expected, strict=True):
        wanted = wanted * [1.0, -2.0, 0.5] + [0.0, 1.0, -1.0]
        np.testing.assert_allclose(
            tf.cast(y, "float64"), wanted, rtol=ACCURATE[dtype], atol=ACCURATE[dtype]
        )


# ---------------------------------------------------------------- frozen


def test_frozen_statistics_infer_while_gamma_and_beta_learn():
    layer = FrozenBatchNorm(freeze="statistics")
    x, dy = data((6, 3)), data((6, 3), 1)
    y, (dx, dgamma, dbeta) = gradients(layer, x, dy)
    np.testing.assert_allclose(y, x / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_allclose(dx, dy / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_allclose(dgamma, (dy * y).sum(0), rtol=1e-4)
    np.testing.assert_allclose(dbeta, dy.sum(0), rtol=1e-4)
    assert not layer.moving_mean.numpy().any() and len(layer.trainable_variables) == 2


@pytest.mark.slow
def test_a_frozen_affine_map_stays_while_the_statistics_move():
    plain, layer = BatchNorm(momentum=0.5), FrozenBatchNorm(freeze="affine", momentum=0.5)
    x = data((6, 3))
    np.testing.assert_allclose(layer(x, training=True), plain(x, training=True), atol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, plain.moving_mean)
    assert [w.name for w in layer.weights] == [w.name for w in plain.weights]
    for trainable in (False, True):  # thawing what lies around must not thaw gamma
        layer.trainable = trainable
        assert not layer.trainable_variables
    model = keras.Sequential([keras.layers.Dense(3), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.gamma.numpy()
    model.fit(x, x, verbose=0)
    np.testing.assert_array_equal(layer.gamma, before)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="freeze='both'; expected one of statistics, affine"):
        FrozenBatchNorm(freeze="both")


def test_no_combination_shrank_to_nothing():
    assert len([*itertools.product(VARIANTS, LIMITS)]) == 18
