"""Small models with one fault each, for the doctor to find: every finding has at least one here.

The models are of all kinds, with Keras's layer and this package's. Each stands where training would
have left it, but for its fault: exact statistics, and a last layer by least squares, which takes no
step of training.
"""

from typing import Any, Callable, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from bn_keras import BatchNorm
from bn_keras.surgery import calls, statistics
from bn_keras.surgery.recalibrate import recalibrated

KERAS = layers.BatchNormalization
CLASSES, FEATURES = 3, 8
EXAMPLES = 256
HEAD = "head"


class Fault(NamedTuple):
    """A planted fault.

    Attributes:
        finding: the finding that must be among the doctor's.
        make: `() -> (model, data)`.
        consequences: other findings that may be there, because they are true as well.
        options: arguments of the doctor.
    """

    finding: str
    make: Callable[[], tuple[keras.Model, Any]]
    consequences: frozenset[str]
    options: dict[str, Any]


FAULTS: list[Fault] = []
# Statistics that do not fit the data show in all of these.
WRONG_STATISTICS = ("averages_lag", "train_inference_gap")


def fault(finding: str, *consequences: str, **options: Any) -> Callable[[Any], Any]:
    """Decorator: keeps a function as a fault."""

    def keep(make: Any) -> Any:
        FAULTS.append(Fault(finding, make, frozenset(consequences), options))
        return make

    return keep


# Data and models.


def points(examples: int = EXAMPLES, mean: float = 0.0, scale: float = 1.0) -> tuple[Any, Any]:
    """Three classes of points, (examples, 8), that overlap; `mean` has turns of its sign."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, examples)
    x = rng.normal(size=(examples, FEATURES)) + rng.normal(size=(CLASSES, FEATURES))[y]
    signs = rng.choice([-1, 1], FEATURES)
    return (mean * signs + scale * x).astype("float32"), y


def images(examples: int = EXAMPLES) -> tuple[Any, Any]:
    """Three classes of noise, (examples, 6, 6, 3), each of its own colour."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, examples)
    x = rng.normal(size=(examples, 6, 6, 3)) + np.eye(CLASSES)[y][:, None, None]
    return x.astype("float32"), y


def sequences(examples: int = EXAMPLES) -> tuple[Any, Any]:
    """Three classes of sequences, (examples, 5, 8)."""
    x, y = points(examples)
    noise = np.random.default_rng(1).normal(size=(examples, 5, FEATURES))
    return (x[:, None] + noise).astype("float32"), y


def dense(units: int = 16, **options: Any) -> keras.Layer:
    """A dense layer whose outputs have a variance near that of its inputs."""
    initializer = keras.initializers.LecunNormal(seed=units)
    return layers.Dense(units, kernel_initializer=initializer, **{"use_bias": False, **options})


def conv(filters: int = 8, **options: Any) -> keras.Layer:
    """A convolution whose outputs have a variance near that of its inputs."""
    initializer = keras.initializers.LecunNormal(seed=filters)
    return layers.Conv2D(
        filters, 3, padding="same", kernel_initializer=initializer,
        **{"use_bias": False, **options},
    )


def head() -> keras.Layer:
    """The last layer, which `fitted` fits."""
    return layers.Dense(CLASSES, name=HEAD)


class Chain(keras.Model):
    """A model without a graph of layers, and with an activation that is no layer."""

    def __init__(self, parts: list[keras.Layer]) -> None:
        super().__init__()
        self.parts = parts

    def call(self, x: Any, training: Any = None) -> Any:
        for part in self.parts:
            takes = "training" in part._call_signature.parameters
            x = part(x, **({"training": training} if takes else {}))
            if "norm" in part.name or isinstance(part, KERAS):
                x = tf.nn.relu(x)
        return x


def built(kind: str, parts: list[keras.Layer], x: Any) -> keras.Model:
    """A model of a kind: "sequential", "functional", "nested", "residual" or "subclassed"."""
    shape = x.shape[1:]
    if kind == "subclassed":
        model = Chain(parts)
        model(x[:2])
        return model
    if kind == "sequential":
        return keras.Sequential([keras.Input(shape), *parts])
    if kind == "nested":
        inner = keras.Sequential([keras.Input(shape), *parts[:-1]], name="backbone")
        return keras.Sequential([keras.Input(shape), inner, parts[-1]])
    inputs = y = keras.Input(shape)
    for part in parts:
        z = part(y)
        y = y + z if kind == "residual" and y.shape == z.shape else z
    return keras.Model(inputs, y)


