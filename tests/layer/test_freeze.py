"""What was frozen stays in `fit`, what was not learns, and thawing gives the old model back."""

import re
import warnings

import keras
import make
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import NAMES, ZOO, Cell, as_array, inputs_of, predictions, told, training_call

from bn_keras import BatchRenorm, FrozenBatchNorm, GhostBatchNorm, statistics
from bn_keras.normalizers.activated import ActivatedBatchNorm
from bn_keras.surgery.freeze import freeze, unfreeze
from bn_keras.surgery.modes import modes

KERAS = layers.BatchNormalization
KINDS = dict(zip(NAMES, ZOO))


def shaken(model):
    """The model with statistics, scales and offsets away from where they start."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def affine_of(layer):
    return [getattr(layer, name) for name in ("gamma", "beta") if getattr(layer, name) is not None]


@pytest.mark.slow
@make.product_of(strength=1, name=NAMES, what=["statistics", "affine", "both"])
def test_a_frozen_half_stays_in_training_and_the_other_learns(name, what):
    model, x = shaken(KINDS[name]()), inputs_of(name)
    before, was = told(model), [v.numpy() for v in model.variables]
    normal = predictions(model, x)
    with warnings.catch_warnings():  # ours says that a cell sees one time step at a time
        warnings.simplefilter("ignore")
        frozen, certificate = freeze(model, what)
        start = statistics.snapshot(frozen)
        outputs, _, _ = training_call(frozen, x)
    assert told(model) == before
    for variable, value in zip(model.variables, was, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    tolerance = 0.05 if name == "mixed_precision" else 1e-5
    found = statistics.batch_normalizers(frozen)
    learning = {id(variable) for variable in frozen.trainable_variables}
    # In the zoo, one inner layer and one layer are frozen already.
    own = [not layer.trainable for layer in statistics.batch_normalizers(model)]
    assert len(found) + (name == "in_a_lambda") == len(certificate.rows) > 0
    for layer, already in zip(found, own, strict=True):
        stays = what != "statistics" or already
        assert [id(v) in learning for v in affine_of(layer)] == [not stays] * 2
    moved = {path.rpartition("/")[0]: not np.array_equal(start[path], value)
             for path, value in statistics.snapshot(frozen).items() if path.endswith("mean")}
    moves = [what == "affine" and not already for already in own]
    assert list(moved.values()) == moves
    if what != "affine" and name != "subclassed" and name != "subclassed_inside":  # no dropout
        for one, other in zip(outputs, normal, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    for row in certificate.rows:
        assert "moves the averages" not in row.note or what == "affine", row


@pytest.mark.slow
@make.product_of(strength=1, name=NAMES, what=["both", "statistics", "affine"])
def test_thawing_gives_the_old_model_back(name, what):
    model, x = shaken(KINDS[name]()), inputs_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = unfreeze(freeze(model, what)[0], what)[0]
        if name == "frozen":  # what was frozen before is thawed by it as well
            model = unfreeze(model, what)[0]
    types = [[type(layer) for layer in m._flatten_layers()] for m in (back, model)]
    assert types[0] == types[1] and told(back) == told(model)
    configs = [[layer.get_config() for layer in statistics.batch_normalizers(m)]
               for m in (back, model)]
    assert configs[0] == configs[1]
    for one, other in zip(training_call(back, x), training_call(model, x), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_file_holds_what_was_frozen_and_how_to_thaw_it(tmp_path):
    inputs = keras.Input((3,))
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4), KERAS(momentum=0.7, name="bn")],
                            name="base")
    model = shaken(keras.Model(inputs, KERAS(name="top")(base(inputs))))
    x = np.ones((4, 3), "float32")
    for what in ("statistics", "affine", "both"):
        frozen, certificate = freeze(model, what, ["bn"])
        assert not any("file" in row.note for row in certificate.rows)
        frozen.save(tmp_path / "frozen.keras")
        loaded = keras.models.load_model(tmp_path / "frozen.keras")
        assert modes(loaded) == modes(frozen) != modes(model)
        np.testing.assert_allclose(loaded(x), frozen(x), rtol=1e-6)
        back = unfreeze(loaded)[0]
        assert [type(layer) for layer in back._flatten_layers()] == [
            type(layer) for layer in model._flatten_layers()]
        assert modes(back) == modes(model)
        assert back.get_layer("base").get_layer("bn").momentum == 0.7
    # Keras's own switch undoes "both" (if it changes: True is no news to a model), but no half.
    half = freeze(model)[0]
    for one, after in ((loaded, model), (half, half)):
        expected = modes(after)
        one.trainable = True
        assert modes(one) != modes(model)
        one.trainable = False
        one.trainable = True
        assert modes(one) == expected


@pytest.mark.slow
def test_what_a_file_would_lose_is_told():
    model = shaken(KINDS["composite"]())
    _, certificate = freeze(model)
    assert all("not in the model's config: do it again after loading" in row.note
               for row in certificate.rows)
    _, certificate = freeze(model, "both")
    assert all("a file does not hold that: freeze again" in row.note for row in certificate.rows)
    ghost = keras.Sequential([keras.Input((3,)), GhostBatchNorm(virtual_batch_size=2)])
    _, certificate = freeze(ghost, "affine")  # by the flags of its variables
    assert "a file does not hold that" in certificate.rows[0].note


def deep():
    """Four normalizers, two of them nested."""
    inner = keras.Sequential([keras.Input((3,)), KERAS(name="bn_a"), KERAS(name="bn_b")],
                             name="base")
    inputs = keras.Input((3,))
    return keras.Model(inputs, KERAS(name="bn_d")(KERAS(name="bn_c")(inner(inputs))))


CHOICES = {
    "all": (None, "abcd"), "two": (2, "ab"), "half": (0.5, "ab"), "a share is rounded up":
    (0.6, "abc"), "a whole": (1.0, "abcd"), "names": (["bn_c", "base/bn_a"], "ac"),
    "a name": ("bn_d", "d"), "an expression": ("^base/", "ab"),
    "a compiled one": (re.compile("bn_[bd]"), "bd"),
}


@pytest.mark.slow
@pytest.mark.parametrize("layers, letters", CHOICES.values(), ids=CHOICES)
def test_layers_are_chosen_by_name_expression_and_depth(layers, letters):
    frozen, certificate = freeze(deep(), layers=layers)
    fates = {row.path[-1]: row.fate for row in certificate.rows}
    assert fates == {letter: "frozen" if letter in letters else "kept" for letter in "abcd"}
    kinds = {layer.name[-1]: type(layer) for layer in statistics.batch_normalizers(frozen)}
    assert kinds == {letter: FrozenBatchNorm if letter in letters else KERAS for letter in "abcd"}


BAD = {
    "near": (["bn_e"], "'bn_e' matches no .*known: base/bn_a, base/bn_b, bn_c, bn_d .did you"),
    "one of two": (["bn_a", "conv"], "layers='conv' matches no"), "none": ("relu$", "'relu.'"),
    "too many": (5, "layers=5 of 4"), "0": (0, "expected a number from 1 to 4"),
    "a share": (1.5, "layers=1.5"), "flag": (True, "layers=True; expected None"),
    "empty": ([], "layers=..; expected"), "broken": ("bn(", "is no regular expression"),
}


@pytest.mark.parametrize("layers, text", BAD.values(), ids=BAD)
def test_a_choice_that_matches_nothing_is_named(layers, text):
    with pytest.raises(ValueError, match=f"freeze: .*{text}"):
        freeze(deep(), layers=layers)


@pytest.mark.slow
def test_what_cannot_be_frozen_is_refused_by_name():
    with pytest.raises(ValueError, match="what='gamma'; expected one of statistics, affine, both"):
        freeze(deep(), "gamma")
    with pytest.raises(ValueError, match="has no batch normalization; expected a model with some"):
        freeze(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    for layer, what, text in (
        (ActivatedBatchNorm(activation="relu", name="bn"), "statistics", "overrides .*call"),
        (BatchRenorm(name="bn"), "statistics", "BatchRenorm overrides"),
        (Stubborn(name="bn"), "statistics", "does not derive from Keras's"),
        (Stubborn(name="bn"), "both", "moves the averages, .*its statistics are not frozen"),
    ):
        model = keras.Sequential([keras.Input((3,)), layer])
        with pytest.raises(ValueError, match=f"freeze: .*'bn' .*{text}"):
            freeze(model, what)
    both, _ = freeze(keras.Sequential([keras.Input((3,)), BatchRenorm()]), "both")
    assert modes(both)[0].normalizes == "averages" and not modes(both)[0].trains


class Stubborn(layers.Layer):
    """Somebody's batch normalization, which heeds no trainable flag."""

    def build(self, shape):
        self.moving_mean = self.add_weight(shape=shape[-1:], trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(shape=shape[-1:], trainable=False, name="v")

    def call(self, x, training=None):
        if not training:
            return x - self.moving_mean
        mean = keras.ops.mean(x, 0)
        self.moving_mean.assign(0.9 * self.moving_mean + 0.1 * mean)
        return x - mean


@pytest.mark.slow
def test_ghosts_and_layers_of_time_steps_keep_training_as_they_did():
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 3)).astype("float32")
    for build in (lambda: layers.TimeDistributed(KERAS()),
                  lambda: GhostBatchNorm(virtual_batch_size=2)):
        model = shaken(keras.Sequential([keras.Input((4, 3)), build()]))
        frozen = freeze(model, "affine")[0]
        np.testing.assert_allclose(
            frozen(x, training=True), model(x, training=True), rtol=1e-4, atol=1e-4)
        assert not frozen.trainable_variables
        still = freeze(model)[0]
        np.testing.assert_allclose(still(x, training=True), still(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_normalizers_are_thawed_inside_of_a_frozen_model():
    """The rest of a frozen base stays frozen, though Keras asks its parents too."""
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="dense"), KERAS(name="bn")])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(1, name="head")(base(inputs)))
    base.trainable = False
    thawed, _ = unfreeze(model, layers=["bn"])
    names = {f"{v.path.split('/')[-2]}/{v.name}" for v in thawed.trainable_variables}
    assert names == {"bn/gamma", "bn/beta", "head/kernel", "head/bias"}
    assert len(model.trainable_variables) == 2
    gamma, certificate = unfreeze(model, "affine", ["bn"])
    assert certificate.rows[0].note == (
        "normalizes with the averages, leaves the averages alone, trains gamma and beta")
    x = np.random.default_rng(0).normal(4, 1, (32, 3)).astype("float32")
    for one in (thawed, gamma):
        one.compile("sgd", "mse")
        kernel = one.layers[1].get_layer("dense").kernel.numpy()
        before = statistics.snapshot(one)
        one.fit(x, x[:, :1], verbose=0)
        np.testing.assert_array_equal(one.layers[1].get_layer("dense").kernel.numpy(), kernel)
        shift = max(shift for shift, _ in statistics.difference(
            before, statistics.snapshot(one)).values())
        assert (shift > 0) == (one is thawed)


