"""Probes of arguments: what the layer accepts, and what it says of what it does not."""

import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.conformance.suite import (
    Failed,
    alike,
    array,
    draw,
    expect,
    first_line,
    probe,
)


def _refusal(call):
    """The exception that a call ends in; fails if there is none."""
    try:
        call()
    except Exception as error:
        return error
    raise Failed("accepted")


@probe
def training_may_be_a_tensor(make):
    """A training loop in one graph switches by a tensor; Keras 2 took it."""
    layer, plain = make(momentum=0.5), make(momentum=0.5)
    layer.build((None, 3))
    call = tf.function(lambda x, training: layer(x, training=training))
    for training, rows in ((True, 6), (False, 1)):
        x = draw(rows, 3, mean=2.0)
        error = alike(
            array(call(tf.constant(x), tf.constant(training))), array(plain(x, training=training))
        )
    return error


@probe
def axis_may_be_a_list_of_one(make):
    """Configs of Keras 2 hold axis as a list."""
    x = draw(4, 3, 5)
    return alike(
        array(make(axis=[1])(x, training=True)), array(make(axis=1)(x, training=True)), 1e-6
    )


@probe
def an_axis_out_of_range_is_named(make):
    """An IndexError from inside the layer names neither axis nor shape."""
    error = _refusal(lambda: make(axis=7)(draw(4, 3)))
    told = f"{type(error).__name__}: {first_line(error)}"
    return expect("axis" in str(error).lower() and not isinstance(error, IndexError), told)


@probe
def impossible_momentum_and_epsilon_are_refused(make):
    """Momentum=1.5 trains for hours and then predicts NaN."""
    told = []
    for settings in ({"momentum": 1.5}, {"epsilon": -1.0}):
        try:
            make(**settings)
        except (ValueError, TypeError) as error:
            told.append(first_line(error))
        else:
            raise Failed(f"{settings} is accepted")
    return told[0]


@probe
def a_clipping_error_names_what_it_received(make):
    """An f-string without its f: the message shows {rmax} and not the value."""
    error = _refusal(lambda: make(renorm=True, renorm_clipping={"rmax": 0.5, "rmin": 2.0}))
    return expect("0.5" in str(error), first_line(error))


@probe
def masked_positions_do_not_count(make):
    """Padded sequences: padding is no data."""
    x, mask = draw(4, 6, 3, mean=2.0), np.random.default_rng(0).random((4, 6)) < 0.6
    layer, packed = make(momentum=0.0), make(momentum=0.0)
    y = array(layer(x, training=True, mask=tf.constant(mask)))
    expected = array(packed(x[mask], training=True))
    alike(array(layer.moving_variance), array(packed.moving_variance))
    return alike(y[mask], expected)


@probe
def a_mask_goes_with_channels_first(make):
    """Channels-first sequences have padding too."""
    x, mask = draw(4, 3, 6, mean=2.0), np.random.default_rng(0).random((4, 6)) < 0.6
    layer = make(axis=1, momentum=0.0)
    layer(x, training=True, mask=tf.constant(mask))
    return alike(array(layer.moving_mean), x.transpose(0, 2, 1)[mask].mean(0))


@probe
def a_mask_is_handed_on(make):
    """A layer behind this one, such as an LSTM, needs the mask as well."""
    layer = make()
    layer.build((4, 6, 3))
    mask = np.ones((4, 6), bool)
    return expect(
        layer.supports_masking and layer.compute_mask(draw(4, 6, 3), mask) is mask,
        f"supports_masking={layer.supports_masking}",
    )