def fitted(
    model: keras.Model, data: Any, scale: bool = True, training: bool = False
) -> keras.Model:
    """A copy of a model as training should leave it, compiled.

    Args:
        model: with a dense layer named "head" at its end.
        data: (x, y).
        scale: whether gamma and beta get other values than the first ones.
        training: whether the last layer is fitted to what it gets in training mode.
    """
    x, y = data
    rng = np.random.default_rng(3)
    for layer in statistics.batch_normalizers(model) if scale else []:
        layer.gamma.assign(rng.uniform(0.7, 1.3, layer.gamma.shape))
        layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
    model = recalibrated(model, x)
    fit_head(model, x, y, training)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def fit_head(model: keras.Model, x: Any, y: Any, training: bool = False) -> None:
    """Gives the last layer the weights of least squares, to logits of 4 for the right class."""
    last = next(layer for layer in model._flatten_layers() if layer.name == HEAD)
    seen = []

    def instead(layer: keras.Layer, call: Any, /, inputs: Any, **_: Any) -> Any:
        seen.append(np.asarray(inputs, np.float64))
        return call(inputs)

    with calls.redirected(last, instead), statistics.held(model):
        model(x, training=training)
    features = np.concatenate([seen[0], np.ones((len(y), 1))], axis=1)
    weights, *_ = np.linalg.lstsq(features, 4 * np.eye(CLASSES)[y], rcond=None)
    last.kernel.assign(weights[:-1])
    last.bias.assign(weights[-1])


def normalizer(model: keras.Model) -> keras.Layer:
    """The first batch normalization of a model."""
    return statistics.batch_normalizers(model)[0]


# Statistics that do not fit.


@fault("statistics_initial", *WRONG_STATISTICS, "never_updated")
def never_trained() -> tuple[keras.Model, Any]:
    """As it was made, but for the last layer, on data far from mean 0 and variance 1."""
    data = points(mean=3.0, scale=2.0)
    model = built("functional", [dense(), KERAS(), layers.ReLU(), head()], data[0])
    model = fitted(model, data, scale=False)
    statistics.reset(model)
    return model, data


@fault("never_updated", *WRONG_STATISTICS, "statistics_initial")
def trained_without_training() -> tuple[keras.Model, Any]:
    """A loop of one's own that forgot training=True: gamma moved, the statistics did not."""
    data = points(mean=3.0, scale=2.0)
    parts = [dense(), BatchNorm(), layers.ReLU(), dense(12), BatchNorm(), layers.ReLU(), head()]
    model = fitted(built("sequential", parts, data[0]), data)
    statistics.reset(model)
    return model, data


class Deaf(Chain):
    """A model whose call takes no `training`, so that fit tells its layers nothing."""

    def call(self, x: Any) -> Any:
        return super().call(x, training=False)


@fault("never_updated", *WRONG_STATISTICS, "statistics_initial")
def training_not_handed_on() -> tuple[keras.Model, Any]:
    """A model whose code leaves the argument `training` out."""
    data = points(mean=3.0, scale=2.0)
    model = Deaf([dense(), KERAS(), head()])
    model(data[0][:2])
    return fitted(model, data), data


@fault("averages_lag", *WRONG_STATISTICS)
def forty_steps() -> tuple[keras.Model, Any]:
    """After 40 steps at momentum .99, .67 of the initial statistics are still there."""
    data = points(mean=3.0, scale=2.0)
    parts = [dense(), KERAS(), layers.ReLU(), head()]
    model = fitted(built("nested", parts, data[0]), data)
    mix_statistics(model, 0.99**40)
    return model, data


def mix_statistics(model: keras.Model, initial: float) -> None:
    """Leaves a share of the initial statistics in a model's."""
    for layer in statistics.batch_normalizers(model):
        layer.moving_mean.assign((1 - initial) * layer.moving_mean)
        layer.moving_variance.assign((1 - initial) * layer.moving_variance + initial)


@fault("train_inference_gap", *WRONG_STATISTICS)
def other_data() -> tuple[keras.Model, Any]:
    """Statistics of data that were scaled otherwise."""
    data = points()
    parts = [dense(), BatchNorm(), layers.ReLU(), head()]
    model = fitted(built("subclassed", parts, data[0]), data)
    return model, points(mean=2.0, scale=3.0)


