"""Findings on channels, neighbours and freezes, against NumPy, published numbers and `fit`."""

import warnings

import faults
import keras
import numpy as np
import pytest
from keras import layers

import bn_keras
from bn_keras import BatchNorm
from bn_keras.diagnosis import doctor
from bn_keras.surgery import statistics


def only(name, model, data=None, **options):
    """The findings of a name, and the doctor's answer."""
    found = doctor(model, data, only=name, **options)
    assert found.looked == (name,), found.not_looked
    return list(found.findings)


def model_of(*parts, shape):
    return keras.Sequential([keras.Input(shape), *parts])


@pytest.mark.slow
@pytest.mark.parametrize("activation, ratio", [("linear", 2.0), ("relu", 2.467)])
def test_the_shift_of_the_variance_is_that_of_li_et_al(activation, ratio):
    """2.00 for inputs of mean 0 and 2.47 behind a relu, at a keep rate of .5."""
    x = np.random.default_rng(0).normal(size=(2000, 40)).astype("float32")
    parts = layers.Activation(activation), layers.Dropout(0.5, seed=1), layers.BatchNormalization()
    finding, = only("dropout_in_front", model_of(*parts, shape=(40,)), x, examples=2000)
    found, = finding.evidence["ratio"].values()
    assert found == pytest.approx(ratio, rel=0.02)
    # E[x²] / keep - E[x]² over E[x²] - E[x]², with E[x²] = 1/2 and E[x] = 1/√(2π) behind a relu
    second, mean = (1.0, 0.0) if activation == "linear" else (0.5, (2 * np.pi) ** -0.5)
    assert (second / 0.5 - mean**2) / (second - mean**2) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.slow
def test_dead_channels_are_counted_behind_what_stands_between_and_not_in_gates():
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 10)).astype("float32")
    beta = np.repeat([-9.0, 9.0, 0.0], [3, 2, 5])

    def count(behind, gate=False):
        inputs = keras.Input((4, 4, 10))
        norm = layers.BatchNormalization(name="norm")
        model = keras.Model(inputs, behind(norm(inputs)))
        norm.beta.assign(beta)
        found = only("dead_channels", model, x)
        return found[0].evidence["dead"]["norm"] if found else 0

    assert count(lambda y: layers.ReLU()(y)) == 3
    assert count(lambda y: layers.ReLU(6.0)(y)) == 5
    assert count(lambda y: keras.ops.sigmoid(2 * y)) == 0  # the factor is not looked behind
    assert count(lambda y: keras.ops.relu(layers.MaxPooling2D()(y))) == 3
    assert count(lambda y: keras.ops.relu(layers.Add()([y, y]))) == 3
    assert count(lambda y: y * keras.ops.sigmoid(y)) == 0
    assert count(layers.Activation("silu")) == 0


@pytest.mark.parametrize("between, redundant", [
    ([], True), ([layers.MaxPooling2D()], True), ([layers.ZeroPadding2D()], False),
    ([layers.ReLU()], False), ([layers.Dropout(0.5)], False),
], ids=["directly", "pooling", "padding", "relu", "dropout"])
def test_a_bias_is_redundant_where_training_does_not_feel_it(between, redundant):
    conv = layers.Conv2D(3, 3)
    model = model_of(conv, *between, layers.BatchNormalization(), shape=(6, 6, 2))
    assert bool(only("redundant_bias", model)) == redundant
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    outputs = []
    for bias in (0.0, 2.0):
        conv.bias.assign(np.full(3, bias))
        for layer in between:
            if isinstance(layer, layers.Dropout):
                layer.seed_generator.state.assign([0, 0])
        outputs.append(np.asarray(model(x, training=True)))
    assert np.allclose(*outputs, atol=1e-3) == redundant


