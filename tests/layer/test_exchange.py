"""Whole models with other normalizers compute what a net made with those computes."""

import keras
import make
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers
from zoo import NAMES, ZOO, inputs_of, predictions, told, training_call

from bn_keras import (
    BatchNorm,
    BatchRenorm,
    ConditionalBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    statistics,
)
from bn_keras.registry import NORMALIZERS
from bn_keras.surgery.adapted import Adapted
from bn_keras.surgery.exchange import exchange, replacement

KERAS = layers.BatchNormalization
KINDS = dict(zip(NAMES, ZOO))
EPSILON = 1e-3


def certified(model, normalizer):
    return exchange(model, lambda layer: replacement(layer, normalizer))


def exchanged(model, normalizer):
    return certified(model, normalizer)[0]


def shaken(model):
    """The model with scales, offsets and all else away from where they start."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def close(ones, others, tolerance=1e-5):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# A layer of that normalizer as somebody would write it, `(momentum, **settings)`.
NATIVE = {
    "none": lambda momentum, **settings: layers.Identity(**settings),
    "layer": lambda momentum, **settings: layers.LayerNormalization(**settings),
    "ghost": lambda momentum, **settings: GhostBatchNorm(
        virtual_batch_size=16, momentum=momentum, **settings
    ),
}

QUICK = ("sequential", "subclassed", "shared", "in_a_lambda")


@pytest.mark.slow
@pytest.mark.parametrize("name, normalizer", [
    (name, normalizer) for name in NAMES for normalizer in NATIVE
    if normalizer != "ghost" or name in QUICK
])
def test_a_model_is_as_if_it_had_been_made_with_the_other_normalizer(
    name, normalizer, monkeypatch
):
    model, x = shaken(KINDS[name]()), inputs_of(name)
    before, was = told(model), [weight.numpy() for weight in model.weights]
    new = exchanged(model, normalizer)
    native_layer = NATIVE[normalizer]
    monkeypatch.setattr(zoo, "BN", lambda momentum=0.99, **kw: native_layer(momentum, **kw))
    native = KINDS[name]()
    native.set_weights(new.get_weights())
    for one, other in zip(new._flatten_layers(), model._flatten_layers()):
        assert one is not other
    tolerance = 0.05 if name == "mixed_precision" else 1e-5
    close(predictions(new, x), predictions(native, x), tolerance)
    if (name, normalizer) == ("wrapped", "ghost"):
        return  # a cell gives it one time step at a time, of which it warns
    for one, other in zip(training_call(new, x), training_call(native, x), strict=True):
        close(one, other, max(tolerance, 2e-5))
    assert told(model) == before
    close([weight.numpy() for weight in model.weights], was, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_normalizers_is_equal(name):
    model = shaken(KINDS[name]())
    new = exchanged(model, "layer")
    assert type(new) is type(model) and not statistics.batch_normalizers(new)

    def rest(net):
        kinds = (KERAS, layers.LayerNormalization, Adapted)
        return [layer for layer in net._flatten_layers() if not isinstance(layer, kinds)]

    def facts(net):
        return [
            (layer.name, layer.path, layer.trainable, [v.path for v in layer._trainable_variables])
            for layer in rest(net)
        ]

    assert facts(new) == facts(model)
    for one, other in zip(rest(new), rest(model)):
        close([v.numpy() for v in one._trainable_variables],
              [v.numpy() for v in other._trainable_variables], 0)
    names = [[layer.name for layer in net.layers] for net in (new, model)]
    assert names[0] == names[1]
    assert {v.path for v in new.weights} <= {v.path for v in model.weights}


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS.names())
def test_every_registered_normalizer_gets_into_a_model_and_a_file(normalizer, tmp_path):
    model = shaken(keras.Sequential([
        keras.Input((4, 4, 3)), layers.Conv2D(4, 3, use_bias=False), KERAS(name="one"),
        layers.ReLU(), layers.Flatten(), layers.Dense(6), KERAS(momentum=0.5, name="other"),
    ]))
    if NORMALIZERS.properties(normalizer).keys() & {"standardizes_kernels", "scales_branches"}:
        with pytest.raises(ValueError, match=f"'{normalizer}' is more than a layer"):
            exchanged(model, normalizer)
        return
    new = exchanged(model, normalizer)
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype("float32")
    outputs, gradients, _ = training_call(new, x)
    assert np.isfinite(outputs[0]).all() and len(gradients) == len(new.trainable_weights)
    new.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in new.layers]
    close(predictions(loaded, x), predictions(new, x))
    assert getattr(new.get_layer("other"), "momentum", 0.5) == 0.5


@pytest.mark.parametrize("kind, name", [(KERAS, "batch"), (BatchNorm, "keras_batch")])
def test_batch_and_keras_batch_are_exchanged_with_their_statistics(kind, name):
    model = shaken(keras.Sequential([
        keras.Input((3,)), kind(momentum=0.7, epsilon=0.1, center=False),
    ]))
    new, certificate = certified(model, name)
    layer = new.layers[0]
    assert (layer.momentum, layer.epsilon, layer.beta) == (0.7, 0.1, None)
    assert certificate.difference < 1e-6 and certificate.count("exchanged") == 1
    assert statistics.snapshot(new).keys() == statistics.snapshot(model).keys()
    close(new.get_weights(), model.get_weights(), 0)


# ------------------------------------------------------------------- against NumPy


def by_hand(x, kernel, gamma, beta, normalizer, axis):
    """A dense layer, and a normalizer in training, in float64."""
    x, kernel, gamma, beta = (np.asarray(a, np.float64) for a in (x, kernel, gamma, beta))
    x = np.moveaxis(x @ kernel, axis, -1)
    over = {"layer": -1, "batch": tuple(range(x.ndim - 1))}.get(normalizer)
    if over is not None:
        x = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + EPSILON)
        x = x * gamma + beta
    return np.moveaxis(x, -1, axis)


TOLERANCES = {"float64": 1e-6, "float32": 1e-5, "mixed_float16": 2e-2, "float16": 3e-2}


@make.product_of(
    normalizer=["none", "layer", "batch"], dtype=TOLERANCES.keys(), axis=[1, -1], how=make.MODES,
)
def test_outputs_are_those_of_numpy_in_every_dtype_and_way_to_run(normalizer, dtype, axis, how):
    inputs = keras.Input((4, 3), dtype="float64" if dtype == "float64" else "float32")
    x = layers.Dense(5, use_bias=False, dtype=dtype, name="dense")(inputs)
    x = KERAS(axis=axis, epsilon=EPSILON, dtype=dtype, name="norm")(x)
    model = shaken(keras.Model(inputs, x))
    kernel, gamma, beta = (model.weights[n].numpy() for n in range(3))
    new = exchanged(model, normalizer)
    assert new.get_layer("norm").compute_dtype == model.get_layer("norm").compute_dtype
    x = np.random.default_rng(2).normal(size=(6, 4, 3)).astype(inputs.dtype)
    expected = by_hand(x, kernel, gamma, beta, normalizer, axis)
    outputs = how(lambda x: new(x, training=True))(tf.constant(x))
    assert outputs.dtype == model(x).dtype
    close([np.asarray(outputs, np.float64)], [expected], TOLERANCES[dtype])


# ----------------------------------------------------------------- calls and masks


def explicit_mask():
    inputs, kept = keras.Input((4, 3)), keras.Input((4,), dtype="bool")
    x = KERAS(name="norm")(inputs, mask=kept, training=False)
    return keras.Model([inputs, kept], layers.GlobalAveragePooling1D()(x))


def masked():
    inputs = keras.Input((4, 3))
    x = KERAS(name="norm")(layers.Masking(0.0)(inputs))
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


@pytest.mark.parametrize("build", [masked, explicit_mask])
@pytest.mark.parametrize("normalizer", ["none", "layer", "batch"])
def test_a_mask_goes_on_behind_the_new_layer_also_in_a_file(build, normalizer, tmp_path):
    x = inputs_of("masked")
    given = x if build is masked else [x, np.any(x != 0, -1)]
    new = exchanged(build(), normalizer)
    assert isinstance(new.get_layer("norm"), Adapted) == (normalizer != "batch")
    kept = x[:, :2].astype(np.float64)  # the other two time steps are masked
    if normalizer == "layer":
        kept = (kept - kept.mean(-1, keepdims=True)) / np.sqrt(
            kept.var(-1, keepdims=True) + EPSILON
        )
    elif normalizer == "batch":
        kept = kept / np.sqrt(1 + EPSILON)
    new.save(tmp_path / "new.keras")
    for net in (new, keras.models.load_model(tmp_path / "new.keras")):
        np.testing.assert_allclose(net(given), kept.mean(1), rtol=1e-5, atol=1e-5)


@keras.saving.register_keras_serializable(package="test_exchange")
class InCode(keras.Model):
    """Calls its normalizer with all that a batch normalization takes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = KERAS(name="norm")

    def call(self, x, training=False):
        return self.norm(x, training=training, mask=keras.ops.any(x != 0, -1))


