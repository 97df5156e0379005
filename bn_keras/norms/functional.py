"""Batch normalization as pure functions over keras.ops: arithmetic without a layer.

`batch_norm` is training mode and `normalize` inference mode. One place, `batch_norm`, decides
whether a TensorFlow kernel does the work; every other backend computes the same with keras.ops.
"""

import keras
from keras import ops


def batch_norm(x, gamma, beta, *, axis=-1, epsilon=1e-3, mask=None, synchronized=False):
    """Normalizes x with its own statistics (Ioffe & Szegedy 2015, algorithm 1).

    Args:
        x: tensor of static rank 2 or more, floating.
        gamma: scale, shape (channels,), float32 or the wider dtype of x; None means ones.
        beta: offset, likewise; None means zeros.
        axis: the channel axis.
        epsilon: added to the variance.
        mask: boolean tensor of x's shape without the channel axis; True counts.
        synchronized: take the statistics over all replicas of `tf.distribute`.

    Returns:
        `(outputs, mean, variance)`: outputs in the shape and dtype of x; mean and biased variance
        of shape (channels,), in float32 at least and without a gradient.
    """
    axis = axis % len(x.shape)
    dtype = keras.backend.result_type(x.dtype, "float32")
    if mask is None and not synchronized and keras.backend.backend() == "tensorflow":
        from bn_keras.norms import kernels

        channels = x.shape[axis]
        gamma = ops.ones((channels,), dtype) if gamma is None else ops.cast(gamma, dtype)
        beta = ops.zeros((channels,), dtype) if beta is None else ops.cast(beta, dtype)
        return kernels.batch_norm(x, gamma, beta, axis, epsilon)
    mean, variance = moments(x, axis=axis, mask=mask, synchronized=synchronized)
    outputs = normalize(x, mean, variance, gamma, beta, axis=axis, epsilon=epsilon)
    return outputs, ops.stop_gradient(mean), ops.stop_gradient(variance)


def moments(x, *, axis=-1, mask=None, synchronized=False):
    """Mean and biased variance of every channel, each of shape (channels,).

    Two passes: the variance is the mean squared distance from the mean, which keeps its digits
    where E[x^2] - E[x]^2 loses them. float16 and bfloat16 are reduced in float32.
    """
    x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    axis = axis % len(x.shape)
    axes = [a for a in range(len(x.shape)) if a != axis]
    if mask is None:
        weights = None
        count = ops.cast(ops.size(x) // x.shape[axis], x.dtype)
    else:
        weights = ops.cast(ops.expand_dims(ops.cast(mask, "bool"), axis), x.dtype)
        weights = ops.broadcast_to(weights, ops.shape(ops.take(x, [0], axis=axis)))
        count = ops.sum(weights)

    def total(values):
        # `where` and not a product: a masked position may hold inf or NaN.
        kept = values if weights is None else ops.where(weights > 0, values, 0)
        return ops.sum(kept, axis=axes)

    totals = [count, total(x)]
    count, summed = _over_replicas(totals) if synchronized else totals
    mean = summed / ops.maximum(count, 1)
    squares = total(ops.square(x - broadcast(mean, x, axis)))
    if synchronized:
        (squares,) = _over_replicas([squares])
    return mean, squares / ops.maximum(count, 1)


def normalize(x, mean, variance, gamma=None, beta=None, *, axis=-1, epsilon=1e-3):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, in the shape and dtype of x."""
    dtype = keras.backend.result_type(x.dtype, "float32")
    wide = ops.cast(x, dtype)
    scale = ops.rsqrt(ops.cast(variance, dtype) + epsilon)
    if gamma is not None:
        scale = scale * ops.cast(gamma, dtype)
    # One multiplication and one addition a value; the rest is a channel's arithmetic.
    shift = -ops.cast(mean, dtype) * scale
    if beta is not None:
        shift = shift + ops.cast(beta, dtype)
    outputs = wide * broadcast(scale, x, axis) + broadcast(shift, x, axis)
    return ops.cast(outputs, x.dtype)


def broadcast(per_channel, x, axis):
    """A (channels,) tensor reshaped so that it broadcasts along `axis` of x."""
    shape = [1] * len(x.shape)
    shape[axis] = -1
    return ops.reshape(per_channel, shape)


def _over_replicas(values):
    from bn_keras.norms import kernels

    return kernels.all_reduce_sum(values)