@fault("not_finite", *WRONG_STATISTICS)
def one_nan() -> tuple[keras.Model, Any]:
    """One channel's variance is NaN, from one bad batch."""
    data = points()
    model = fitted(built("functional", [dense(), KERAS(), layers.ReLU(), head()], data[0]), data)
    layer = normalizer(model)
    layer.moving_variance.assign(np.append(np.nan, layer.moving_variance.numpy()[1:]))
    return model, data


# Batches.


@fault("batch_dependent")
def training_baked_in() -> tuple[keras.Model, Any]:
    """The graph calls its normalizer with training=True, in inference too."""
    data = points()
    inputs = keras.Input((FEATURES,))
    x = layers.ReLU()(KERAS()(dense()(inputs), training=True))
    return fitted(keras.Model(inputs, head()(x)), data), data


class AlwaysTraining(keras.Model):
    """Hands training=True on, whatever it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.last = dense(), BatchNorm(), head()

    def call(self, x: Any, training: Any = None) -> Any:
        return self.last(tf.nn.relu(self.norm(self.dense(x), training=True)))


@fault("batch_dependent")
def training_in_the_code() -> tuple[keras.Model, Any]:
    """The same in a model's own code, where `predict` cannot override it."""
    data = points()
    model = AlwaysTraining()
    model(data[0][:2])
    return fitted(model, data), data


@fault("few_values", batch_size=4)
def batches_of_four() -> tuple[keras.Model, Any]:
    """Four values per channel in every batch."""
    data = points(128)
    parts = [dense(), BatchNorm(), layers.ReLU(), head()]
    return fitted(built("subclassed", parts, data[0]), data), data


@fault("few_values", batch_size=32)
def last_batch_of_one() -> tuple[keras.Model, Any]:
    """129 examples: the last of 5 batches has one."""
    data = points(129)
    model = built("sequential", [dense(), KERAS(), layers.ReLU(), head()], data[0])
    return fitted(model, data), data


# Where the layer stands, and how it computes.


@fault("far_from_zero", *WRONG_STATISTICS)
def variance_cancels() -> tuple[keras.Model, Any]:
    """Keras's synchronized variance, E[x²]-E[x]², of values 10,000 standard deviations from 0."""
    data = points(mean=1e4)
    parts = [KERAS(synchronized=True), layers.ReLU(), head()]
    return fitted(built("functional", parts, data[0]), data), data


@fault("inside_wrapper")
def each_step_by_itself() -> tuple[keras.Model, Any]:
    """TimeDistributed gives Keras's layer one time step after the other."""
    data = sequences()
    parts = [
        dense(), layers.TimeDistributed(KERAS()), layers.ReLU(), layers.GlobalAveragePooling1D(),
        head(),
    ]
    return fitted(built("sequential", parts, data[0]), data), data