def test_code_that_hands_a_mask_to_its_normalizer_goes_on_working():
    model, x = InCode(), inputs_of("masked")
    model(x)
    new = exchanged(model, "layer")
    assert type(new.norm) is Adapted and type(new.norm.layer) is layers.LayerNormalization
    expected = layers.LayerNormalization(epsilon=EPSILON)(x)
    for training in (False, True):
        np.testing.assert_allclose(new(x, training=training), expected, rtol=1e-5, atol=1e-5)
    again = exchanged(new, "batch")  # and back: what was adapted takes a batch normalization
    assert type(again.norm.layer) is BatchNorm
    np.testing.assert_allclose(
        again(x, training=True), exchanged(model, "batch")(x, training=True), rtol=1e-5
    )


def test_a_model_of_somebody_s_own_that_was_loaded_is_exchanged_and_measured(tmp_path):
    model, x = InCode(), inputs_of("masked")
    model(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    new, certificate = certified(loaded, "layer")
    close(predictions(new, x), predictions(exchanged(model, "layer"), x))
    row, = certificate.rows
    assert (row.path, row.after) == ("norm", "LayerNormalization") and certificate.difference > 0.1
    assert "the model's config: do it again after loading" in row.note


def test_arguments_that_the_new_layer_does_not_know_are_refused():
    inputs, gamma = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([inputs, gamma], ConditionalBatchNorm(name="norm")(inputs, gamma=gamma))
    with pytest.raises(ValueError, match="Identity .*'norm' .*the model calls it with gamma"):
        exchanged(model, "none")


# --------------------------------------------------------------- settings of a place


def test_a_place_keeps_its_settings_and_what_was_frozen():
    old = KERAS(
        axis=1, scale=False, beta_initializer="ones", beta_regularizer="l2", name="bn",
        trainable=False, dtype="mixed_bfloat16", epsilon=0.5, momentum=0.25,
    )
    new = replacement(old, "layer")
    assert (new.name, new.axis, new.scale, new.epsilon) == ("bn", 1, False, 0.5)
    assert not new.trainable
    assert isinstance(new.beta_initializer, keras.initializers.Ones)
    assert isinstance(new.beta_regularizer, keras.regularizers.L2)
    assert new.dtype_policy.name == "mixed_bfloat16" and not new.built
    asked = replacement(old, "ghost", momentum=0.75, epsilon=0.125)
    assert (asked.momentum, asked.epsilon, asked.virtual_batch_size) == (0.75, 0.125, 16)
    from_layer = replacement(layers.LayerNormalization(name="ln"), "batch")
    assert (from_layer.momentum, from_layer.epsilon) == (0.99, 1e-3)


def test_weights_that_both_have_go_along_and_only_own_freezes_do():
    model = shaken(keras.Sequential([keras.Input((3,)), KERAS(name="bn")]))
    model.layers[0].gamma.trainable = False
    old = model.layers[0]
    new = exchanged(model, "layer").layers[0]
    close([new.gamma.numpy(), new.beta.numpy()], [old.gamma.numpy(), old.beta.numpy()], 0)
    assert not new.gamma.trainable and new.beta.trainable
    renorm = exchanged(model, "renorm").layers[0]
    close([renorm.renorm_mean.numpy()], [old.moving_mean.numpy()], 0)
    close([renorm.renorm_stddev.numpy()] * 2,
          [renorm.moving_stddev.numpy(), np.sqrt(old.moving_variance.numpy() + EPSILON)])
    # FrozenBatchNorm does not train gamma by itself: the next normalizer in its place does
    affine = keras.Sequential([keras.Input((3,)), FrozenBatchNorm(freeze="affine")])
    assert len(exchanged(affine, "batch").trainable_weights) == 2


def test_a_frozen_normalizer_gets_a_frozen_one():
    model = keras.Sequential([keras.Input((3,)), KERAS(trainable=False), KERAS()])
    new = exchanged(model, "layer")
    assert [layer.trainable for layer in new.layers] == [False, True]
    assert len(new.trainable_weights) == 2


def test_renorm_starts_from_the_statistics_of_a_trained_net():
    model = shaken(keras.Sequential([keras.Input((3,)), BatchNorm()]))
    new, _ = exchange(model, lambda layer: BatchRenorm(name="anything"))
    assert new.layers[0].name == model.layers[0].name
    assert np.all(new.layers[0].moving_mean.numpy() == 0), "make alone says what goes along"


def test_none_keeps_a_layer_and_the_certificate_says_so():
    model = keras.Sequential([keras.Input((3,)), KERAS(name="a"), KERAS(name="b")])
    new, certificate = exchange(
        model, lambda layer: None if layer.name == "a" else layers.Identity()
    )
    assert [type(layer) for layer in new.layers] == [KERAS, layers.Identity]
    assert [(row.path, row.after, row.fate) for row in certificate.rows] == [
        ("a", None, "kept"), ("b", "Identity", "exchanged"),
    ]
    assert "exchange: 1 kept, 1 exchanged; outputs differ by" in str(certificate)


def test_in_a_model_without_batch_normalization_the_other_normalizers_are_exchanged():
    model = keras.Sequential([
        keras.Input((3,)), layers.LayerNormalization(), layers.RMSNormalization(),
        layers.GroupNormalization(1),
    ])
    assert [type(layer) for layer in exchanged(model, "batch").layers] == [BatchNorm] * 3
    both = keras.Sequential([keras.Input((3,)), layers.LayerNormalization(), KERAS()])
    kinds = [type(layer) for layer in exchanged(both, "none").layers]
    assert kinds == [layers.LayerNormalization, layers.Identity]


# ------------------------------------------------------------------------- refusals


class Reads(keras.Model):
    """Its code looks at the statistics."""

    def __init__(self, only_in_training=False):
        super().__init__()
        self.norm, self.only = KERAS(name="norm"), only_in_training

    def call(self, x, training=False):
        x = self.norm(x, training=training)
        return x if self.only and not training else x + self.norm.moving_mean


class Refers(keras.Model):
    """Has a name of its own for a statistic."""

    def __init__(self):
        super().__init__()
        self.norm = KERAS(name="norm")

    def build(self, shape):
        self.norm.build(shape)
        self.statistic = self.norm.moving_mean

    def call(self, x):
        return self.norm(x) + self.statistic


@pytest.mark.parametrize("only_in_training", [False, True])
def test_code_that_reads_statistics_is_named_where_the_new_layer_has_none(only_in_training):
    model = Reads(only_in_training)
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match="reads.* cannot be called .*'moving_mean'.*ers .norm."):
        exchanged(model, "layer")
    assert type(exchanged(model, "ghost").norm) is GhostBatchNorm