# ---------------------------------------------------------------- modes


class NoMode(keras.Model):
    """Its call has no argument for the mode, so that `fit` cannot hand it on."""

    def __init__(self):
        super().__init__()
        self.norm = KERAS(name="norm")

    def call(self, x):
        return self.norm(x)


class InGraph(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = KERAS(name="norm")

    @tf.function
    def call(self, x, training=False):
        return self.norm(x, training=training)


class Twice(keras.Model):
    """Calls one normalizer in both modes, and another one never."""

    def __init__(self):
        super().__init__()
        self.norm, self.idle = KERAS(name="norm"), KERAS(name="idle")

    def build(self, shape):
        self.idle.build(shape)
        self.norm.build(shape)

    def call(self, x, training=False):
        return self.norm(x, training=training) + self.norm(x, training=False)


def graph(training):
    inputs = keras.Input((3,))
    return keras.Model(inputs, KERAS(name="norm")(inputs, training=training))


def thawed_in_a_frozen_model():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), KERAS(name="norm")])
    model.trainable = False
    model.layers[1].trainable = True
    return model


def zero_gamma():
    return keras.Sequential([keras.Input((3,)), KERAS(gamma_initializer="zeros", name="norm")])


MODES = {
    "fit overrides a graph": (lambda: graph(False), "batch", True, "fit overrides"),
    "a graph says nothing": (lambda: graph(None), "batch", True, ""),
    "no mode": (NoMode, "averages", False, ""),
    "two modes": (Twice, "both", True, ""),
    "a frozen model": (thawed_in_a_frozen_model, "batch", True, ""),
    "a gamma of 0": (zero_gamma, "batch", True, ""),
    "renorm": (lambda: keras.Sequential([keras.Input((3,)), BatchRenorm(name="norm")]),
               "batch", True, ""),
    "nobody's momentum": (lambda: keras.Sequential([
        keras.Input((3,)), KERAS(momentum=1.0, name="norm")]), "batch", False, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("build, normalizes, moves, note", MODES.values(), ids=MODES)
def test_a_mode_is_what_fit_does(build, normalizes, moves, note):
    model, x = build(), np.random.default_rng(0).normal(3, 2, (8, 3)).astype("float32")
    model(x)
    before = [v.numpy() for v in model.variables]
    mode = modes(model)[0]
    assert mode.path.rpartition("/")[2] == "norm"
    assert (mode.normalizes, mode.moves) == (normalizes, moves)
    assert (note in mode.note) and bool(note) == bool(mode.note)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    layer = next(one for one in model._flatten_layers() if one.name == "norm")
    model.compile("sgd", "mse")
    values = {v.name: v.numpy() for v in layer.weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradients that are not there
        model.fit(x, x - 1, batch_size=4, verbose=0)
    moved = {v.name for v in layer.weights if not np.array_equal(v.numpy(), values[v.name])}
    assert ("moving_mean" in moved) == moves
    assert {"gamma", "beta"} & moved == set(mode.trains)
    if build is Twice:
        assert str(modes(model)[1]).startswith("is not called, trains gamma and beta")


@pytest.mark.slow
def test_a_layer_that_nobody_saw_is_judged_by_its_flags_and_says_so():
    model = InGraph()
    model(np.ones((4, 3), "float32"))
    mode, = modes(freeze_by_hand(model))
    assert mode.normalizes == "averages" and mode.moves is False
    assert "by its flags alone: 'norm' is called inside a tf.function" in mode.note
    model.norm.trainable = True
    assert modes(model)[0].normalizes == "unknown" and modes(model)[0].moves is None
    one = keras.Sequential([keras.Input((3,)), KERAS()])
    assert "one example only" in modes(one, np.ones((1, 3)))[0].note


def freeze_by_hand(model):
    model.norm.trainable = False
    return model


def test_a_cell_and_a_lambda_are_seen():
    model = keras.Sequential([keras.Input((3, 2)), layers.RNN(Cell())])
    mode, = modes(model)
    assert (mode.normalizes, mode.moves, mode.trains) == ("batch", True, ("gamma", "beta"))
    mode, = modes(KINDS["in_a_lambda"]())
    assert (mode.normalizes, mode.trains) == ("batch", ()) and "not tracked" in mode.note


# ---------------------------------------------------------------- Keras's traps


def fitted(change=None, again=False, batch_size=16):
    """Names of what the second fit moved in a layer whose flag was changed after the first."""
    x = np.random.default_rng(0).normal(5, 2, (32, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), KERAS(name="bn"),
                              layers.Dense(1)])
    norm = model.get_layer("bn")
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], batch_size=16, verbose=0)
    norm.trainable = False
    if again:
        model.compile("sgd", "mse")
    before = {v.name: v.numpy() for v in norm.weights}
    model.fit(x, x[:, :1], batch_size=batch_size, verbose=0)
    return {v.name for v in norm.weights if not np.array_equal(v.numpy(), before[v.name])}