@keras.saving.register_keras_serializable(package="faults")
class Cell(layers.Layer):
    """A recurrent cell with a normalizer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state_size, self.dense, self.norm = 16, dense(), KERAS()

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.norm.build((None, 16))

    def call(self, x: Any, states: Any, training: Any = None) -> Any:
        h = keras.ops.tanh(self.norm(self.dense(x) + 0.1 * states[0], training=training))
        return h, [h]


@fault("inside_wrapper")
def inside_a_cell() -> tuple[keras.Model, Any]:
    """A normalizer in a recurrent cell."""
    data = sequences(64)
    return fitted(built("functional", [layers.RNN(Cell()), head()], data[0]), data), data


# Channels.


@fault("dead_channels")
def offsets_far_below_zero() -> tuple[keras.Model, Any]:
    """A relu layer whose offset keeps 6 of 8 channels at 0."""
    data = images()
    parts = [conv(), BatchNorm(), layers.ReLU(), layers.GlobalAveragePooling2D(), head()]
    return shifted(built("sequential", parts, data[0]), data, 6), data


@fault("dead_channels")
def dead_behind_a_function() -> tuple[keras.Model, Any]:
    """The same before tf.nn.relu, which is no layer."""
    data = points()
    return shifted(built("subclassed", [dense(), KERAS(), head()], data[0]), data, 8), data


def shifted(model: keras.Model, data: Any, channels: int) -> keras.Model:
    """A model whose first normalizer sends some channels far below 0."""
    model = fitted(model, data)
    beta = normalizer(model).beta
    beta.assign(np.append(np.full(channels, -9.0), beta.numpy()[channels:]))
    fit_head(model, *data)
    return model


@fault("dead_channels")
def saturated_tanh() -> tuple[keras.Model, Any]:
    """Factors so large that tanh gives -1 or 1 nearly everywhere."""
    data = points()
    model = built("nested", [dense(), BatchNorm(), layers.Activation("tanh"), head()], data[0])
    model = fitted(model, data)
    normalizer(model).gamma.assign(np.full(16, 1000.0))
    fit_head(model, *data)
    return model, data


@fault("gamma_decayed")
def gamma_under_l2() -> tuple[keras.Model, Any]:
    """A penalty on gamma that has sent half of the factors to almost 0."""
    data = points()
    parts = [dense(), KERAS(gamma_regularizer="l2"), layers.Activation("elu"), head()]
    return decayed(built("functional", parts, data[0]), data)


@fault("gamma_decayed", "dead_channels")
def gamma_under_adamw() -> tuple[keras.Model, Any]:
    """The same by the weight decay of AdamW, which takes every variable by default."""
    data = points()
    parts = [dense(), BatchNorm(), layers.Activation("elu"), head()]
    model, _ = decayed(built("subclassed", parts, data[0]), data)
    model.compile(keras.optimizers.AdamW(weight_decay=0.1), model.loss)
    return model, data


def decayed(model: keras.Model, data: Any) -> tuple[keras.Model, Any]:
    """A model with 8 of 16 factors near 0."""
    model = fitted(model, data)
    gamma = normalizer(model).gamma
    gamma.assign(np.append(np.full(8, 1e-4), gamma.numpy()[8:]))
    fit_head(model, *data)
    return model, data


# What stands in front.


@fault("redundant_bias")
def bias_in_front() -> tuple[keras.Model, Any]:
    """A bias that the normalizer takes off again."""
    data = points()
    parts = [dense(use_bias=True), KERAS(), layers.ReLU(), head()]
    return fitted(built("functional", parts, data[0]), data), data


@fault("redundant_bias")
def bias_in_front_of_pooling() -> tuple[keras.Model, Any]:
    """The same through a pooling layer."""
    data = images()
    parts = [
        conv(use_bias=True), layers.MaxPooling2D(), BatchNorm(), layers.ReLU(), layers.Flatten(),
        head(),
    ]
    return fitted(built("subclassed", parts, data[0]), data), data


@fault("dropout_in_front", *WRONG_STATISTICS)
def dropout_before() -> tuple[keras.Model, Any]:
    """Dropout right before a normalizer; the statistics are those of training, with dropout."""
    data = points(1024)
    parts = [
        dense(), BatchNorm(), layers.ReLU(), layers.Dropout(0.5, seed=1), dense(12), BatchNorm(),
        layers.ReLU(), head(),
    ]
    model = fitted(built("functional", parts, data[0]), data)
    train_statistics(model, data[0])
    return model, data


def train_statistics(model: keras.Model, x: Any) -> None:
    """Lets a model's statistics come from 60 steps of training, as .99 does from 600."""
    for layer in statistics.batch_normalizers(model):
        layer.momentum = 0.9
    for step in range(60):
        model(x[32 * step % len(x):][:32], training=True)
    for layer in statistics.batch_normalizers(model):
        layer.momentum = 0.99


# What trains.


@fault("frozen_off", "dead_channels")
def frozen_with_other_pixels() -> tuple[keras.Model, Any]:
    """A frozen base, and inputs on another scale than it was frozen with."""
    x, y = points()
    model = fitted(built("nested", [dense(), KERAS(), layers.ReLU(), head()], x), (x, y))
    normalizer(model).trainable = False
    model.compile("sgd", model.loss)
    return model, (x + 3.0, y)


@fault("frozen_or_trainable")
def frozen_after_fit() -> tuple[keras.Model, Any]:
    """Frozen after fit was called and not compiled again: the stored training step goes on."""
    data = points()
    model = fitted(built("nested", [dense(), KERAS(), layers.ReLU(), head()], data[0]), data)
    model.optimizer.learning_rate = 1e-3
    model.fit(*data, verbose=0)
    normalizer(model).trainable = False
    return model, data


@fault("frozen_or_trainable")
def frozen_by_variable() -> tuple[keras.Model, Any]:
    """Gamma and beta are frozen as variables; the statistics still move."""
    data = points()
    model = fitted(built("functional", [dense(), KERAS(), layers.ReLU(), head()], data[0]), data)
    for variable in normalizer(model).trainable_variables:
        variable.trainable = False
    return model, data