def test_an_attribute_that_is_a_weight_of_a_normalizer_is_named():
    model = Refers()
    model(np.ones((2, 3)))
    with pytest.raises(TypeError, match="'refers.*'statistic'.*'moving_mean' of 'norm', which"):
        exchanged(model, "none")
    new = exchanged(model, "batch")
    assert new.statistic is new.norm.moving_mean


USED = layers.Identity()
USED(keras.Input((3,)))


@pytest.mark.parametrize("give, error, words", [
    (lambda layer: "relu", TypeError, "make gave 'relu' for 'bn'; expected a keras.Layer"),
    (lambda layer: layer, ValueError, "a layer for 'bn' that is in use already"),
    (lambda layer: USED, ValueError, "a layer for 'bn' that is in use already"),
    (lambda layer: layers.Dense(2), ValueError, r"Dense .*place of 'bn'.*turns shape \(None, 3\)"),
    (lambda layer: layers.GroupNormalization(2), ValueError, "GroupNormalization.*'bn'.*multiple"),
])
def test_what_does_not_fit_is_refused_by_name(give, error, words):
    model = keras.Sequential([keras.Input((3,)), KERAS(name="bn")])
    with pytest.raises(error, match=words):
        exchange(model, give)


def test_one_new_layer_for_two_places_is_refused():
    model = keras.Sequential([keras.Input((3,)), KERAS(name="a"), KERAS(name="b")])
    one = BatchNorm()
    with pytest.raises(ValueError, match="for 'b' that is in use already"):
        exchange(model, lambda layer: one)
    in_code = InCode()
    in_code(np.ones((2, 4, 3)))
    with pytest.raises(ValueError, match="for 'norm' that is in use already"):
        exchange(in_code, lambda layer: layer)