@pytest.mark.slow
def test_a_flag_that_is_changed_after_a_fit_counts_from_the_next_compile_on():
    """As docs/surgery.md says of Keras 3.15: no warning, and no effect until it traces."""
    everything = {"gamma", "beta", "moving_mean", "moving_variance"}
    assert fitted() == everything
    assert fitted(again=True) == set()
    assert fitted(batch_size=8) == set()  # a new shape is a new graph


@pytest.mark.slow
def test_frozen_statistics_normalize_alike_in_every_way_to_run():
    for dtype in ("float64", "float32", "mixed_float16", "mixed_bfloat16"):
        model = shaken(keras.Sequential([keras.Input((4, 3)), KERAS(name="bn", dtype=dtype)]))
        frozen = freeze(model)[0]
        x = np.random.default_rng(0).normal(2, 1, (5, 4, 3))
        norm = model.get_layer("bn")
        weights = [as_array(v).astype(np.float64) for v in norm.weights]
        gamma, beta, mean, variance = weights
        expected = (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
        close = {"float64": 1e-6, "float32": 1e-5}.get(dtype, 3e-2)
        for run in (lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)):
            outputs = run(lambda x: frozen(x, training=True))(tf.constant(x.astype("float32")))
            np.testing.assert_allclose(as_array(outputs), expected, rtol=close, atol=close)
