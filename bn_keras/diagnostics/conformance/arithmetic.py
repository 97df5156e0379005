"""Probes of the arithmetic: outputs and gradients, in training and inference."""

import numpy as np
import tensorflow as tf

from bn_keras.batch_norm import reference
from bn_keras.diagnostics.conformance.suite import (
    alike,
    array,
    draw,
    expect,
    gradients,
    probe,
    set_weights,
)

EPSILON = 1e-3


def _rows():
    """A batch whose second channel is so narrow that epsilon shows."""
    return draw(12, 3, mean=1.5) * np.array([1.0, 0.02, 3.0], "float32")


@probe
def training_normalizes_with_the_batch(make):
    """The very definition: every tutorial's equation, epsilon inside the root."""
    layer = set_weights(make(epsilon=EPSILON), (None, 3))
    gamma, beta = array(layer.gamma), array(layer.beta)
    expected, _, _ = reference.forward(_rows(), gamma, beta, epsilon=EPSILON)
    return alike(array(layer(_rows(), training=True)), expected)


@probe
def gradients_flow_through_mean_and_variance(make):
    """A gradient that takes mean and variance as constants trains, but worse and diverging."""
    layer = set_weights(make(epsilon=EPSILON), (None, 3))
    x, dy = draw(12, 3), draw(12, 3, seed=1)
    expected, _, _ = reference.backward(dy, x, array(layer.gamma), epsilon=EPSILON)
    return alike(gradients(layer, x, dy, True)[0], expected)


@probe
def gamma_and_beta_get_their_gradients(make):
    """Gamma and beta that get a wrong gradient learn slowly, and nobody sees why."""
    layer = set_weights(make(epsilon=EPSILON), (None, 3))
    x, dy = draw(12, 3), draw(12, 3, seed=1)
    _, dgamma, dbeta = reference.backward(dy, x, array(layer.gamma), epsilon=EPSILON)
    found = gradients(layer, x, dy, True)
    return alike(np.stack(found[1:]), np.stack([dgamma, dbeta]))


@probe
def inference_uses_the_moving_statistics(make):
    """A fixed affine map by the population statistics, as it is folded into convolutions."""
    layer = set_weights(make(epsilon=EPSILON), (None, 3))
    weights = (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
    row = _rows()[:1]
    expected = reference.inference(row, *map(array, weights), epsilon=EPSILON)
    return alike(array(layer(row, training=False)), expected)


@probe
def inference_takes_each_example_by_itself(make):
    """Else a prediction depends on what else happens to be in the request."""
    layer = set_weights(make(), (None, 3))
    x = draw(6, 3)
    one_by_one = np.concatenate([array(layer(x[i:i + 1], training=False)) for i in range(6)])
    return alike(array(layer(x, training=False)), one_by_one, 1e-5)


@probe
def inference_has_a_gradient(make):
    """Saliency maps, adversarial examples and frozen layers below need it."""
    layer = set_weights(make(epsilon=EPSILON), (None, 3))
    dy = draw(5, 3, seed=1)
    expected = dy * array(layer.gamma) / np.sqrt(array(layer.moving_variance) + EPSILON)
    return alike(gradients(layer, draw(5, 3), dy, False)[0], expected)


@probe
def every_rank_normalizes_over_all_positions(make):
    """Images, sequences and volumes: a channel's statistics are over all of its positions."""
    found, expected = [], []
    for shape in ((4, 6, 3), (2, 3, 4, 3), (2, 3, 2, 2, 3)):
        x = draw(*shape, mean=2.0)
        found.append(array(make()(x, training=True)))
        expected.append(array(make()(x.reshape(-1, 3), training=True)).reshape(shape))
    return alike(np.concatenate([y.ravel() for y in found]),
                 np.concatenate([y.ravel() for y in expected]))


@probe
def another_axis_is_the_same_as_transposed_data(make):
    """Channels-first data."""
    x = draw(4, 3, 5, mean=2.0)
    expected = array(set_weights(make(), (4, 5, 3))(x.transpose(0, 2, 1), training=True))
    layer = set_weights(make(axis=1), x.shape)
    return alike(array(layer(x, training=True)), expected.transpose(0, 2, 1))


@probe
def center_and_scale_can_be_left_out(make):
    """An offset in front of another bias, a factor in front of relu: they only cost."""
    layer = make(center=False, scale=False)
    x = draw(12, 3)
    y = array(layer(x, training=True))
    count = len(layer.trainable_variables)
    expect(count == 0, f"{count} trainable weights with center=False, scale=False")
    return alike(y, array(make()(x, training=True)))


@probe
def variance_keeps_its_digits_far_from_zero(make):
    """E[x²] − E[x]² cancels: data far from zero lose their variance in float32."""
    x = draw(256, 2, mean=1e4)
    layer = make(momentum=0.0)
    layer(x, training=True)
    return alike(array(layer.moving_variance), x.astype(float).var(0), 0.01)


@probe
def half_precision_is_reduced_in_float32(make):
    """Float16 overflows at 65504: a standard deviation of 300 becomes infinite."""
    x = 300 * np.sign(draw(64, 2)) + draw(64, 2, seed=1)
    y = make(dtype="mixed_float16")(tf.constant(x, tf.float16), training=True)
    expect(y.dtype == tf.float16, f"{y.dtype.name} outputs of a mixed_float16 layer")
    expected, _, _ = reference.forward(x)
    return alike(array(y), expected, 1e-2)


@probe
def a_graph_does_what_eager_calls_do(make):
    """What is right in a notebook cell must be right in fit, which runs graphs."""
    found = []
    for wrap in (tf.function, lambda function: function):
        layer = make(momentum=0.5)
        layer.build((None, 3))
        call = wrap(lambda x, layer=layer: layer(x, training=True))
        outputs = [array(call(tf.constant(draw(6, 3, mean=2.0, seed=seed)))) for seed in range(3)]
        found.append(np.concatenate([*outputs, [array(layer.moving_mean)]]))
    return alike(*found)


@probe
def xla_compiles_the_training_step(make):
    """Jit_compile=True makes dense nets two to three times as fast."""
    layer, plain = make(momentum=0.5), make(momentum=0.5)
    x = draw(6, 3, mean=2.0)
    layer.build((None, 3))
    call = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    expected = array(plain(x, training=True))
    return alike(array(call(tf.constant(x))), expected)


@probe
def renorm_without_clipping_is_inference_by_its_moving_statistics(make):
    """Batch renormalization (Ioffe 2017) trains with what inference will use."""
    layer = make(renorm=True, renorm_momentum=0.5)
    for seed in range(4):
        layer(draw(12, 3, mean=2.0, seed=seed), training=True)
    mean, stddev = array(layer.renorm_mean), array(layer.renorm_stddev)
    x = draw(12, 3, mean=2.0, seed=9)
    return alike(array(layer(x, training=True)), (x - mean) / stddev)


@probe
def renorm_keeps_its_correction_out_of_the_gradient(make):
    """Its correction is a constant in the backward pass (algorithm 1 there)."""
    layer = make(renorm=True, renorm_momentum=0.5, epsilon=EPSILON)
    for seed in range(4):
        layer(draw(12, 3, mean=2.0, seed=seed), training=True)
    x, dy = draw(12, 3, seed=9), draw(12, 3, seed=1)
    r = np.sqrt(x.astype(float).var(0) + EPSILON) / array(layer.renorm_stddev)
    expected, _, _ = reference.backward(dy, x, r, epsilon=EPSILON)
    return alike(gradients(layer, x, dy, True)[0], expected)