def test_models_that_cannot_be_operated_are_refused():
    with pytest.raises(ValueError, match="has no normalizers; expected"):
        exchanged(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), "none")
    with pytest.raises(ValueError, match="exchange: .*not built"):
        exchanged(keras.Sequential([KERAS()]), "none")
    with pytest.raises(TypeError, match="exchange: received a BatchNormalization"):
        exchanged(KERAS(), "none")
    with pytest.raises(ValueError, match="unknown normalizer 'btach'.*did you mean 'batch'"):
        exchanged(keras.Sequential([keras.Input((3,)), KERAS()]), "btach")


class Foreign(layers.Layer):
    """Keeps statistics for each position."""

    def build(self, shape):
        self.moving_mean = self.add_weight(shape=shape[1:], trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(shape=shape[1:], trainable=False, name="variance")

    def call(self, x):
        return x - self.moving_mean


@pytest.mark.parametrize("old, new, words", [
    (layers.LayerNormalization(axis=[1, 2], name="old"), "batch", r"along the axes \[1, 2\]"),
    (Foreign(name="old"), "layer", r"statistics have the shape \(4, 3\)"),
    (KERAS(momentum=1.5, name="old"), "batch", "1.5"),
    (BatchNorm(momentum=None, name="old"), "keras_batch", "float"),
])
def test_a_place_that_a_normalizer_does_not_fit_is_named(old, new, words):
    model = keras.Sequential([keras.Input((4, 3)), old])
    with pytest.raises(ValueError, match=f"'{new}' does not fit the place of 'old' .*{words}"):
        exchanged(model, new)


class Bare(layers.Layer):
    """Somebody's batch normalization, without a config."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones", name="gamma")
        self.moving_mean = self.add_weight(shape=shape[-1:], trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(shape=shape[-1:], trainable=False)

    def call(self, x):
        return self.function(x) * self.gamma - self.moving_mean


def test_a_batch_normalization_of_somebody_s_own_is_exchanged():
    model = shaken(keras.Sequential([keras.Input((3,)), Bare(lambda x: x)]))
    new, old = exchanged(model, "batch").layers[0], model.layers[0]
    close([new.gamma.numpy(), new.moving_mean.numpy()],
          [old.gamma.numpy(), old.moving_mean.numpy()], 0)
    assert new.axis == -1 and np.all(new.beta.numpy() == 0)


class NoAxis(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:])

    def call(self, x):
        return x * self.scale


def test_a_normalizer_without_an_axis_is_refused_where_channels_are_not_last(monkeypatch):
    monkeypatch.setitem(
        NORMALIZERS._registered, "no_axis", (lambda *_, name=None, dtype=None, **__: NoAxis(), {})
    )
    model = keras.Sequential([keras.Input((4, 3)), KERAS(axis=1, name="old")])
    with pytest.raises(ValueError, match="'no_axis' .*'old'.* no axis, .* on axis 1"):
        exchanged(model, "no_axis")
    last = keras.Sequential([keras.Input((4, 3)), KERAS(axis=2)])
    assert type(exchanged(last, "no_axis").layers[0]) is NoAxis


# -------------------------------------------------------------------------- by name


def two():
    return shaken(keras.Sequential([
        keras.Input((4, 6)), KERAS(momentum=0.7, epsilon=0.1, name="a"),
        BatchNorm(debias=True, name="b"),
    ]))


@pytest.mark.parametrize("name, settings, kind", [
    ("group", {"groups": 2}, "GroupNorm"), ("layer", {}, "LayerNormalization"),
    ("ghost", {"virtual_batch_size": 3, "momentum": 0.5}, "GhostBatchNorm"),
    ("none", {}, "Identity"), ("batch", {"synchronized": True}, "BatchNorm"),
    ("renorm", {"rmax": 2.0}, "BatchRenorm"), ("frozen_statistics", {}, "FrozenBatchNorm"),
    ("keras_batch", {"synchronized": True, "epsilon": 0.2}, "BatchNormalization"),
])
def test_a_name_and_its_settings_stand_for_a_function(name, settings, kind):
    model = two()
    if name == "keras_batch":
        model = keras.Sequential([keras.Input((4, 6)), KERAS(), BatchNorm()])
    new, certificate = exchange(model, name, **settings)
    assert [row.after for row in certificate.rows] == [kind] * 2
    for old, layer in zip(model.layers, new.layers, strict=True):
        assert {key: getattr(layer, key) for key in settings} == settings
        for weight in ("gamma", "beta", "moving_mean"):
            if getattr(layer, weight, None) is not None:
                close([getattr(layer, weight).numpy()], [getattr(old, weight).numpy()], 0)


def test_between_keras_and_ours_every_setting_goes_along_and_equal_layers_stay():
    model = keras.Sequential([
        keras.Input((3,)), KERAS(synchronized=True, name="a"), BatchNorm(debias=True, name="b"),
    ])
    new, certificate = exchange(model, "batch")
    assert new.layers[0].synchronized and new.layers[1].debias
    assert [(row.path, row.fate) for row in certificate.rows] == [
        ("a", "exchanged"), ("b", "already"),
    ]
    assert certificate.difference == 0
    with pytest.raises(ValueError, match="'keras_batch' does not fit the place of 'b'.*debias"):
        exchange(model, "keras_batch")


def test_names_and_settings_that_do_not_exist_are_refused():
    model = two()
    with pytest.raises(ValueError, match="unknown normalizer 'gropu'; known: .*mean 'group'"):
        exchange(model, "gropu")
    with pytest.raises(ValueError, match="'group' .GroupNorm. has no setting 'group'; .*'groups'"):
        exchange(model, "group", group=2)
    with pytest.raises(ValueError, match="'none' .Identity. has no setting 'momentum'; .*: none"):
        exchange(model, "none", momentum=0.5)
    with pytest.raises(ValueError, match="has no setting 'axis'"):
        exchange(model, "batch", axis=1)
    with pytest.raises(ValueError, match="the settings .'groups'. with a function"):
        exchange(model, lambda layer: None, groups=2)
    for to in (BatchNorm, 3):
        with pytest.raises(TypeError, match="exchange: to=.*; expected the name of a normalizer"):
            exchange(model, to)
