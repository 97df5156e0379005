"""Population statistics of every kind, against averages computed in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import MODES, RENORM, product_of

from bn_keras import BatchNorm
from bn_keras.batch_norm import reference
from bn_keras.surgery import statistics

BATCHES = [np.random.default_rng(seed).normal(seed, 2.0, (6, 3)).astype("f") for seed in range(5)]
MEANS = np.array([batch.mean(0) for batch in BATCHES])
VARIANCES = np.array([batch.var(0) for batch in BATCHES])


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def trained(mode, batches=BATCHES, **settings):
    layer = BatchNorm(**settings)
    layer.build((None, 3))
    step = mode(lambda x: layer(x, training=True))
    for batch in batches:
        step(tf.constant(batch))
    return layer


def check(layer, mean, variance):
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


def test_the_debiased_average_forgets_its_start(mode):
    """sum of m^(T-t) x_t over sum of m^(T-t): Kingma & Ba's correction, for mean and variance."""
    weights = 0.9 ** np.arange(len(BATCHES))[::-1]
    weights /= weights.sum()
    check(trained(mode, momentum=0.9, debias=True), weights @ MEANS, weights @ VARIANCES)


def test_the_debiased_average_after_one_batch_is_that_batch(mode):
    layer = trained(mode, BATCHES[3:4], momentum=0.999, debias=True)
    check(layer, MEANS[3], VARIANCES[3])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_debiased_average_at_the_ends_of_its_range(momentum):
    layer = trained(tf.function, momentum=momentum, debias=True)
    weights = {0.0: [0, 0, 0, 0, 1], 0.5: np.array([1, 2, 4, 8, 16]) / 31, 1.0: [0.2] * 5}[momentum]
    check(layer, weights @ MEANS, weights @ VARIANCES)


def test_the_cumulative_average_weighs_all_batches_alike(mode):
    check(trained(mode, momentum=None), MEANS.mean(0), VARIANCES.mean(0))


def test_a_schedule_gives_each_update_its_momentum(mode):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.8])
    mean, variance = np.zeros(3), np.ones(3)
    for t in range(5):
        m = 0.0 if t <= 1 else 0.8
        mean, variance = m * mean + (1 - m) * MEANS[t], m * variance + (1 - m) * VARIANCES[t]
    check(trained(mode, momentum=schedule), mean, variance)


def test_the_unbiased_variance_is_that_of_pytorch(mode):
    layer = trained(mode, BATCHES[:1], momentum=0.9, unbiased_variance=True)
    check(layer, 0.1 * MEANS[0], 0.9 + 0.1 * BATCHES[0].var(0, ddof=1))


def test_a_mask_counts_in_the_unbiased_variance():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("f")
    mask = np.random.default_rng(1).random((4, 5)) < 0.5
    layer = BatchNorm(momentum=0.0, unbiased_variance=True)
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(layer.moving_variance, x[mask].var(0, ddof=1), rtol=1e-5)


