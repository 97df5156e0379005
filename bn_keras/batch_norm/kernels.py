"""TensorFlow's kernels for training-mode batch normalization, behind the contract of `functional`.

The only file with raw TensorFlow. Each kernel takes `(x, gamma, beta, axis, epsilon)` and returns
`(outputs, mean, variance)` with the biased variance; mean and variance carry no gradient.
"""

import tensorflow as tf

FUSED_DTYPES = ("float32", "bfloat16", "float16")


def batch_norm(x, gamma, beta, axis, epsilon):
    """Training-mode batch normalization by the fastest kernel for this rank, axis and dtype.

    Args:
        x: tensor of static rank, in a floating dtype.
        gamma, beta: shape (channels,), float32 (float64 for float64 x).
        axis: the channel axis, not negative.
        epsilon: added to the variance.
    """
    rank = x.shape.rank
    if axis != rank - 1:
        # Two transpositions and a kernel for channels last take half the time of reductions over
        # the other axes, which no kernel is made for.
        order = [a for a in range(rank) if a != axis] + [axis]
        outputs, mean, variance = batch_norm(
            tf.transpose(x, order), gamma, beta, rank - 1, epsilon
        )
        return tf.transpose(outputs, [order.index(a) for a in range(rank)]), mean, variance
    # The fused kernel's statistics of an empty batch are NaN, under XLA its gradients too.
    if rank == 2 or x.dtype.name not in FUSED_DTYPES or 0 in x.shape:
        return _closed_form(x, gamma, beta, epsilon)
    if x.shape.is_fully_defined():
        return _fused(x, gamma, beta, epsilon)
    # Only the run will tell whether the batch is empty: NaN times 0 is 0 then, backwards too.
    some = tf.cast(tf.size(x) > 0, gamma.dtype)
    keep = tf.math.multiply_no_nan
    outputs, mean, variance = _fused(x, keep(gamma, some), beta, epsilon)
    return outputs, keep(mean, some), keep(variance, some)


def _fused(x, gamma, beta, epsilon):
    """The fused kernel, which takes images: any rank is given to it as one image of one row.

    Told so, XLA too makes a fast program of it, 2 to 3 times as fast as for the true shape; without
    XLA the shape makes no difference. One pixel an image, the other way round, costs a third more.
    """
    images = tf.reshape(x, [1, 1, -1, x.shape[-1]])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=gamma,
        offset=beta,
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    )
    outputs = tf.reshape(outputs, tf.shape(x))
    # The kernel hands out the Bessel-corrected variance (n - 1 in the denominator). Its gradient
    # takes no account of what comes through mean and variance.
    n = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
    return outputs, mean, variance * ((n - 1) / n)


def _closed_form(x, gamma, beta, epsilon):
    """Channels last: the backward pass in closed form, nothing recomputed."""

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        dtype = gamma.dtype
        # At least 1: an empty batch has gradients of 0 and not of NaN.
        share = 1 / tf.cast(tf.maximum(tf.size(x) // x.shape[-1], 1), dtype)
        # float16 and bfloat16 inputs are reduced in float32.
        wide = tf.cast(x, dtype)
        mean = _channel_sums(wide) * share
        centered = wide - mean
        variance = _channel_sums(tf.square(centered)) * share
        inverse = tf.math.rsqrt(variance + tf.constant(epsilon, dtype))
        scale = inverse * gamma
        outputs = centered * scale + beta

        def gradient(doutputs, *_):  # mean and variance carry no gradient
            dy = tf.cast(doutputs, dtype)
            dbeta = _channel_sums(dy)
            dgamma = _channel_sums(dy * centered) * inverse
            dx = scale * (dy - (centered * (inverse * share * dgamma) + share * dbeta))
            return tf.cast(dx, x.dtype), dgamma, dbeta

        return (tf.cast(outputs, x.dtype), mean, variance), gradient

    return normalize(x, gamma, beta)


def _channel_sums(x):
    """Sums over all axes but the last: a bias's gradient, 3 times as fast as reduce_sum."""
    return tf.raw_ops.BiasAddGrad(out_backprop=x)


def move(variable, value, rate):
    """`functional.move` for a tf.Variable, in four small ops."""
    variable.assign_sub(tf.math.multiply_no_nan(variable - value, rate))


def all_reduce_sum(value, group_size=None):
    """Sums a tensor over the replicas of `tf.distribute`, differentiably.

    Args:
        value: tensor.
        group_size: sum over consecutive groups of that many replicas; None means all.

    Returns:
        The sum; outside of replicas, the value as given.

    Raises:
        ValueError: the number of replicas is no multiple of the group size.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    replicas = context.num_replicas_in_sync
    if group_size is None or group_size == replicas:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
    if replicas % group_size:
        raise ValueError(
            f"BatchNorm: replica_group_size={group_size} with {replicas} replicas; expected a "
            "divisor of their number."
        )
    # all_reduce knows no groups: every group adds up in a row of its own.
    group = context.replica_id_in_sync_group // group_size
    row = tf.one_hot(group, replicas // group_size, dtype=value.dtype)
    rows = tf.tensordot(row, value, axes=0)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, rows)[group]


def require(condition, message):
    """Stops the graph with the message where the condition, a boolean tensor, does not hold."""
    tf.debugging.Assert(condition, [message])
