"""Batch normalization as pure functions over keras.ops: arithmetic without a layer.

`batch_norm` is training mode and `normalize` inference mode. One place, `batch_norm`, decides
whether a TensorFlow kernel does the work; every other backend computes the same with keras.ops.
"""

import math

import keras
from keras import ops


def batch_norm(
    x, gamma, beta, *, axis=-1, epsilon=1e-3, mask=None, synchronized=False, group_size=None, n=None
):
    """Normalizes x with its own statistics (Ioffe & Szegedy 2015, algorithm 1).

    Args:
        x: tensor of static rank 2 or more, floating.
        gamma: scale, shape (channels,), float32 or the wider dtype of x; None means ones.
        beta: offset, likewise; None means zeros.
        axis: the channel axis.
        epsilon: added to the variance.
        mask: boolean tensor of x's shape without the channel axis; True counts.
        synchronized: take the statistics over all replicas of `tf.distribute`.
        group_size: if synchronized, over consecutive groups of that many replicas only.
        n: what `count` gives for these arguments, if the caller has it already.

    Returns:
        `(outputs, mean, variance)`: outputs in the shape and dtype of x; mean and biased variance
        of shape (channels,), in float32 at least and without a gradient.
    """
    axis = axis % len(x.shape)
    dtype = keras.backend.result_type(x.dtype, "float32")
    if mask is None and not synchronized and keras.backend.backend() == "tensorflow":
        from bn_keras.batch_norm import kernels

        channels = x.shape[axis]
        gamma = ops.ones((channels,), dtype) if gamma is None else ops.cast(gamma, dtype)
        beta = ops.zeros((channels,), dtype) if beta is None else ops.cast(beta, dtype)
        return kernels.batch_norm(x, gamma, beta, axis, epsilon)
    mean, variance = moments(
        x, axis=axis, mask=mask, synchronized=synchronized, group_size=group_size, n=n
    )
    outputs = normalize(x, mean, variance, gamma, beta, axis=axis, epsilon=epsilon)
    return outputs, ops.stop_gradient(mean), ops.stop_gradient(variance)


def moments(x, *, axis=-1, mask=None, synchronized=False, group_size=None, n=None):
    """Mean and biased variance of every channel, each of shape (channels,).

    Two passes: the variance is the mean squared distance from the mean, which keeps its digits
    where E[x^2] - E[x]^2 loses them. float16 and bfloat16 are reduced in float32. Where nothing
    counts, both are 0.
    """
    x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    axis = axis % len(x.shape)
    axes = [a for a in range(len(x.shape)) if a != axis]
    keep = None if mask is None else ops.expand_dims(ops.cast(mask, "bool"), axis)

    def total(values):
        # `where` and not a product: a masked position may hold inf or NaN.
        kept = values if keep is None else ops.where(keep, values, ops.zeros_like(values))
        summed = ops.sum(kept, axis=axes)
        return _over_replicas(summed, group_size) if synchronized else summed

    if n is None:
        n = count(x, axis=axis, mask=mask, synchronized=synchronized, group_size=group_size)
    n = ops.maximum(ops.cast(n, x.dtype), 1)
    mean = total(x) / n
    return mean, total(ops.square(x - broadcast(mean, x, axis))) / n


def count(x, *, axis=-1, mask=None, synchronized=False, group_size=None):
    """How many values of a channel count: an int where the shapes tell, else a scalar tensor."""
    axis = axis % len(x.shape)
    others = [size for a, size in enumerate(x.shape) if a != axis]
    if mask is None and None not in others:
        n = math.prod(others)
        if not synchronized:
            return n
    elif mask is None:
        n = ops.size(x) // x.shape[axis]
    else:
        mask = ops.expand_dims(ops.cast(mask, "int32"), axis)
        # The mask may be as short as 1 where it is to be repeated.
        n = ops.sum(ops.broadcast_to(mask, ops.shape(ops.take(x, [0], axis=axis))))
    return _over_replicas(ops.cast(n, "int32"), group_size) if synchronized else n


def normalize(x, mean, variance, gamma=None, beta=None, *, axis=-1, epsilon=1e-3):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, in the shape and dtype of x."""
    dtype = keras.backend.result_type(x.dtype, "float32")
    wide = ops.cast(x, dtype)
    scale = ops.rsqrt(ops.cast(variance, dtype) + epsilon)
    if gamma is not None:
        scale = scale * ops.cast(gamma, dtype)
    # One multiplication and one addition a value; the rest is a channel's arithmetic.
    shift = ops.cast(mean, dtype) * scale
    shift = -shift if beta is None else ops.cast(beta, dtype) - shift
    outputs = wide * broadcast(scale, x, axis) + broadcast(shift, x, axis)
    return ops.cast(outputs, x.dtype)


def move(variable, value, rate):
    """Moves a variable towards a value by a share of the way.

    Args:
        variable: keras.Variable.
        value: tensor of its shape.
        rate: scalar tensor of its dtype, the share; at 0 the variable keeps its value, also where
            `value` is not finite.
    """
    value = ops.cast(value, variable.dtype)
    if keras.backend.backend() == "tensorflow":
        from bn_keras.batch_norm import kernels

        kernels.move(variable.value, value, rate)
        return
    old = variable.value
    variable.assign(ops.where(rate == 0, old, old - (old - value) * rate))


def broadcast(per_channel, x, axis):
    """A (channels,) tensor reshaped so that it broadcasts along `axis` of x."""
    if axis % len(x.shape) == len(x.shape) - 1:
        return per_channel
    shape = [1] * len(x.shape)
    shape[axis] = -1
    return ops.reshape(per_channel, shape)


def _over_replicas(value, group_size):
    from bn_keras.batch_norm import kernels

    return kernels.all_reduce_sum(value, group_size)


def require(condition, message):
    """Stops where a boolean tensor does not hold; backends without assertions in graphs go on."""
    if keras.backend.backend() == "tensorflow":
        from bn_keras.batch_norm import kernels

        kernels.require(condition, message)