def test_a_skipped_batch_does_not_count_as_an_update():
    bad = np.full((6, 3), np.nan, "f")
    layer = trained(tf.function, [BATCHES[0], bad, BATCHES[1]], momentum=None)
    assert int(layer.updates.numpy()) == 2 and layer.skipped_batches == 1
    check(layer, MEANS[:2].mean(0), VARIANCES[:2].mean(0))


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"debias": True}, {"unbiased_variance": True, "one_value": "error"},
     {"momentum": keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.5)},
     {"synchronized": True, "replica_group_size": 2, "explicit_training": True}],
    ids=["cumulative", "debias", "unbiased", "schedule", "groups"],
)
def test_the_own_settings_are_saved_and_read_back(settings, tmp_path):
    model = keras.Sequential([keras.Input((3,)), BatchNorm(**settings)])
    for batch in BATCHES:
        model(batch, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == model.layers[0].get_config()
    model(BATCHES[0], training=True)
    again(BATCHES[0], training=True)
    np.testing.assert_array_equal(again.layers[0].moving_mean, model.layers[0].moving_mean)


def test_default_settings_leave_no_trace_in_config_or_weights():
    keras_layer = keras.layers.BatchNormalization()
    assert set(BatchNorm().get_config()) == set(keras_layer.get_config())


def nested(layer_class):
    inner = keras.Sequential([keras.Input((3,)), layer_class(name="inner_bn")], name="inner")
    return keras.Sequential([keras.Input((3,)), layer_class(name="outer_bn"), inner])


@pytest.mark.parametrize("layer_class", [BatchNorm, keras.layers.BatchNormalization])
def test_snapshot_restore_difference_and_reset_over_a_nested_model(layer_class):
    model = nested(layer_class)
    start = statistics.snapshot(model)
    assert len(start) == 4
    model(BATCHES[2] * 3, training=True)
    moved = statistics.snapshot(model)
    change = statistics.difference(start, moved)
    outer = next(value for path, value in change.items() if "outer" in path)
    shift = np.abs(0.01 * (BATCHES[2] * 3).mean(0)).max()
    growth = (0.99 + 0.01 * (BATCHES[2] * 3).var(0)).max()
    assert outer == pytest.approx((shift, growth), rel=1e-4)
    statistics.reset(model)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, start[path])
    statistics.restore(model, moved)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, moved[path])
    assert statistics.difference(moved, moved) == {path: (0.0, 1.0) for path in change}


# ------------------------------------------------------------ held, and update_statistics=False

KINDS = {"ours": BatchNorm, "keras": keras.layers.BatchNormalization}


def weights_of(model):
    return [np.array(weight.numpy()) for weight in model.non_trainable_variables]


def assert_kept(model, before):
    for weight, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value, err_msg=weight.path)


def has_moved(model, before):
    return [not np.array_equal(weight.numpy(), value)
            for weight, value in zip(model.non_trainable_variables, before, strict=True)]


@pytest.mark.slow
@product_of(
    mode=MODES, as_tensor={"bool": False, "tensor": True},
    settings={"plain": {}, "renorm": {"renorm": True}, "cumulative": {"momentum": None}},
)
def test_a_call_may_leave_the_statistics_alone(mode, as_tensor, settings):
    layer = BatchNorm(**settings)
    layer.build((6, 3))
    before = weights_of(layer)

    def run(x, update):
        return layer(x, training=True, update_statistics=update)

    def call(x, update):
        if as_tensor:
            return wrapped(x, tf.constant(update))
        return mode(lambda x: run(x, update))(x)

    wrapped = mode(run)
    x = tf.constant(BATCHES[1])
    y = call(x, False)
    assert_kept(layer, before)
    if "renorm" not in settings:
        expected, _, _ = reference.forward(BATCHES[1])
        np.testing.assert_allclose(y, expected, atol=1e-5)
    # A batch that would have been left out is not counted either.
    call(tf.constant(np.full((6, 3), np.nan, "f")), False)
    assert layer.skipped_batches == 0
    call(x, True)
    assert all(has_moved(layer, before))


