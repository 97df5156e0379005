"""A model starts anew from a seed: from weights of its initializers, equal in all arms."""

import keras
import numpy as np
import pytest
from keras import layers
from zoo import NAMES, ZOO, inputs_of, predictions

from bn_keras import BatchNorm, statistics
from bn_keras.registry import NORMALIZERS
from bn_keras.surgery.digest import kernel_digest
from bn_keras.surgery.exchange import exchange, replacement
from bn_keras.surgery.initialize import reinitialize, reseed

KERAS = layers.BatchNormalization
KINDS = dict(zip(NAMES, ZOO))
WITHOUT_KERNELS = ("in_a_lambda", "masked", "with_operations")


def weights(model):
    return [weight.numpy() for weight in model.weights]


def equal(ones, others):
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


def trained(model):
    """The model with every weight and statistic moved."""
    for weight in model.weights:
        weight.assign(weight + 0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_arms_start_alike_in_every_kind_of_model(name):
    model = KINDS[name]()
    digests = {}
    for normalizer in ("none", "batch"):
        arm = trained(exchange(model, lambda layer: replacement(layer, normalizer))[0])
        for seed in (0, 1):
            reinitialize(arm, seed)
            digests.setdefault(seed, set()).add(kernel_digest(arm))
        one = weights(arm)
        reinitialize(trained(arm), 1)
        assert equal(weights(arm), one)
    assert len(digests[0]) == len(digests[1]) == 1
    assert digests[0] != digests[1] or name in WITHOUT_KERNELS


@pytest.mark.parametrize("normalizer", ["batch", "renorm", "keras_batch", "layer"])
def test_normalizers_are_as_at_the_start(normalizer):
    model = keras.Sequential([keras.Input((3,)), KERAS(
        beta_initializer=keras.initializers.Constant(0.25), moving_mean_initializer="ones",
    )])
    model, _ = exchange(model, lambda layer: replacement(layer, normalizer))
    reinitialize(trained(model), 0)
    layer = model.layers[0]
    assert np.all(layer.gamma.numpy() == 1) and np.all(layer.beta.numpy() == 0.25)
    for name in ("moving_mean", "moving_variance", "renorm_mean", "renorm_stddev"):
        if hasattr(layer, name):
            assert np.all(getattr(layer, name).numpy() == 1), name
    if hasattr(layer, "skipped_batches"):
        layer.skipped_batches = 3
        reinitialize(model, 0)
        assert layer.skipped_batches == 0


def branches(normalizer, width):
    """Two branches of equal convolutions; where normalizers stand, Keras sorts them otherwise."""
    inputs = keras.Input((4, 4, width))
    one, other = (layers.Conv2D(width, 3, padding="same", use_bias=False) for _ in range(2))
    left, right = one(inputs), layers.ReLU()(other(inputs))
    if normalizer is not None:
        left = normalizer()(normalizer()(left))
    return keras.Model(inputs, layers.Add()([left, right])), one, other


def test_nets_that_are_built_anew_start_alike_although_names_and_order_differ():
    kernels = []
    for normalizer in (None, KERAS, BatchNorm, layers.LayerNormalization):
        model, *convolutions = branches(normalizer, 3)
        reinitialize(model, 7)
        kernels.append([layer.kernel.numpy() for layer in convolutions])
    assert all(equal(one, kernels[0]) for one in kernels)
    assert not np.array_equal(*kernels[0])
    orders = [[layer.name for layer in branches(kind, 3)[0].layers] for kind in (None, KERAS)]
    orders = [[name for name in order if name.startswith("conv")] for order in orders]
    numbers = [[int(name.rpartition("_")[2]) for name in order] for order in orders]
    assert np.argsort(numbers[0]).tolist() != np.argsort(numbers[1]).tolist(), "no longer a test"


# ------------------------------------------------------- every initializer as it is given


@keras.saving.register_keras_serializable(package="test_initialize")
class Own(layers.Layer):
    """Weights in the constructor and in build, by name, by default, by position; a counter."""

    def __init__(self, units=100, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.early = self.add_weight(shape=(units, units), initializer="orthogonal", name="early")

    def build(self, shape):
        self.by_default = self.add_weight((self.units, self.units), name="by_default")
        self.positional = self.add_weight((50, 50), keras.initializers.RandomNormal(3.0, 0.1))
        self.count = self.add_weight(dtype="int32", trainable=False, name="count")

    def call(self, x):
        return x


def fours(shape, dtype=None):
    return keras.ops.full(shape, 4.0, dtype)


def test_weights_are_drawn_as_their_initializers_say():
    normal = keras.initializers.HeNormal(seed=5)
    model = keras.Sequential([
        keras.Input((8, 100)),
        layers.Dense(200, kernel_initializer=normal, name="one"),
        layers.Dense(200, kernel_initializer=normal, name="other"),
        Own(name="own"),
        layers.LSTM(20, name="lstm"),
        layers.Dense(2, kernel_initializer="zeros", bias_initializer=fours),
    ])
    reinitialize(trained(model), 3)
    one, other, own, lstm, last = model.layers
    assert one.kernel.numpy().std() == pytest.approx(np.sqrt(2 / 100), rel=0.03)
    assert other.kernel.numpy().std() == pytest.approx(np.sqrt(2 / 200), rel=0.03)
    pair = [layer.kernel.numpy()[:100].ravel() for layer in (one, other)]
    assert abs(np.corrcoef(*pair)[0, 1]) < 0.05
    early = own.early.numpy()
    np.testing.assert_allclose(early @ early.T, np.eye(100), atol=1e-5)
    limit = np.sqrt(6 / 200)
    assert 0.98 * limit < np.abs(own.by_default.numpy()).max() <= limit
    assert own.positional.numpy().mean() == pytest.approx(3.0, abs=0.02)
    assert own.positional.numpy().std() == pytest.approx(0.1, rel=0.1)
    assert int(own.count.numpy()) == 0
    np.testing.assert_array_equal(lstm.cell.bias.numpy(), [0.0] * 20 + [1.0] * 20 + [0.0] * 40)
    recurrent = lstm.cell.recurrent_kernel.numpy()
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(20), atol=1e-5)
    assert np.all(last.kernel.numpy() == 0) and np.all(last.bias.numpy() == 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_weights_keep_their_dtype(dtype):
    kinds = layers.Dense(50, dtype=dtype), KERAS(dtype=dtype)
    model = keras.Sequential([keras.Input((50,)), *kinds])
    dtypes = [weight.dtype for weight in model.weights]
    reinitialize(model, 0)
    assert [weight.dtype for weight in model.weights] == dtypes
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(model.layers[0].kernel, "float32"))
    assert kernel.std() == pytest.approx(np.sqrt(2 / 100), rel=0.1)


def test_a_weight_depends_on_no_other_layer():
    def kernels(*between):
        model = keras.Sequential([
            keras.Input((3,)), layers.Dense(3, name="a"), *between, layers.Dense(3, name="b"),
        ])
        reinitialize(model, 0)
        return [model.get_layer(name).kernel.numpy() for name in "ab"]

    assert equal(kernels(), kernels(KERAS(), layers.Dense(3, name="c"), layers.Dropout(0.5)))


def test_a_frozen_layer_and_one_that_was_loaded_are_drawn_too(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, trainable=False), KERAS()])
    model.layers[0].kernel.trainable = False
    reinitialize(model, 0)
    one = weights(model)
    model.save(tmp_path / "model.keras")
    loaded = trained(keras.models.load_model(tmp_path / "model.keras"))
    reinitialize(loaded, 0)
    assert equal(weights(loaded), one) and loaded.layers[0].trainable is False


