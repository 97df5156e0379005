"""Whole models with one kind of batch normalization and with the other."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import NAMES, ZOO, inputs_of, predictions, told, training_call

from bn_keras import BatchNorm, FrozenBatchNorm, GhostBatchNorm
from bn_keras.surgery.certificate import OutputsDiffer
from bn_keras.surgery.convert import convert

KERAS = keras.layers.BatchNormalization


def layers_of(model, kind):
    return [layer for layer in model._flatten_layers() if type(layer) is kind]


def training_step(model, x):
    """Loss, gradients' norms and statistics after one step with a loss over all outputs."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - 0.5))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return float(loss), [float(tf.norm(gradient)) for gradient in gradients]


@pytest.mark.slow
def test_a_large_net_predicts_and_trains_alike():
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(64, 64, 3), classes=5, alpha=0.35
    )
    ours, _ = convert(model)
    assert len(layers_of(ours, BatchNorm)) == 52 == len(layers_of(model, KERAS))
    names = [[layer.name for layer in m.layers[1:]] for m in (ours, model)]
    assert names[0] == names[1]
    x = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(ours(x), model(x), atol=1e-5)
    (loss, norms), (expected_loss, expected_norms) = (training_step(m, x) for m in (ours, model))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    # Rounding grows through 50 layers of normalization; the largest gradients are to agree.
    np.testing.assert_allclose(norms, expected_norms, rtol=0.02, atol=1e-3 * max(expected_norms))
    for one, other in zip(ours.non_trainable_weights, model.non_trainable_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def nested():
    inner = keras.Sequential([keras.Input((3,)), KERAS(momentum=0.5, name="a")], name="inner")
    return keras.Sequential([keras.Input((3,)), inner, KERAS(axis=-1, name="b")])


def test_a_nested_model_goes_there_and_back():
    model = nested()
    x = np.random.default_rng(0).normal(2, 3, (8, 3)).astype("float32")
    model(x, training=True)
    ours, _ = convert(model)
    assert len(layers_of(ours, BatchNorm)) == 2 and not layers_of(ours, KERAS)
    back, _ = convert(ours, to=KERAS)
    assert len(layers_of(back, KERAS)) == 2 and not layers_of(back, BatchNorm)
    np.testing.assert_allclose(ours(x), model(x), atol=1e-6)
    np.testing.assert_allclose(back(x), model(x), atol=1e-6)
    assert layers_of(model, KERAS)[0].name == "a", "the given model was changed"


def test_settings_that_keras_does_not_know_are_named_all_at_once():
    model = keras.Sequential([
        keras.Input((3,)), BatchNorm(debias=True, name="one"),
        keras.Sequential([BatchNorm(one_value="error", name="two")], name="in"),
    ])
    with pytest.raises(ValueError, match=(
        r"'one' has the settings \['debias'\]; 'in/two' has the settings \['one_value'\]"
    )):
        convert(model, to=KERAS)
    with pytest.raises(ValueError, match="to=.*Dense"):
        convert(model, to=keras.layers.Dense)


@pytest.mark.slow
@pytest.mark.parametrize("name, make", list(zip(NAMES, ZOO)), ids=NAMES)
def test_every_kind_of_model_is_reached_and_trains_as_before(name, make):
    keras.utils.set_random_seed(0)
    model, x = make(), inputs_of(name)
    model(x, training=True)
    before = predictions(model, x)
    expected = len(layers_of(model, KERAS))
    ours, certificate = convert(model)
    assert type(ours) is type(model)
    assert len(layers_of(ours, BatchNorm)) == expected and not layers_of(ours, KERAS)
    hidden = name == "in_a_lambda"  # Keras does not know of that layer
    assert certificate.count("exchanged") == len(certificate.rows) == expected + hidden
    assert certificate.difference < 1e-5
    assert told(ours) == told(model)
    tolerance = 0.05 if name == "mixed_precision" else 1e-5
    compare(predictions(ours, x), before, tolerance)
    back, _ = convert(ours, to=KERAS)
    assert len(layers_of(back, KERAS)) == expected and not layers_of(back, BatchNorm)
    compare(predictions(back, x), before, tolerance)
    if name == "wrapped":  # TimeDistributed gives ours the whole sequence, and the cell is told of
        with pytest.warns(UserWarning, match="called by an RNN cell"):
            training_call(ours, x)
        compare(predictions(model, x), before, 0)
        return
    trained = training_call(ours, x)
    compare(predictions(model, x), before, 0)
    for one, other in zip(trained, training_call(model, x), strict=True):
        # A bias in front of BN has a gradient of rounding noise.
        compare(one, other, max(tolerance, 2e-5))


def compare(ones, others, tolerance):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@keras.saving.register_keras_serializable(package="test_convert")
class Frozen(KERAS):
    """Computes something else than its base."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


@keras.saving.register_keras_serializable(package="test_convert")
class Renamed(KERAS):
    """A default of its own and nothing else."""

    def __init__(self, momentum=0.8, **kwargs):
        super().__init__(momentum=momentum, **kwargs)


@keras.saving.register_keras_serializable(package="test_convert")
class Told(KERAS):
    """Its config has what no other layer takes."""

    def __init__(self, color="red", **kwargs):
        super().__init__(**kwargs)
        self.color = color

    def get_config(self):
        return {**super().get_config(), "color": self.color}


class Foreign(keras.layers.Layer):
    """Keeps population statistics and derives from nobody's batch normalization."""

    def build(self, shape):
        self.moving_mean = self.add_weight(shape=shape[-1:], trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(shape=shape[-1:], trainable=False, name="variance")

    def call(self, x):
        return x - self.moving_mean


class Lazy(keras.layers.Layer):
    """Makes its normalizer when it is built."""

    def build(self, shape):
        self.norm = KERAS()
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


def stack(*layers):
    return keras.Sequential([keras.Input((3,)), *layers])


def quiet(*arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return convert(*arguments, **keywords)


@pytest.mark.parametrize("make, reason", [
    (Frozen, "Frozen overrides call"), (Told, "color"), (Foreign, "does not derive"),
    (lambda name: KERAS(momentum=1.5, name=name), "1.5"),
])
def test_what_is_left_is_named_with_the_reason(make, reason):
    with pytest.warns(UserWarning, match=f"odd .*{re.escape(reason)}"):
        model, certificate = convert(stack(KERAS(), make(name="odd")))
    assert [type(layer) for layer in model.layers][0] is BatchNorm
    assert [row.fate for row in certificate.rows] == ["exchanged", "left"]
    assert certificate.rows[1].after is None and reason in str(certificate)
    with pytest.raises(ValueError, match=f"nothing in .* could be exchanged: odd .*{reason}"):
        convert(stack(make(name="odd")))


def test_a_layer_whose_call_was_replaced_is_left():
    model = stack(KERAS(), KERAS(name="odd"))
    model.layers[1].call = lambda inputs, **_: inputs
    with pytest.warns(UserWarning, match="odd .*call of this very layer was replaced"):
        convert(model)


def test_a_subclass_with_nothing_of_its_own_is_exchanged_with_its_settings():
    model, _ = quiet(stack(Renamed(name="bn")))
    assert type(model.layers[0]) is BatchNorm and model.layers[0].momentum == 0.8


def test_variants_of_ours_are_never_exchanged_for_plain_ones():
    model = stack(BatchNorm(), GhostBatchNorm(virtual_batch_size=2, name="ghost"))
    with pytest.warns(UserWarning, match="ghost .GhostBatchNorm.: GhostBatchNorm overrides"):
        back, _ = convert(model, to=KERAS)
    assert [type(layer) for layer in back.layers] == [KERAS, GhostBatchNorm]
    with pytest.raises(ValueError, match="nothing .*FrozenBatchNorm"):
        convert(stack(FrozenBatchNorm(freeze="affine")), to=KERAS)


def test_what_is_of_the_wanted_kind_already_stays_without_a_warning():
    model = stack(BatchNorm(debias=True), GhostBatchNorm(), KERAS())
    ours, certificate = quiet(model)
    assert [row.fate for row in certificate.rows] == ["already", "already", "exchanged"]
    assert [type(layer) for layer in ours.layers] == [BatchNorm, GhostBatchNorm, BatchNorm]
    assert quiet(ours)[1].count("already") == 3
    frozen, certificate = quiet(stack(Frozen(), KERAS()), to=KERAS)
    assert certificate.count("already") == 2 and type(frozen.layers[0]) is Frozen


def test_a_weight_that_was_frozen_by_itself_stays_so():
    model = stack(KERAS())
    model.layers[0].gamma.trainable = False
    names = [v.name for v in convert(model)[0].trainable_variables]
    assert names == [v.name for v in model.trainable_variables] == ["beta"]


def test_a_model_without_normalization_is_copied_with_a_warning():
    model = stack(keras.layers.Dense(2))
    with pytest.warns(UserWarning, match="no batch normalization"):
        copy, certificate = convert(model)
    assert copy is not model and certificate.rows == () and certificate.difference == 0


@pytest.mark.filterwarnings("ignore:.*build... was called")
def test_a_layer_that_was_never_built_is_not_said_to_be_fine():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.lazy = KERAS(), Lazy(name="lazy")

        def call(self, x):
            return self.used(x)

    model = Model()
    model(np.ones((2, 3)))
    with pytest.warns(UserWarning, match="lazy .Lazy.: was never called"):
        convert(model)


def test_time_steps_and_layers_in_no_config_are_noted():
    steps = keras.layers.TimeDistributed(KERAS(name="bn"), name="steps")
    model = keras.Sequential([keras.Input((4, 3)), steps])
    model_of_ours, certificate = quiet(model)
    assert certificate.rows[0].note.startswith("trains over batch and time")
    back = convert(model_of_ours, to=KERAS)[1]
    assert "each time step is normalized by itself" in back.rows[0].note
    assert certificate.rows[0].path == "steps/bn"
    composite = dict(zip(NAMES, ZOO))["composite"]()
    rows = quiet(composite)[1].rows
    assert len(rows) == 4 and all("not in the model's config" in row.note for row in rows)


def test_the_certificate_says_why_nothing_was_measured():
    words = keras.layers.StringLookup(vocabulary=["a"], output_mode="multi_hot")
    model = keras.Sequential([keras.Input((2,), dtype="string"), words, KERAS()])
    certificate = convert(model)[1]
    assert certificate.difference is None and "dtype string" in certificate.measured
    assert "not measured" in str(certificate)


class Counting(keras.layers.Layer):
    """Has a state that inference moves."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def test_measuring_leaves_both_models_as_they_were():
    model = stack(Counting(), KERAS())
    before = [np.array(v.numpy()) for v in model.variables]
    ours = convert(model)[0]
    for was, one, other in zip(before, model.variables, ours.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), was)
        np.testing.assert_array_equal(other.numpy(), was)


@pytest.mark.slow
def test_a_compiled_model_stays_so_and_its_copy_is_compiled_by_hand():
    model, x = stack(keras.layers.Dense(2), KERAS()), inputs_of("")
    model.compile("sgd", "mse")
    ours, _ = convert(model)
    assert model.compiled and not ours.compiled
    ours.compile_from_config(model.get_compile_config())
    for net in (model, ours):
        net.fit(x, x[:, :2], batch_size=3, shuffle=False, epochs=2, verbose=0)
    compare(ours.get_weights(), model.get_weights(), 1e-5)


def test_a_converted_model_is_saved_cloned_and_loaded(tmp_path):
    model, x = dict(zip(NAMES, ZOO))["shared"](), inputs_of("shared")
    model(x, training=True)
    ours, _ = convert(model)
    ours.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(ours)
    clone.set_weights(ours.get_weights())
    for other in (loaded, clone):
        assert len(layers_of(other, BatchNorm)) == 2
        compare(predictions(other, x), predictions(model, x), 1e-5)


@pytest.mark.parametrize("thing, error, words", [
    (KERAS(), TypeError, "received a BatchNormalization; expected a keras.Model"),
    ("model.keras", TypeError, "received a str"),
    (keras.Sequential([KERAS()]), ValueError, "not built.*expected a model that was called once"),
])
def test_what_is_no_built_model_is_refused(thing, error, words):
    with pytest.raises(error, match=f"convert: .*{words}"):
        convert(thing)


def test_a_difference_above_the_tolerance_is_refused_with_the_certificate():
    """Keras's population variance far from zero differs from ours; a tolerance of 0 finds that."""
    model = keras.Sequential([keras.Input((3,)), KERAS()])
    model.layers[0].moving_mean.assign([1e3, 1.0, -1.0])
    x = np.random.default_rng(0).normal(1e3, 1e-2, (8, 3)).astype("float32")
    _, certificate = convert(model, inputs=x)
    expected = np.abs(model(x) - convert(model)[0](x)).max()
    assert certificate.difference == expected and "given inputs of shape (8, 3)" in str(certificate)
    assert certificate.relative == expected / np.abs(model(x)).max()
    with pytest.raises(OutputsDiffer, match="may differ by 0 of the largest; received:\nlayer "):
        convert(model, inputs=x, tolerance=0)
    with pytest.raises(OutputsDiffer, match="not measured"):
        convert(model, inputs="x", tolerance=1.0)
