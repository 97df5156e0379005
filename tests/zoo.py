"""Models of every kind that Keras knows, with batch normalization in every place, for surgeries."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BN = layers.BatchNormalization


class Block(layers.Layer):
    """Holds normalizers as attribute, in a list, a dict, a tuple, a partial and a lambda."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = BN()
        self.many = [layers.Dense(3), BN()]
        self.bag = {"a": BN(), "t": (BN(),)}
        self.closed = lambda x: self.norm(x)
        self.part = functools.partial(self.scaled, by=2.0)

    def scaled(self, x, by):
        return self.norm(x) * by

    def build(self, shape):
        for layer in (self.norm, *self.many, self.bag["a"], *self.bag["t"]):
            layer.build(shape)

    def call(self, x, training=None):
        x = self.closed(x) + self.part(x)
        for layer in self.many:
            x = layer(x)
        return self.bag["t"][0](self.bag["a"](x))


class Subclassed(keras.Model):
    """No config; dropout with a seed, a metric, nested containers, a reference to a weight."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = layers.Dense(4), BN()
        self.drop = layers.Dropout(0.5, seed=3)
        self.bag = {"x": [BN()]}
        self.seen = keras.metrics.Mean()

    def call(self, x, training=False):
        x = self.drop(self.norm(self.dense(x), training=training), training=training)
        return self.bag["x"][0](x, training=training)


class OwnFunctional(keras.Model):
    """A functional model made by a constructor of its own."""

    def __init__(self, features):
        inputs = keras.Input((features,))
        super().__init__(inputs, BN()(layers.Dense(2)(inputs)))
        self.features = features


@keras.saving.register_keras_serializable(package="zoo")
class Cell(layers.Layer):
    """A recurrent cell with a normalizer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size, self.dense, self.norm = 3, layers.Dense(3), BN()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((None, 3))

    def call(self, x, states, training=None):
        h = self.norm(self.dense(x) + states[0], training=training)
        return h, [h]


def sequential():
    return keras.Sequential([keras.Input((3,)), layers.Dense(3), BN(momentum=0.7)])


def composite():
    return keras.Sequential([keras.Input((3,)), Block()])


def subclassed():
    model = Subclassed()
    model(np.ones((2, 3), "float32"))
    return model


def shared():
    """One normalizer and one inner model, each called twice, one call with training=False."""
    one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
    norm = BN(name="norm")
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3), BN()], name="inner")
    outputs = {"deep": inner(norm(inner(one))), "flat": norm(other, training=False)}
    return keras.Model({"one": one, "other": other}, outputs)


def frozen():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), Block(), BN()])
    model.layers[1].bag["a"].trainable = False
    model.layers[2].trainable = False
    return model


def wrapped():
    forward, backward = (
        layers.RNN(Cell(), return_sequences=True, go_backwards=back) for back in (False, True)
    )
    return keras.Sequential([
        keras.Input((4, 3)), layers.Bidirectional(forward, backward_layer=backward),
        layers.TimeDistributed(BN()),
    ])


def in_a_lambda():
    norm, inputs = BN(), keras.Input((3,))
    norm.build((None, 3))
    return keras.Model(inputs, layers.Lambda(lambda x: 2 * norm(x))(inputs))


def masked():
    inputs = keras.Input((4, 3))
    return keras.Model(inputs, BN()(layers.Masking(0.0)(inputs)))


def subclassed_inside():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2)(subclassed()(inputs)))


def part_of_another():
    whole = keras.Sequential([keras.Input((3,)), layers.Dense(3), BN(), layers.Dense(2), BN()])
    return keras.Model(whole.inputs[0], whole.layers[1].output)


def with_operations():
    inputs = keras.Input((3,))
    x = keras.ops.concatenate([inputs, inputs * 2.0], -1)
    return keras.Model(inputs, [BN()(x) + 1.0, keras.ops.relu(x)])


def mixed_precision():
    policy = keras.DTypePolicy("mixed_bfloat16")
    dense = layers.Dense(3, dtype=policy, kernel_regularizer="l2")
    return keras.Sequential([keras.Input((3,)), dense, BN(dtype=policy)])


ZOO = [
    sequential, composite, subclassed, lambda: OwnFunctional(3), shared, frozen, wrapped,
    in_a_lambda, masked, subclassed_inside, part_of_another, with_operations, mixed_precision,
]
NAMES = [getattr(make, "__name__", "").replace("<lambda>", "own_functional") for make in ZOO]


def inputs_of(name):
    """Numbers that fit a model of the zoo."""
    rng = np.random.default_rng(0)
    if name == "shared":
        return {key: inputs_of("") for key in ("one", "other")}
    x = rng.normal(1, 2, (6, 4, 3) if name in ("wrapped", "masked") else (6, 3)).astype("float32")
    if name == "masked":
        x[:, 2:] = 0
    return x


def predictions(model, x):
    return [as_array(y) for y in keras.tree.flatten(model(x, training=False))]


def tflite_predictions(folder, x):
    """What a TFLite model, made of a SavedModel in a folder, says to an array."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(wanted["index"])


def training_call(model, x):
    """Outputs, gradients of a loss with the regularizers, and all weights after it."""
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(x, training=True))
        losses = [tf.reduce_sum(tf.square(tf.cast(y, "float32") - 0.3)) for y in outputs]
        loss = tf.add_n([*losses, *(tf.cast(value, "float32") for value in model.losses)])
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert gradients or not model.trainable_variables
    return [
        [as_array(y) for y in outputs],
        [as_array(gradient) for gradient in gradients if gradient is not None],
        [as_array(weight) for weight in model.variables],
    ]


def as_array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def told(model):
    """What a surgery must not change, of every layer and weight."""
    return (
        [(layer.name, layer.trainable, layer.built, layer.path, str(layer.dtype_policy))
         for layer in model._flatten_layers()],
        [(v.path, v.trainable, tuple(v.shape)) for v in model.variables],
    )