class Subclassed(keras.Model):
    """Two uses of one layer, and one inside another model."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.shared = kind(name="shared", **settings)
        # A bias, or the mean that "deep" sees may be 0 to the last digit, and move nothing.
        dense = keras.layers.Dense(3, bias_initializer="ones")
        self.inner = keras.Sequential([dense, kind(name="deep", **settings)])

    def call(self, x, training=None):
        x = self.shared(x, training=training)
        return self.inner(self.shared(x, training=training), training=training)


def functional_shared(kind, **settings):
    inputs = keras.Input((3,))
    layer = kind(**settings)
    return keras.Model(inputs, layer(keras.layers.Dense(3)(layer(inputs))))


MODELS = {
    "layer": lambda kind, **settings: kind(**settings),
    "nested": lambda kind, **settings: nested(lambda **name: kind(**name, **settings)),
    "shared": functional_shared,
    "subclassed": Subclassed,
}


def made(what, kind, **settings):
    model = MODELS[what](KINDS[kind], **settings)
    model(BATCHES[0], training=False)
    return model


@pytest.mark.slow
@product_of(
    what=list(MODELS), mode=MODES,
    layer={f"{kind}-{name}": (kind, renorm) for kind in KINDS for name, renorm in RENORM.items()},
)
def test_held_statistics_stay_and_move_again_afterwards(what, mode, layer):
    kind, renorm = layer
    model = made(what, kind, renorm=renorm)
    before = weights_of(model)
    x = tf.constant(BATCHES[2])

    def look(x):
        with statistics.held(model):
            with statistics.held(model):  # once more does no harm
                model(x, training=True)
            return model(x, training=True)

    y = mode(look)(x)
    assert_kept(model, before)
    if what == "layer" and not renorm:
        np.testing.assert_allclose(y, reference.forward(BATCHES[2])[0], atol=1e-5)
    with pytest.raises(RuntimeError, match="in the middle"):
        with statistics.held(model):
            raise RuntimeError("in the middle")
    mode(lambda x: model(x, training=True))(x)
    assert all(has_moved(model, before))


@pytest.mark.slow
@product_of(
    kind=list(KINDS), first=["held", "moving"],
    jit_compile={"graph": False, "xla": True},
)
def test_fit_within_held_moves_nothing_and_behind_it_everything(kind, first, jit_compile):
    model = made("nested", kind)
    model.compile("sgd", "mse", jit_compile=jit_compile)

    def fit():
        model.fit(BATCHES[1], BATCHES[1], batch_size=6, verbose=0)

    if first == "moving":
        fit()
    before = weights_of(model)
    with statistics.held(model):
        fit()
    assert_kept(model, before)
    fit()
    assert all(has_moved(model, before))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_inner_model_that_is_held_does_not_move_in_the_outer_ones_fit(kind):
    model = made("nested", kind)
    model.compile("sgd", "mse")
    inner = model.layers[-1]
    before, outside = weights_of(inner), weights_of(model.layers[0])
    with statistics.held(inner):
        model.fit(BATCHES[1], BATCHES[1], batch_size=6, verbose=0)
    assert_kept(inner, before)
    assert all(has_moved(model.layers[0], outside))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_model_can_be_held(kind):
    model = made("nested", kind)
    model.trainable = False
    before = statistics.snapshot(model)
    with statistics.held(model):
        model.trainable = True
        model(BATCHES[0], training=True)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_holding_what_has_no_batch_normalization_is_refused_by_name():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="plain_net")
    with pytest.raises(ValueError, match="'plain_net' has no batch normalization"):
        with statistics.held(model):
            pass


# ------------------------------------------------------------ snapshots


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_a_frozen_model_is_read_restored_and_reset_without_its_scale(kind, renorm):
    model = made("nested", kind, renorm=renorm)
    start = statistics.snapshot(model)
    for layer in statistics.batch_normalizers(model):
        layer.gamma.assign([2.0, 3.0, 4.0])
        layer.beta.assign([5.0, 6.0, 7.0])
    model(BATCHES[3], training=True)
    moved = statistics.snapshot(model)
    model.trainable = False
    assert {path: value.tolist() for path, value in statistics.snapshot(model).items()} == {
        path: value.tolist() for path, value in moved.items()
    }
    statistics.reset(model)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, start[path])
    statistics.restore(model, moved)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, moved[path])
    for layer in statistics.batch_normalizers(model):
        assert layer.gamma.numpy().tolist() == [2, 3, 4]
        assert layer.beta.numpy().tolist() == [5, 6, 7]


def test_a_reset_layer_counts_its_updates_and_skipped_batches_anew():
    layer = trained(tf.function, [*BATCHES, np.full((6, 3), np.nan, "f")], momentum=None)
    assert int(layer.updates.numpy()) == 5 and layer.skipped_batches == 1
    statistics.reset(layer)
    assert int(layer.updates.numpy()) == 0 and layer.skipped_batches == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_fits_an_equal_model_with_other_automatic_names(kind):
    def model():
        return keras.Sequential([keras.Input((3,)), KINDS[kind](), KINDS[kind]()])

    first, second = model(), model()
    first(BATCHES[4], training=True)
    snapshot = statistics.snapshot(first)
    assert set(snapshot) != set(statistics.snapshot(second))
    statistics.restore(second, snapshot)
    for one, other in zip(snapshot.values(), statistics.snapshot(second).values(), strict=True):
        np.testing.assert_array_equal(one, other)


WRONG = {
    "fewer": lambda snapshot: dict(list(snapshot.items())[:1]),
    "none": lambda snapshot: {},
    "another shape": lambda snapshot: {path: np.zeros(7) for path in snapshot},
    "other names": lambda snapshot: {path + "_x": value for path, value in snapshot.items()},
    "other order": lambda snapshot: {
        "a/moving_variance": np.ones(3), "a/moving_mean": np.zeros(3)
    },
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(wrong):
    layer = trained(tf.function)
    before = weights_of(layer)
    snapshot = WRONG[wrong](statistics.snapshot(layer))
    with pytest.raises(ValueError) as caught:
        statistics.restore(layer, snapshot)
    assert "received" in str(caught.value) and "expected" in str(caught.value)
    assert "(3,)" in str(caught.value), "the expected shape is not named"
    for path, value in list(snapshot.items())[:1]:
        assert path in str(caught.value) and str(np.shape(value)) in str(caught.value)
    assert_kept(layer, before)


def parts_of(sizes):
    return [np.random.default_rng(seed).normal(seed, 1 + seed, (size, 3))
            for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(5, 9), (4, 7, 12)], ids=["two", "three"])
def test_merged_statistics_are_those_of_all_values_together(sizes):
    parts = parts_of(sizes)
    merged = statistics.merge([
        ({"a/moving_mean": part.mean(0), "a/moving_variance": part.var(0)}, len(part))
        for part in parts
    ])
    together = np.concatenate(parts)
    np.testing.assert_allclose(merged["a/moving_mean"], together.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged["a/moving_variance"], together.var(0), rtol=1e-13)
    twice = statistics.merge([
        (statistics.merge([
            ({"a/moving_mean": part.mean(0), "a/moving_variance": part.var(0)}, len(part))
            for part in parts[:2]
        ]), sum(sizes[:2])),
        *[({"a/moving_mean": part.mean(0), "a/moving_variance": part.var(0)}, len(part))
          for part in parts[2:]],
    ])
    np.testing.assert_allclose(twice["a/moving_variance"], together.var(0), rtol=1e-13)


@pytest.mark.slow
def test_merged_layers_with_renorm_and_updates_infer_as_on_all_their_values():
    parts = [part.astype("f") for part in parts_of((6, 10, 7))]
    settings = {"renorm": True, "momentum": None, "renorm_momentum": 0.0, "epsilon": 0.0}
    layers = [trained(tf.function, [part], **settings) for part in parts]
    merged = statistics.merge([
        (statistics.snapshot(layer), len(part)) for layer, part in zip(layers, parts)
    ])
    statistics.restore(layers[0], merged)
    together = np.concatenate(parts).astype(np.float64)
    check(layers[0], together.mean(0), together.var(0))
    np.testing.assert_allclose(layers[0].renorm_mean, together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layers[0].renorm_stddev, together.std(0), rtol=1e-5)
    np.testing.assert_allclose(layers[0].moving_stddev, together.std(0), rtol=1e-5)
    assert int(layers[0].updates.numpy()) == 3


@pytest.mark.parametrize(
    "counts", [(0, 1), (-1, 2), (float("nan"), 1), (float("inf"), 1)], ids=str
)
def test_a_count_that_is_no_positive_number_is_refused(counts):
    snapshot = statistics.snapshot(trained(tf.function))
    message = r"merge: received the counts \[.*\]; expected .* each count above 0"
    with pytest.raises(ValueError, match=message):
        statistics.merge([(snapshot, count) for count in counts])


def test_nothing_to_merge_and_unlike_snapshots_are_refused():
    for nothing in ([], [({}, 1)], None, [statistics.snapshot(trained(tf.function))]):
        with pytest.raises(ValueError, match=r"merge: received .* expected a list of \(snapshot"):
            statistics.merge(nothing)
    one, other = (statistics.snapshot(trained(tf.function, renorm=renorm))
                  for renorm in (False, True))
    with pytest.raises(ValueError, match="merge: received statistics of 5 arrays.*expected.* 2 "):
        statistics.merge([(one, 1), (other, 1)])


def test_layers_of_the_same_path_are_all_in_a_snapshot():
    def backbone():
        inputs = keras.Input((3,))
        return keras.Model(inputs, BatchNorm(name="bn", momentum=0.0)(inputs), name="backbone")

    class Ensemble(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.other = backbone(), backbone()

        def call(self, x, training=None):
            return self.one(x, training=training) + self.other(2 * x, training=training)

    model = Ensemble()
    model(BATCHES[3], training=True)
    taken = statistics.snapshot(model)
    assert list(taken) == [
        "bn/moving_mean", "bn/moving_variance", "bn#2/moving_mean", "bn#2/moving_variance"
    ]
    statistics.reset(model)
    statistics.restore(model, taken)
    for path, value in statistics.snapshot(model).items():
        np.testing.assert_array_equal(value, taken[path])


def named(model, *layers):
    built = keras.Sequential(
        [keras.Input((3,)), *(BatchNorm(name=name, momentum=0.0) for name in layers)], name=model
    )
    built(BATCHES[3], training=True)
    return built


def test_a_snapshot_is_matched_by_the_names_of_layers_and_not_by_their_places():
    one, other = named("m", "x", "y"), named("n", "y", "x")
    statistics.restore(other, statistics.snapshot(one))
    for name in "xy":
        np.testing.assert_array_equal(
            one.get_layer(name).moving_mean, other.get_layer(name).moving_mean
        )
    third = named("m", "x", "z")
    before = statistics.snapshot(third)
    for call in (lambda: statistics.restore(third, statistics.snapshot(one)),
                 lambda: statistics.merge([(before, 1), (statistics.snapshot(one), 1)])):
        with pytest.raises(ValueError, match="received statistics of 4 arrays"):
            call()
    for path, value in statistics.snapshot(third).items():
        np.testing.assert_array_equal(value, before[path])


def test_what_has_no_statistics_is_refused_by_name():
    for call in (statistics.snapshot, statistics.reset):
        with pytest.raises(ValueError, match="'fresh' .* is not built"):
            call(BatchNorm(name="fresh"))
        with pytest.raises(TypeError, match="received 3; expected a keras.Model or a layer"):
            call(3)


@pytest.mark.parametrize("renorm", [False, True])
def test_a_momentum_set_on_a_built_layer_counts_as_in_keras(renorm):
    x = BATCHES[2]
    ours = BatchNorm(renorm=renorm)
    ours.build(x.shape)
    # Keras's layer has no renorm: one that was made with that momentum.
    theirs = BatchNorm(renorm=True, momentum=0.25) if renorm else keras.layers.BatchNormalization()
    theirs.build(x.shape)
    for layer in (ours, theirs):
        layer.momentum = 0.25
        layer(x, training=True)
    assert ours.get_config()["momentum"] == 0.25
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-5)


def test_a_momentum_that_a_built_layer_cannot_have_is_refused_and_changes_nothing():
    layer = BatchNorm()
    layer.build((None, 3))
    for wrong in (1.5, None, lambda updates: 0.5):
        with pytest.raises(ValueError, match="momentum="):
            layer.momentum = wrong
    assert layer.momentum == 0.99
    counting = BatchNorm(momentum=None)
    counting.build((None, 3))
    counting.momentum = 0.5
    assert counting.momentum == 0.5
