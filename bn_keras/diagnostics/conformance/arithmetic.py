"""Probes of the arithmetic: outputs and gradients, in training and inference."""

import numpy as np

from bn_keras.batch_norm import reference
from bn_keras.diagnostics.conformance.suite import (
    Maker,
    affine,
    alike,
    array,
    draw,
    expect,
    gradients,
    probe,
    set_weights,
    tf,
    value,
    weight,
)
from bn_keras.diagnostics.severity import DROP_IN, ROBUSTNESS, WRONG_NUMBERS

EPSILON = 1e-3


def _rows() -> np.ndarray:
    """A batch whose second channel is so narrow that epsilon shows."""
    return draw(12, 3, mean=1.5) * np.array([1.0, 0.02, 3.0], "float32")


@probe(WRONG_NUMBERS)
def training_normalizes_with_the_batch(make: Maker) -> str:
    """The very definition: every tutorial's equation, epsilon inside the root."""
    if make.takes("epsilon"):
        layer, rows, tolerance = make(epsilon=EPSILON), _rows(), 1e-4
    else:  # one of its own, which rows as wide as these hide
        layer, rows, tolerance = make(), draw(12, 3, mean=1.5) * 100, 1e-3
    set_weights(layer, (None, 3))
    expected, _, _ = reference.forward(rows, *affine(layer, 3), epsilon=EPSILON)
    return alike(array(layer(rows, training=True)), expected, tolerance)


@probe(WRONG_NUMBERS)
def gradients_flow_through_mean_and_variance(make: Maker) -> str:
    """A gradient that takes mean and variance as constants trains, but worse and diverging."""
    make.needs_gradients()
    layer = set_weights(make.where(epsilon=EPSILON), (None, 3))
    epsilon, tolerance = make.epsilon(EPSILON)
    x, dy = draw(12, 3), draw(12, 3, seed=1)
    expected, _, _ = reference.backward(dy, x, affine(layer, 3)[0], epsilon=epsilon)
    return alike(gradients(layer, x, dy, True)[0], expected, tolerance)


@probe(WRONG_NUMBERS)
def gamma_and_beta_get_their_gradients(make: Maker) -> str:
    """Gamma and beta that get a wrong gradient learn slowly, and nobody sees why."""
    make.needs_gradients()
    layer = set_weights(make.where(epsilon=EPSILON), (None, 3))
    epsilon, tolerance = make.epsilon(EPSILON)
    gamma, _ = value(layer, "gamma"), weight(layer, "beta")
    x, dy = draw(12, 3), draw(12, 3, seed=1)
    _, dgamma, dbeta = reference.backward(dy, x, gamma, epsilon=epsilon)
    found = gradients(layer, x, dy, True)
    return alike(np.stack(found[1:]), np.stack([dgamma, dbeta]), tolerance)


@probe(WRONG_NUMBERS)
def inference_uses_the_moving_statistics(make: Maker) -> str:
    """A fixed affine map by the population statistics, as it is folded into convolutions."""
    layer = set_weights(make.where(epsilon=EPSILON), (None, 3))
    epsilon, tolerance = make.epsilon(EPSILON)
    mean, variance = value(layer, "moving_mean"), value(layer, "moving_variance")
    row = _rows()[:1]
    expected = reference.inference(row, mean, variance, *affine(layer, 3), epsilon=epsilon)
    return alike(array(layer(row, training=False)), expected, tolerance)


@probe(WRONG_NUMBERS)
def inference_takes_each_example_by_itself(make: Maker) -> str:
    """Else a prediction depends on what else happens to be in the request."""
    layer = set_weights(make(), (None, 3))
    x = draw(6, 3)
    one_by_one = np.concatenate([array(layer(x[i:i + 1], training=False)) for i in range(6)])
    return alike(array(layer(x, training=False)), one_by_one, 1e-5)


@probe(WRONG_NUMBERS)
def inference_has_a_gradient(make: Maker) -> str:
    """Saliency maps, adversarial examples and frozen layers below need it."""
    make.needs_gradients(training=False)
    layer = set_weights(make.where(epsilon=EPSILON), (None, 3))
    epsilon, tolerance = make.epsilon(EPSILON)
    dy = draw(5, 3, seed=1)
    variance = value(layer, "moving_variance")
    expected = dy * affine(layer, 3)[0] / np.sqrt(variance + epsilon)
    return alike(gradients(layer, draw(5, 3), dy, False)[0], expected, tolerance)


@probe(WRONG_NUMBERS)
def every_rank_normalizes_over_all_positions(make: Maker) -> str:
    """Images, sequences and volumes: a channel's statistics are over all of its positions."""
    found, expected = [], []
    shapes = ((4, 6, 3), (2, 3, 4, 3), (2, 3, 2, 2, 3))
    for shape in shapes[1:2] if make.foreign else shapes:
        x = draw(*shape, mean=2.0)
        found.append(array(make.images()(x, training=True)))
        expected.append(array(make()(x.reshape(-1, 3), training=True)).reshape(shape))
    return alike(np.concatenate([y.ravel() for y in found]),
                 np.concatenate([y.ravel() for y in expected]))


@probe(WRONG_NUMBERS)
def another_axis_is_the_same_as_transposed_data(make: Maker) -> str:
    """Channels-first data."""
    layer = make(axis=1)
    x = draw(4, 3, 5, mean=2.0)
    expected = array(set_weights(make(), (4, 5, 3))(x.transpose(0, 2, 1), training=True))
    set_weights(layer, x.shape)
    return alike(array(layer(x, training=True)), expected.transpose(0, 2, 1))