@pytest.mark.parametrize("make", [
    faults.frozen_after_fit, faults.frozen_by_variable, faults.only_normalizers_train,
    faults.training_false_in_the_graph,
], ids=lambda make: make.__name__)
@pytest.mark.slow
def test_fit_moves_what_the_finding_says_it_moves(make):
    model, (x, y) = make()
    finding, = only("frozen_or_trainable", model, (x, y))
    model.optimizer.learning_rate = 0.1
    before = statistics.snapshot(model)
    layer = faults.normalizer(model)
    gamma = np.array(layer.gamma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, of flags that were changed after compile
        model.fit(x, y, verbose=0)
    after = statistics.snapshot(model)
    assert not any(np.array_equal(before[path], after[path]) for path in before)
    assert (make is faults.frozen_by_variable) == np.array_equal(gamma, layer.gamma)


@pytest.mark.slow
def test_updates_in_half_precision_stall_where_the_finding_says():
    model, data = faults.float16_everywhere()
    finding, = only("half_precision_statistics", model, data)
    moving, aim = np.float16(0), np.float32(1.4)
    for _ in range(5000):  # Keras computes in float32 and stores in float16
        moving = np.float16(np.float32(moving) * np.float32(0.99) + aim * np.float32(0.01))
    stall = finding.evidence["updates stall within"]
    assert 0.5 * stall < (aim - moving) / aim < stall


def test_the_first_gammas_of_a_residual_branch_are_no_decayed_ones():
    norm = layers.BatchNormalization(gamma_initializer="zeros")
    assert not only("gamma_decayed", model_of(norm, shape=(4,)))


def test_a_bias_in_front_of_a_frozen_normalizer_is_needed():
    norm = layers.BatchNormalization(trainable=False)
    assert not only("redundant_bias", model_of(layers.Dense(4), norm, shape=(4,)))


def test_a_bias_that_goes_elsewhere_too_is_needed():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    norm = layers.BatchNormalization()
    assert not only("redundant_bias", keras.Model(inputs, layers.Add()([x, norm(x)])))
    assert not only("redundant_bias", keras.Model(inputs, [x, norm(x)]))
    assert only("redundant_bias", keras.Model(inputs, norm(x)))


def test_a_new_head_on_a_frozen_net_is_no_trap():
    base = layers.Dense(8, trainable=False)
    model = model_of(base, layers.BatchNormalization(), layers.Dense(2), shape=(4,))
    assert not only("frozen_or_trainable", model)


# ---------------------------------------------------------------- remedies


def test_the_layer_without_a_bias_is_the_same_in_all_else():
    conv = layers.Conv2D(4, 3, strides=2, padding="same", kernel_regularizer="l2", name="conv")
    block = keras.Sequential(
        [keras.Input((8, 8, 3)), conv, layers.BatchNormalization()], name="block"
    )
    model = model_of(block, shape=(8, 8, 3))
    code = only("redundant_bias", model)[0].remedy
    assert code.endswith("# in place of block/conv")
    scope = {"model": model}
    exec(code.replace("type(layer).from_config", "new = type(layer).from_config"), scope)
    assert scope["new"].get_config() == {**conv.get_config(), "use_bias": False}


def test_settings_are_mended_where_they_are_wrong_and_nowhere_else():
    momenta = [0.1, None, 0.0, 0.9]
    model = model_of(*(BatchNorm(momentum=m, name=f"n{m}") for m in momenta), shape=(4,))
    finding, = only("foreign_momentum", model)
    assert finding.layers == ("n0.1", "n0.0")
    exec(finding.remedy, {"model": model})
    assert [layer.momentum for layer in model.layers] == [0.9, None, 0.99, 0.9]
    small, large = BatchNorm(name="small"), layers.BatchNormalization(name="large", epsilon=2e-3)
    small.build((None, 4)), small.moving_variance.assign(np.full(4, 1e-5))
    model = model_of(large, small, shape=(4,))
    finding, = only("foreign_epsilon", model, np.ones((8, 4), "float32"))
    exec(finding.remedy, {"model": model})
    assert (small.epsilon, large.epsilon) == (1e-5, 2e-3)


def test_layers_of_the_same_name_are_told_apart_in_a_remedy():
    def block(name, momentum):
        return keras.Sequential(
            [keras.Input((4,)), layers.BatchNormalization(momentum=momentum, name="bn")], name=name
        )

    model = model_of(block("a", 0.95), block("b", 0.1), shape=(4,))
    exec(only("foreign_momentum", model)[0].remedy, {"model": model})
    found = [layer.momentum for layer in bn_keras.statistics.batch_normalizers(model)]
    assert found == [0.95, 0.9]


@pytest.mark.parametrize("momentum", [None, 1.0])
def test_half_precision_without_a_window_says_no_number(momentum):
    model = model_of(layers.BatchNormalization(dtype="float16"), shape=(4,))
    model.layers[0].momentum = momentum
    finding, = only("half_precision_statistics", model)
    assert "float16: small updates are rounded away" in finding.symptom
    assert finding.evidence["updates stall within"] is None


@pytest.mark.slow
@pytest.mark.parametrize("penalty, decay", [
    ("l2", None), (None, 0.1), ("l2", 0.1), (None, None),
], ids=["penalty", "decay", "both", "neither"])
def test_every_cause_of_a_decayed_gamma_is_taken_off(penalty, decay):
    norm = layers.BatchNormalization(gamma_regularizer=penalty)
    model = model_of(norm, layers.Dense(3), shape=(4,))
    norm.gamma.assign([1e-5, 1e-5, 1, 1])
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=decay) if decay else "sgd"
    model.compile(optimizer, "mse", metrics=["mae"])
    finding, = only("gamma_decayed", model)
    assert finding.remedy.startswith("#") == (not penalty and not decay)
    exec(finding.remedy, {"model": model})
    assert norm.gamma.regularizer is None and norm.get_config()["gamma_regularizer"] is None
    before = np.array(norm.gamma)
    x = np.zeros((4, 4), "float32")
    history = model.fit(x, np.zeros((4, 3)), verbose=0).history  # the loss has no gradient
    assert "mae" in history
    np.testing.assert_array_equal(before, norm.gamma)


@pytest.mark.slow
def test_the_cost_of_a_shared_normalizer_is_decided_by_the_data_it_is_of():
    model, (x, y) = faults.one_normalizer_for_two_inputs()
    alike = {"left": x["left"], "right": x["left"][::-1]}
    finding, = only("shared_over_domains", model, (x, y), train=(alike, y))
    assert finding.severity == "costs accuracy" and finding.cost.present > finding.cost.mended