@fault("frozen_or_trainable")
def only_normalizers_train() -> tuple[keras.Model, Any]:
    """Fine-tuning: what is around the normalizers is frozen, the normalizers are not."""
    data = points()
    parts = [dense(), BatchNorm(), layers.ReLU(), dense(12), BatchNorm(), layers.ReLU(), head()]
    model = fitted(built("subclassed", parts, data[0]), data)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Dense) and layer.name != HEAD:
            layer.trainable = False
    model.compile("sgd", model.loss)
    return model, data


@fault("frozen_or_trainable")
def training_false_in_the_graph() -> tuple[keras.Model, Any]:
    """Fine-tuning with base(x, training=False), which the fit of Keras 3 overrides."""
    data = points()
    base = keras.Sequential([keras.Input((FEATURES,)), dense(), KERAS(), layers.ReLU()])
    inputs = keras.Input((FEATURES,))
    return fitted(keras.Model(inputs, head()(base(inputs, training=False))), data), data


@fault("averaged_weights", *WRONG_STATISTICS)
def weights_averaged_by_the_optimizer() -> tuple[keras.Model, Any]:
    """use_ema averages the weights and leaves the statistics: those of other weights."""
    data = points()
    model = fitted(built("sequential", [dense(), KERAS(), layers.ReLU(), head()], data[0]), data)
    normalizer(model).moving_variance.assign(3 * normalizer(model).moving_variance)
    model.compile(keras.optimizers.SGD(use_ema=True), model.loss)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(100)
    return model, data


# How it is set.


@fault("half_precision_statistics")
def float16_everywhere() -> tuple[keras.Model, Any]:
    """dtype="float16" keeps Keras's statistics in float16 as well."""
    data = points()
    parts = [dense(), KERAS(dtype="float16"), layers.ReLU(), head()]
    return fitted(built("sequential", parts, data[0]), data), data


@fault("foreign_momentum")
def momentum_of_pytorch() -> tuple[keras.Model, Any]:
    """PyTorch's .1 is Keras's .9."""
    data = points()
    parts = [dense(), BatchNorm(momentum=0.1), layers.ReLU(), head()]
    return fitted(built("functional", parts, data[0]), data), data


@fault("foreign_epsilon")
def epsilon_over_small_variances() -> tuple[keras.Model, Any]:
    """Variances near 1e-4, where Keras's 1e-3 and PyTorch's 1e-5 give other outputs."""
    data = points(scale=0.01)
    parts = [dense(), KERAS(), layers.ReLU(), head()]
    return fitted(built("nested", parts, data[0]), data), data


@fault("channel_axis")
def channels_first() -> tuple[keras.Model, Any]:
    """Convolutions with channels first, and a normalizer over the last axis: the width."""
    x, y = images()
    x = np.moveaxis(x, -1, 1)
    parts = [
        conv(data_format="channels_first"), KERAS(), layers.ReLU(), layers.Flatten(), head()
    ]
    return fitted(built("functional", parts, x), (x, y)), (x, y)


# Several uses, several replicas.


@fault("shared_over_domains", "train_inference_gap")
def one_normalizer_for_two_inputs() -> tuple[keras.Model, Any]:
    """One layer normalizes two inputs with other means and variances."""
    x, y = points()
    left, right = keras.Input((FEATURES,), name="left"), keras.Input((FEATURES,), name="right")
    norm = BatchNorm()
    model = keras.Model(
        {"left": left, "right": right},
        head()(layers.concatenate([layers.ReLU()(norm(z)) for z in (left, right)])),
    )
    data = {"left": x, "right": 5 + 3 * x[::-1]}, y
    return fitted(model, data, training=True), data


class Siamese(keras.Model):
    """Calls one branch twice, without a graph of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.last = dense(), KERAS(), head()

    def call(self, x: Any, training: Any = None) -> Any:
        one = tf.nn.relu(self.norm(self.dense(x), training=training))
        other = tf.nn.relu(self.norm(self.dense(8 - x), training=training))
        return self.last(tf.concat([one, other], axis=-1))


@fault("shared_over_domains", "train_inference_gap")
def one_branch_for_two_domains() -> tuple[keras.Model, Any]:
    """The same in a model's own code."""
    data = points()
    model = Siamese()
    model(data[0][:2])
    return fitted(model, data, training=True), data


@fault("unsynchronized")
def two_replicas() -> tuple[keras.Model, Any]:
    """Two replicas with 16 values per channel each, and statistics of their own."""
    data = points()
    with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
        model = built("functional", [dense(), KERAS(), layers.ReLU(), head()], data[0])
        return fitted(model, data), data
