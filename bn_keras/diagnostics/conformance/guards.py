"""Probes of batches that say nothing: the population statistics must survive them."""

import warnings

import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.conformance.suite import alike, array, draw, expect, first_line, probe


def _statistics(layer):
    return np.stack([array(layer.moving_mean), array(layer.moving_variance)])


@probe
def one_bad_sample_does_not_poison_the_statistics(make):
    """One overflow in mixed precision, and every later evaluation is NaN."""
    layer = make(momentum=0.5)
    bad = draw(8, 3)
    bad[2, 1] = np.inf
    layer(bad, training=True)
    for seed in range(20):
        layer(draw(8, 3, seed=seed), training=True)
    after = array(layer.moving_variance)
    return expect(np.isfinite(after).all(), f"moving variance 20 batches later: {after.round(2)}")


@probe
def an_empty_batch_changes_nothing(make):
    """The last batch of a replica, or of a filtered pipeline, may be empty."""
    layer = make(momentum=0.5)
    layer(draw(8, 3), training=True)
    before = _statistics(layer)
    layer(np.zeros((0, 3), "float32"), training=True)
    return alike(_statistics(layer), before, 0)


@probe
def a_fully_masked_batch_changes_nothing(make):
    """A batch of padding alone drags mean and variance towards 0."""
    layer = make(momentum=0.5)
    x = draw(4, 6, 3, mean=5.0)
    layer(x, training=True, mask=tf.ones((4, 6), tf.bool))
    before = _statistics(layer)
    layer(x, training=True, mask=tf.zeros((4, 6), tf.bool))
    return alike(_statistics(layer), before, 0)


@probe
def one_value_per_channel_is_told_and_changes_nothing(make):
    """The last batch of 129 at size 128: the output is beta, the variance decays, silently."""
    layer = make(momentum=0.5)
    layer.build((None, 3))
    before = _statistics(layer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            layer(draw(1, 3), training=True)
        except ValueError as error:
            return f"refused: {first_line(error)}"
    expect(told, "silence")
    alike(_statistics(layer), before, 0)
    return f"warning: {first_line(told[0].message)}"