@probe(DROP_IN)
def center_and_scale_can_be_left_out(make: Maker) -> str:
    """An offset in front of another bias, a factor in front of relu: they only cost."""
    layer = make(center=False, scale=False)
    x = draw(12, 3)
    y = array(layer(x, training=True))
    count = len(layer.trainable_variables)
    expect(count == 0, "no trainable weight with center=False, scale=False", str(count))
    return alike(y, array(make()(x, training=True)))


@probe(DROP_IN)
def integers_are_taken_as_floating_numbers(make: Maker) -> str:
    """Images come as uint8; outputs in uint8 are noise from 0 to 255."""
    make.needs_keras("its types are its own")
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3)).astype("uint8")
    layer, plain = make(), make()
    y = layer(images, training=True)
    expect(tf.as_dtype(y.dtype).is_floating, "floating outputs of uint8 inputs", y.dtype)
    alike(array(y), array(plain(images.astype("float32"), training=True)), of="output")
    y = layer(images, training=False)
    expect(tf.as_dtype(y.dtype).is_floating, "floating outputs in inference", y.dtype)
    expected = array(plain(images.astype("float32"), training=False))
    return alike(array(y), expected, of="inference's output")


@probe(ROBUSTNESS)
def variance_keeps_its_digits_far_from_zero(make: Maker) -> str:
    """E[x²] − E[x]² cancels: data far from zero lose their variance in float32."""
    x = draw(256, 3, mean=1e4)
    layer = make(momentum=0.0)
    layer(x, training=True)
    return alike(value(layer, "moving_variance"), x.astype(float).var(0), 0.01)


@probe(ROBUSTNESS)
def half_precision_is_reduced_in_float32(make: Maker) -> str:
    """Float16 overflows at 65504: a standard deviation of 300 becomes infinite."""
    x = 300 * np.sign(draw(64, 2)) + draw(64, 2, seed=1)
    y = make(dtype="mixed_float16")(tf.constant(x, tf.float16), training=True)
    expect(y.dtype == tf.float16, "float16 outputs of a mixed_float16 layer", y.dtype.name)
    expected, _, _ = reference.forward(x)
    return alike(array(y), expected, 1e-2)


@probe(WRONG_NUMBERS)
def a_graph_does_what_eager_calls_do(make: Maker) -> str:
    """What is right in a notebook cell must be right in fit, which runs graphs."""
    make.needs_keras("no graphs")
    found = []
    for wrap in (tf.function, lambda function: function):
        layer = make(momentum=0.5)
        layer.build((None, 3))
        call = wrap(lambda x, layer=layer: layer(x, training=True))
        outputs = [array(call(tf.constant(draw(6, 3, mean=2.0, seed=seed)))) for seed in range(3)]
        found.append((np.stack(outputs), array(layer(draw(6, 3, seed=9), training=False))))
    alike(found[0][0], found[1][0], of="output")
    return alike(found[0][1], found[1][1], of="inference's output after three steps")


@probe(DROP_IN)
def xla_compiles_the_training_step(make: Maker) -> str:
    """Jit_compile=True makes dense nets two to three times as fast."""
    make.needs_keras("no graphs")
    layer, plain = make(momentum=0.5), make(momentum=0.5)
    x = draw(6, 3, mean=2.0)
    layer.build((None, 3))
    call = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    expected = array(plain(x, training=True))
    return alike(array(call(tf.constant(x))), expected)


@probe(WRONG_NUMBERS)
def xla_keeps_the_digits_of_images_far_from_zero(make: Maker) -> str:
    """Air pressure is 1013 ± 1 hPa: XLA merges sums, and their squares cancel in float32."""
    make.needs_keras("no graphs")
    x = draw(8, 8, 8, 3, mean=1013.0)
    layer = make()
    layer.build(x.shape)
    call = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    expected, _, _ = reference.forward(x)
    return alike(array(call(tf.constant(x))), expected, 1e-3)


@probe(WRONG_NUMBERS)
def renorm_without_clipping_is_inference_by_its_moving_statistics(make: Maker) -> str:
    """Batch renormalization (Ioffe 2017) trains with what inference will use."""
    layer = make(renorm=True, renorm_momentum=0.5)
    for seed in range(4):
        layer(draw(12, 3, mean=2.0, seed=seed), training=True)
    mean, stddev = value(layer, "renorm_mean"), value(layer, "renorm_stddev")
    x = draw(12, 3, mean=2.0, seed=9)
    return alike(array(layer(x, training=True)), (x - mean) / stddev)


@probe(WRONG_NUMBERS)
def renorm_keeps_its_correction_out_of_the_gradient(make: Maker) -> str:
    """Its correction is a constant in the backward pass (algorithm 1 there)."""
    layer = make(renorm=True, renorm_momentum=0.5, epsilon=EPSILON)
    for seed in range(4):
        layer(draw(12, 3, mean=2.0, seed=seed), training=True)
    x, dy = draw(12, 3, seed=9), draw(12, 3, seed=1)
    r = np.sqrt(x.astype(float).var(0) + EPSILON) / value(layer, "renorm_stddev")
    expected, _, _ = reference.backward(dy, x, r, epsilon=EPSILON)
    return alike(gradients(layer, x, dy, True)[0], expected)