class Refers(keras.Model):
    """Has names of its own for a layer's weight."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)
        self.kernels = (self.dense.kernel,)

    def call(self, x):
        return self.dense(x)


def test_a_weight_with_two_names_is_drawn_once_by_its_own_layer():
    model = Refers()
    model(np.ones((2, 3)))
    reinitialize(model, 0)
    assert not equal(weights(model), weights(trained(model)))


def test_what_was_learned_from_data_stays():
    scale = layers.Normalization()
    scale.adapt(np.array([[1.0], [5.0]]))
    model = keras.Sequential([keras.Input((1,)), scale, layers.Dense(2)])
    before = weights(scale)
    reinitialize(model, 0)
    assert equal(weights(scale), before)
    np.testing.assert_allclose(scale(np.array([[1.0], [5.0]])), [[-1.0], [1.0]])


class Closed(layers.Layer):
    """Cannot be made from its config, and has a list of weights."""

    def __init__(self, function, early=False):
        super().__init__(name="odd")
        self.function, self.many = function, []
        if early:
            self.early = self.add_weight(shape=(2,))

    def build(self, shape):
        for _ in range(2):
            self.many.append(self.add_weight(shape=shape[-1:]))

    def call(self, x):
        return self.function(x * self.many[0])


def test_a_layer_without_a_config_is_built_once_more():
    model = keras.Sequential([keras.Input((300,)), Closed(lambda x: x + 1)])
    with pytest.raises(NotImplementedError):
        model.layers[0].get_config()
    before = list(model.layers[0].many)
    reinitialize(trained(model), 0)
    assert len(before) == 2 == len(model.layers[0].many) == len(model.weights)
    for weight, was in zip(model.layers[0].many, before, strict=True):
        assert weight is was
        limit = np.sqrt(6 / 600)
        assert 0.9 * limit < np.abs(weight.numpy()).max() <= limit


class ByHand(layers.Layer):
    """Makes a weight of numbers."""

    def __init__(self, draw=False):
        super().__init__(name="odd")
        self.draw = draw

    def build(self, shape):
        values = np.random.normal(size=shape[-1]) if self.draw else np.arange(shape[-1])
        self.scale = keras.Variable(np.asarray(values, "float32"))

    def call(self, x):
        return x * self.scale


class Unseeded(layers.Layer):
    """Draws by a function of its own."""

    def __init__(self):
        super().__init__(name="odd")

    def build(self, shape):
        self.scale = self.add_weight(
            shape=shape[-1:], initializer=lambda shape, dtype=None: keras.random.normal(shape)
        )

    def call(self, x):
        return x * self.scale


class Grown(ByHand):
    """Has another shape than its config says."""

    def build(self, shape):
        super().build(shape)
        self.scale = keras.Variable(np.ones(7 if Grown.later else 3, "float32"))

    later = False


@pytest.mark.parametrize("make, words", [
    (lambda: Closed(abs, early=True), "cannot be made once more: NotImplementedError"),
    (lambda: ByHand(draw=True), "draws 'variable.* by something that has no seed"),
    (Unseeded, "draws 'variable.* by something that has no seed"),
    (Grown, "it has the weights .*and made once more"),
])
def test_a_layer_that_cannot_start_anew_is_named_and_nothing_has_changed(make, words, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), make()])
    monkeypatch.setattr(Grown, "later", True)
    before = weights(model)
    with pytest.raises(ValueError, match=f"reinitialize: .*odd.*{words}.*; expected a layer whose"):
        reinitialize(model, 0)
    assert equal(weights(model), before)


def test_numbers_that_code_gives_are_given_again():
    model = keras.Sequential([keras.Input((3,)), ByHand()])
    reinitialize(trained(model), 0)
    np.testing.assert_array_equal(model.layers[0].scale.numpy(), [0, 1, 2])


@pytest.mark.parametrize("function", [reinitialize, reseed])
def test_what_is_no_built_model_is_refused(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: received a Dense"):
        function(layers.Dense(2), 0)
    with pytest.raises(ValueError, match=f"{function.__name__}: .*not built"):
        function(keras.Sequential([layers.Dense(2)]), 0)


# ------------------------------------------------------------------------- random layers


def noisy(normalizer=layers.Identity):
    inner = keras.Sequential([keras.Input((50,)), normalizer(), layers.Dropout(0.5)])
    return keras.Sequential([
        keras.Input((50,)), layers.Dropout(0.5, seed=1), normalizer(), inner,
        layers.GaussianNoise(1.0),
    ])


@pytest.mark.slow
@pytest.mark.parametrize("function", [reinitialize, reseed])
def test_random_layers_follow_the_seed_and_no_normalizer(function):
    x = np.ones((2, 50), "float32")

    def drawn(model, seed):
        function(model, seed)
        one = np.array(model(x, training=True))
        assert not np.array_equal(one, np.array(model(x, training=True)))
        return one

    net, other = noisy(), noisy(lambda: KERAS(trainable=False, epsilon=0.0))
    one = drawn(net, 0)
    np.testing.assert_array_equal(drawn(net, 0), one)
    np.testing.assert_allclose(drawn(other, 0), one, rtol=1e-6)
    assert not np.array_equal(drawn(net, 1), one)
    zeros = [np.array(net.layers[0](x, training=True)) == 0,
             np.array(net.layers[2].layers[1](x, training=True)) == 0]
    assert not np.array_equal(*zeros), "two layers drop the same units"


class Twice(layers.Layer):
    """Draws from two generators."""

    def __init__(self):
        super().__init__()
        self.generators = [keras.random.SeedGenerator(n) for n in range(2)]

    def call(self, x):
        one, other = (keras.random.normal((5,), seed=generator) for generator in self.generators)
        return x + one - other


def test_each_generator_of_a_layer_has_a_seed_of_its_own():
    model = keras.Sequential([keras.Input((5,)), Twice()])
    reseed(model, 0)
    assert np.abs(model(np.zeros((1, 5)))).min() > 1e-3


def test_reseeding_keeps_the_weights():
    model, x = KINDS["subclassed"](), inputs_of("")
    before, statistics_before = weights(model), statistics.snapshot(model)
    outputs = predictions(model, x)
    reseed(model, 3)
    assert equal(weights(model), before) and equal(predictions(model, x), outputs)
    assert statistics.snapshot(model).keys() == statistics_before.keys()


# ------------------------------------------------------------------------- whole nets


@pytest.mark.slow
@pytest.mark.parametrize("name, options, normalizers", [
    ("MobileNetV2", {"alpha": 0.35}, ("none", "batch", "group")),
    ("EfficientNetB0", {}, ("none", "layer")),
])
def test_large_nets_start_alike_with_every_normalizer(name, options, normalizers):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=3, **options
    )
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("float32")
    digests = set()
    for normalizer in normalizers:
        arm, _ = exchange(model, lambda layer: replacement(layer, normalizer))
        reinitialize(arm, 0)
        digests.add(kernel_digest(arm))
        assert np.isfinite(arm(x, training=True)).all() or normalizer == "none"
    assert len(digests) == 1
    assert set(NORMALIZERS.names()) >= set(normalizers)
