"""Probes of arguments: what the layer accepts, and what it says of what it does not."""

import functools
from typing import Any, Callable

import numpy as np

from bn_keras.diagnostics.conformance.suite import (
    Failed,
    Maker,
    NotApplicable,
    alike,
    array,
    describe,
    draw,
    expect,
    first_line,
    keras_layer,
    probe,
    statistics,
    tf,
    value,
)
from bn_keras.diagnostics.severity import DROP_IN, POLICY, WRONG_NUMBERS


def _refusal(call: Callable[[], Any], wanted: str) -> Exception:
    """The exception that a call ends in; fails if there is none, and lets skips through."""
    try:
        call()
    except NotApplicable:
        raise
    except Exception as error:
        return error
    raise Failed(f"expected {wanted}, received no error")


@probe(POLICY)
def training_may_be_a_tensor(make: Maker) -> str:
    """A training loop in one graph switches by a tensor; Keras 2 took it."""
    make.needs_keras("no graphs")
    layer, plain = make(momentum=0.5), make(momentum=0.5)
    layer.build((None, 3))
    call = tf.function(lambda x, training: layer(x, training=training))
    for training, rows in ((True, 6), (False, 1)):
        x = draw(rows, 3, mean=2.0)
        evidence = alike(
            array(call(tf.constant(x), tf.constant(training))), array(plain(x, training=training))
        )
    return evidence


@probe(POLICY)
def axis_may_be_a_list_of_one(make: Maker) -> str:
    """Configs of Keras 2 hold axis as a list."""
    plain = make(axis=1)
    x = draw(4, 3, 5)
    return alike(array(make(axis=[1])(x, training=True)), array(plain(x, training=True)), 1e-6)


@probe(POLICY)
def an_axis_out_of_range_is_named(make: Maker) -> str:
    """An IndexError from inside the layer names neither axis nor shape."""
    wanted = "an error that names the axis"
    error = _refusal(lambda: make(axis=7)(draw(4, 3)), wanted)
    named = "axis" in str(error).lower() and not isinstance(error, IndexError)
    return expect(named, wanted, describe(error))


@probe(POLICY)
def impossible_momentum_and_epsilon_are_refused(make: Maker) -> str:
    """Momentum=1.5 trains for hours and then predicts NaN."""
    make(momentum=0.9, epsilon=1e-3)
    for settings in ({"momentum": 1.5}, {"epsilon": -1.0}):
        wanted = f"an error for {settings}"
        error = _refusal(functools.partial(make, **settings), wanted)
        evidence = expect(isinstance(error, (ValueError, TypeError)), wanted, describe(error))
    return evidence


@probe(POLICY)
def a_clipping_error_names_what_it_received(make: Maker) -> str:
    """An f-string without its f: the message shows {rmax} and not the value."""
    make(renorm=True)
    wanted = "an error that names the value 0.5"
    error = _refusal(
        lambda: make(renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 2.0}), wanted
    )
    return expect("0.5" in str(error), wanted, first_line(error))


@probe(WRONG_NUMBERS)
def masked_positions_do_not_count(make: Maker) -> str:
    """Padded sequences: padding is no data."""
    make.needs_mask()
    x, mask = draw(4, 6, 3, mean=2.0), np.random.default_rng(0).random((4, 6)) < 0.6
    layer, packed = make(momentum=0.0), make(momentum=0.0)
    y = array(layer(x, training=True, mask=tf.constant(mask)))
    expected = array(packed(x[mask], training=True))
    alike(
        value(layer, "moving_variance"), value(packed, "moving_variance"), of="moving variance"
    )
    return alike(y[mask], expected)


@probe(POLICY)
def a_mask_goes_with_channels_first(make: Maker) -> str:
    """Channels-first sequences have padding too."""
    make.needs_mask()
    x, mask = draw(4, 3, 6, mean=2.0), np.random.default_rng(0).random((4, 6)) < 0.6
    layer = make(axis=1, momentum=0.0)
    layer(x, training=True, mask=tf.constant(mask))
    return alike(value(layer, "moving_mean"), x.transpose(0, 2, 1)[mask].mean(0))


@probe(DROP_IN)
def a_mask_without_the_last_axis_means_what_it_means_to_keras(make: Maker) -> str:
    """Models hand on masks of the inputs' shape without the last axis, whatever `axis` is."""
    make.needs_mask()
    layer, theirs = make(axis=1, momentum=0.5), keras_layer()(axis=1, momentum=0.5)
    x, mask = draw(4, 3, 6, mean=2.0), np.random.default_rng(0).random((4, 3)) < 0.6
    found, expected = (array(one(x, training=True, mask=tf.constant(mask)))
                       for one in (layer, theirs))
    evidence = alike(found, expected, of="output")
    alike(statistics(layer), statistics(theirs), of="moving statistic")
    before, y = statistics(layer), array(layer(x, training=False))
    masked = array(layer(x, training=False, mask=tf.constant(mask)))
    alike(masked, y, 1e-6, of="inference's output without a mask:")
    alike(statistics(layer), before, 0, of="moving statistic before inference:")
    return evidence


@probe(DROP_IN)
def a_mask_is_handed_on(make: Maker) -> str:
    """A layer behind this one, such as an LSTM, needs the mask as well."""
    make.needs_mask()
    layer = make()
    layer.build((4, 6, 3))
    mask = np.ones((4, 6), bool)
    handed_on = layer.compute_mask(draw(4, 6, 3), mask) is mask
    return expect(
        layer.supports_masking and handed_on,
        "supports_masking=True and the mask from compute_mask",
        f"supports_masking={layer.supports_masking} and {'it' if handed_on else 'another'}",
    )
