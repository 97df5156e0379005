"""Probes of batches that say nothing: the population statistics must survive them."""

import warnings
from typing import Any

import numpy as np

from bn_keras.diagnostics.conformance.suite import (
    Maker,
    alike,
    draw,
    expect,
    first_line,
    probe,
    statistics,
    tf,
    value,
)
from bn_keras.diagnostics.severity import POLICY, ROBUSTNESS


@probe(POLICY)
def one_bad_sample_does_not_poison_the_statistics(make: Maker) -> str:
    """One overflow in mixed precision, and every later evaluation is NaN."""
    layer = make.where(momentum=0.5)
    bad = draw(8, 3)
    bad[2, 1] = np.inf
    layer(bad, training=True)
    for seed in range(20):
        layer(draw(8, 3, seed=seed), training=True)
    after = value(layer, "moving_variance")
    wanted = "a finite moving variance 20 batches after an inf"
    return expect(np.isfinite(after).all(), wanted, str(after.round(2)))


@probe(ROBUSTNESS)
def an_empty_batch_changes_nothing(make: Maker) -> str:
    """The last batch of a replica, or of a filtered pipeline, may be empty."""
    layer = make.where(momentum=0.5)
    layer(draw(8, 3), training=True)
    before = statistics(layer)
    layer(np.zeros((0, 3), "float32"), training=True)
    return alike(statistics(layer), before, 0)


@probe(ROBUSTNESS)
def a_fully_masked_batch_changes_nothing(make: Maker) -> str:
    """A batch of padding alone drags mean and variance towards 0."""
    make.needs_mask()
    layer = make.where(momentum=0.5)
    x = draw(4, 6, 3, mean=5.0)
    layer(x, training=True, mask=tf.ones((4, 6), tf.bool))
    before = statistics(layer)
    layer(x, training=True, mask=tf.zeros((4, 6), tf.bool))
    return alike(statistics(layer), before, 0)


@probe(POLICY)
def one_value_per_channel_is_told_and_changes_nothing(make: Maker) -> str:
    """The last batch of 129 at size 128: the output is beta, the variance decays, silently."""
    layer = make.where(momentum=0.5)
    layer(draw(2, 3), training=True)
    before = statistics(layer)
    wanted = "a warning or a ValueError"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            layer(draw(1, 3), training=True)
        except ValueError as error:
            return expect(True, wanted, f"ValueError: {first_line(error)}")
    message: Any = told[0].message if told else None
    evidence = expect(told, wanted, first_line(message) if told else "silence")
    alike(statistics(layer), before, 0)
    return evidence
