"""TensorFlow's kernels for batch normalization, behind the contract of `functional`.

The only file with raw TensorFlow. `batch_norm` is training mode and returns `(outputs, mean,
variance)` with the biased variance and no gradient through mean and variance; `normalize` is
inference mode.
"""

import itertools
import math
import weakref
from typing import Any, Callable, ContextManager, List, Optional, Sequence, Tuple

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import control_flow_util

FUSED_DTYPES = ("float32", "bfloat16", "float16")
# The fused kernel has a fixed cost of some 300 µs, forward and backward; the closed form is through
# with a smaller input before that.
FUSED_FROM = 100_000
# Sums of so many rows are made in parts. With fewer rows, the ops that it takes would show.
PARTS_FROM, PARTS = 1000, 8
# A channel whose mean is as many standard deviations from zero is far from it, as some rows judge.
FAR, SAMPLED_ROWS = 4, 32
# Added to a scale that inference divides by: it may be 0, and 1e-20 times a value is nothing.
TINY = 1e-20

_NUMBERS = itertools.count()

# Takes tensors; gives its outputs, and what makes the inputs' gradients of the outputs' ones.
_Function = Callable[..., Tuple[Sequence[tf.Tensor], Callable[..., Sequence[tf.Tensor]]]]


def batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, axis: int, epsilon: float
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Training-mode batch normalization by the fastest kernel that is exact in its setting.

    Args:
        x: tensor of static rank, in a floating dtype.
        gamma, beta: shape (channels,), float32 (float64 for float64 x).
        axis: the channel axis, not negative.
        epsilon: added to the variance.
    """
    size = x.shape.num_elements()  # None if a dimension is open
    # XLA expands the fused kernel to E[x^2] - E[x]^2, which is NaN at mean 1000 and deviation 1. On
    # a GPU it keeps other things for its gradient than on a CPU, which nobody has tried here.
    if (
        x.shape.rank == 2 or x.dtype.name not in FUSED_DTYPES or not x.shape[axis]
        or (size is not None and size < FUSED_FROM)
        or _traced_for_xla() or tf.config.list_physical_devices("GPU")
    ):
        return _closed_form(x, gamma, beta, axis, epsilon)
    fused = True
    if not tf.executing_eagerly():
        # A graph that is traced now may become part of one that XLA compiles: only the run tells.
        fused = tf.logical_not(_run_by_xla())
        if size is None:
            fused = tf.logical_and(fused, tf.size(x) >= FUSED_FROM)
    return _whichever(fused, x, gamma, beta, axis, epsilon)


def _traced_for_xla() -> bool:
    """Whether the graph is being traced within a `tf.function(jit_compile=True)`."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _run_by_xla() -> bool:
    """Whether XLA runs this graph, a boolean tensor: its device index lies behind the list."""
    devices = ["CPU", "GPU"]
    return tf.equal(tf.raw_ops.DeviceIndex(device_names=devices), len(devices))


def _fused(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, axis: int, epsilon: float
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """The fused kernel. Returns outputs, pivot and offset, whose sum the mean is, and variance."""
    image, pivot = _near_zero(_as_image(x, axis), epsilon, gamma.dtype)
    offset, variance = _moments(image)
    outputs, *_ = tf.raw_ops.FusedBatchNormV3(
        x=image, scale=gamma, offset=beta, mean=offset, variance=variance, epsilon=epsilon,
        is_training=False,
    )
    return _from_image(outputs, x, axis), pivot, offset, variance


def _moments(image: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance of an image's channels, by the fused kernel on a wider image.

    The kernel adds up row after row, and its rounding grows with the number of rows. Given a part
    of the rows with as many times the channels, it makes short sums of each, which are joined
    exactly, together with the rows that are left over (Chan, Golub & LeVeque 1983).
    """
    channels = image.shape[-1]
    parts = _parts(channels)
    rows = tf.reshape(image, [-1, channels])  # the first of them are no copy, those of an image are
    count = tf.shape(rows)[0]
    even = count - count % parts
    ones = tf.ones([parts * channels])
    _, means, _, _, variances, _ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(rows[:even], [1, 1, -1, parts * channels]), scale=ones, offset=ones,
        mean=tf.zeros([0]), variance=tf.zeros([0]), is_training=True,
    )
    means, variances = (tf.reshape(value, [parts, channels]) for value in (means, variances))
    mean = tf.reduce_mean(means, 0)
    left = tf.cast(rows[even:], mean.dtype) - mean
    n, size = tf.cast(count, mean.dtype), tf.cast(even // parts, mean.dtype)
    offset = tf.reduce_sum(left, 0) / n  # the parts have a mean of 0 now
    squares = size * tf.reduce_sum(variances + tf.square(means - mean), 0)
    squares += tf.reduce_sum(tf.square(left), 0)
    return mean + offset, squares / n - tf.square(offset)


def _parts(channels: int) -> int:
    """In how many parts long sums are made: as many as keep a row of sums in the first cache."""
    return min(max(1024 // channels, 8), 256)


def _near_zero(image: tf.Tensor, epsilon: float, dtype: tf.DType) -> Tuple[tf.Tensor, tf.Tensor]:
    """An image minus a pivot that is 0 unless a channel is far from zero; and the pivot.

    The kernel adds up row after row, and its mean is off by some 30 units in the last place. A few
    rows tell whether that would show; only then is a pass over the image spent on it.
    """
    rows = tf.shape(image)[2]
    sample = tf.cast(image[0, 0, ::tf.maximum(rows // SAMPLED_ROWS, 1)], dtype)
    mean = tf.reduce_mean(sample, 0)
    variance = tf.reduce_mean(tf.square(sample - mean), 0)
    far = tf.square(mean) > FAR**2 * (variance + tf.constant(epsilon, dtype))
    # Rounded to the image's dtype: half-precision distances from it are exact then.
    pivot = tf.stop_gradient(tf.where(far, tf.cast(mean, image.dtype), 0))
    shifted = tf.cond(tf.reduce_any(far), lambda: image - pivot, lambda: image)
    shifted.set_shape(image.shape)
    return shifted, tf.cast(pivot, dtype)


def _as_image(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Any tensor as one image of one row, (1, 1, values, channels), as the fused kernel takes it.

    One pixel an image, the other way round, costs a third more.
    """
    order = _channels_last(x.shape.rank, axis)
    # Two transpositions and a kernel for channels last take half the time of reductions over the
    # other axes, which no kernel is made for.
    x = x if order is None else tf.transpose(x, order)
    return tf.reshape(x, [1, 1, -1, x.shape[-1]])


def _from_image(image: tf.Tensor, x: tf.Tensor, axis: int) -> tf.Tensor:
    """The way back from `_as_image(x, axis)`."""
    order = _channels_last(x.shape.rank, axis)
    if order is None:
        return tf.reshape(image, tf.shape(x))
    image = tf.reshape(image, tf.gather(tf.shape(x), order))
    return tf.transpose(image, [order.index(a) for a in range(len(order))])


def _channels_last(rank: int, axis: int) -> Optional[List[int]]:
    return None if axis == rank - 1 else [a for a in range(rank) if a != axis] + [axis]


def _with_gradient(function: _Function) -> Callable[..., Sequence[tf.Tensor]]:
    """As `tf.custom_gradient`, but lets a graph go when nobody needs it any more.

    TensorFlow's registers every gradient in every graph for good, and a gradient holds the tensors
    of its graph: each graph that was ever traced would stay in memory.
    """
    def with_gradient(*inputs: tf.Tensor) -> Sequence[tf.Tensor]:
        if tf.executing_eagerly():
            return tf.custom_gradient(function)(*inputs)
        outputs, gradient = function(*inputs)

        def backward(*gradients: tf.Tensor) -> List[Optional[tf.Tensor]]:
            return [None] * len(outputs) + [*gradient(*gradients[:len(outputs)])]

        graph, kept = tf.compat.v1.get_default_graph(), weakref.ref(backward)
        graph.add_to_collection("bn_keras_gradients", backward)  # as long as the graph lives
        # Not one name for all: a SavedModel has one gradient for each name.
        name = f"BatchNormGradient{next(_NUMBERS)}"
        tf.RegisterGradient(name)(lambda _, *gradients: kept()(*gradients))  # type: ignore[misc]
        tensors = [*outputs, *inputs]
        with graph.gradient_override_map({"IdentityN": name}):
            results = tf.identity_n(tensors)
        record.record_operation(name, results, tensors, backward)  # tapes ask no registry
        return results[:len(outputs)]

    return with_gradient


def _closed_form(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, axis: int, epsilon: float
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Two passes around a pivot, and the backward pass in closed form."""
    channels = _Channels(x, axis)

    @_with_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        centered, pivot, offset, variance = _center(x, channels, gamma.dtype)
        outputs = _scale_and_shift(centered, variance, gamma, beta, channels, epsilon)

        def gradient(
            doutputs: tf.Tensor, *_: tf.Tensor
        ) -> Any:
            return _backward(doutputs, centered, variance, gamma, channels, epsilon)

        return (tf.cast(outputs, x.dtype), pivot + offset, variance), gradient

    outputs, mean, variance = normalize(x, gamma, beta)
    return outputs, mean, variance


def _whichever(
    fused: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, axis: int, epsilon: float
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The fused kernel where a boolean holds, else the closed form; likewise backwards.

    The gradient has a choice of its own: XLA cannot compile that through the choice of a graph that
    was traced without it.
    """
    channels = _Channels(x, axis)

    @_with_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        def by_kernel() -> Any:
            return _fused(x, gamma, beta, axis, epsilon)

        def by_closed_form() -> Any:
            centered, pivot, offset, variance = _center(x, channels, gamma.dtype)
            outputs = _scale_and_shift(centered, variance, gamma, beta, channels, epsilon)
            return tf.cast(outputs, x.dtype), pivot, offset, variance

        outputs, pivot, offset, variance = tf.cond(fused, by_kernel, by_closed_form)
        # The branches do not know all sizes.
        outputs.set_shape(x.shape)
        for per_channel in (pivot, offset, variance):
            per_channel.set_shape(gamma.shape)

        def gradient(doutputs: tf.Tensor, *_: tf.Tensor) -> Any:
            def by_kernel() -> Any:
                image = _as_image(x, axis)
                shifted = tf.cond(
                    tf.reduce_any(pivot != 0),
                    lambda: image - tf.cast(pivot, x.dtype),
                    lambda: image,
                )
                dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=_as_image(doutputs, axis), x=shifted, scale=gamma,
                    reserve_space_1=offset, reserve_space_2=variance,
                    reserve_space_3=tf.zeros([0]), epsilon=epsilon, is_training=True,
                )
                return _from_image(dx, x, axis), dgamma, dbeta

            def by_closed_form() -> Any:
                shifted = tf.cast(channels.flat(x), gamma.dtype) - channels.spread(pivot)
                centered = shifted - channels.spread(offset)
                return _backward(doutputs, centered, variance, gamma, channels, epsilon)

            dx, dgamma, dbeta = tf.cond(fused, by_kernel, by_closed_form)
            dx.set_shape(x.shape)
            for per_channel in (dgamma, dbeta):
                per_channel.set_shape(gamma.shape)
            return dx, dgamma, dbeta

        return (outputs, pivot + offset, variance), gradient

    outputs, mean, variance = normalize(x, gamma, beta)
    return outputs, mean, variance


def _center(
    x: tf.Tensor, channels: "_Channels", dtype: tf.DType
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """x minus its mean, pivot and offset whose sum the mean is, and the variance.

    The pivot is one of the batch's own rows. Mean and variance are sums of distances from it, so
    that values far from zero lose no digits. float16 and bfloat16 are reduced in float32.
    """
    total, spread = channels.exact_total, channels.spread
    wide = tf.cast(channels.flat(x), dtype)
    share = channels.share(dtype)
    pivot = channels.pivot(wide)
    shifted = wide if pivot is None else wide - spread(pivot)
    offset = total(shifted) * share
    centered = shifted - spread(offset)
    variance = total(tf.square(centered)) * share
    return centered, tf.zeros_like(offset) if pivot is None else pivot, offset, variance


def _scale_and_shift(
    centered: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    channels: "_Channels",
    epsilon: float,
) -> tf.Tensor:
    inverse = tf.math.rsqrt(variance + tf.constant(epsilon, variance.dtype))
    return channels.restored(
        centered * channels.spread(inverse * gamma) + channels.spread(beta)
    )


def _backward(
    doutputs: tf.Tensor,
    centered: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor,
    channels: "_Channels",
    epsilon: float,
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of x, gamma and beta (Ioffe & Szegedy 2015, section 3, put together)."""
    total, spread = channels.total, channels.spread
    inverse = tf.math.rsqrt(variance + tf.constant(epsilon, variance.dtype))
    share = channels.share(variance.dtype)
    dy = tf.cast(channels.flat(doutputs), variance.dtype)
    dbeta = total(dy)
    dgamma = total(dy * centered) * inverse
    through_moments = centered * spread(inverse * share * dgamma) + spread(share * dbeta)
    dx = channels.restored(spread(inverse * gamma) * (dy - through_moments))
    return tf.cast(dx, doutputs.dtype), dgamma, dbeta


def normalize(
    x: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    axis: int,
    epsilon: float,
) -> tf.Tensor:
    """Inference mode: gamma * (x - mean) / sqrt(variance + epsilon) + beta, in two passes over x.

    It is computed as (x - center) * scale with center = mean - beta / scale: values far from zero
    come near it before they are scaled, while x * scale + shift cancels.

    Args:
        x: tensor of static rank, float32 or float64.
        mean, variance, gamma, beta: shape (channels,), of x's dtype.
        axis: the channel axis, not negative.
        epsilon: added to the variance.
    """
    channels = _Channels(x, axis)
    total, spread = channels.total, channels.spread

    @_with_gradient
    def normalize(
        x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor
    ) -> Any:
        inverse = tf.math.rsqrt(variance + tf.constant(epsilon, x.dtype))
        scale = inverse * gamma + tf.constant(TINY, x.dtype)
        flat = channels.flat(x)
        outputs = (flat - spread(mean - beta / scale)) * spread(scale)

        def gradient(doutputs: tf.Tensor) -> Any:
            dy = channels.flat(doutputs)
            dbeta = total(dy)
            dgamma = total(dy * (flat - spread(mean))) * inverse
            dvariance = -0.5 * gamma * tf.square(inverse) * dgamma
            return channels.restored(dy * spread(scale)), -scale * dbeta, dvariance, dgamma, dbeta

        return (channels.restored(outputs),), gradient

    outputs, = normalize(x, mean, variance, gamma, beta)
    return outputs


class _Channels:
    """A tensor seen as rows of channels: (rows, channels), or (before, channels, behind)."""

    def __init__(self, x: tf.Tensor, axis: int) -> None:
        shape = x.shape.as_list()
        if None in shape:
            self._shape = tf.shape(x)
            before, behind = (tf.reduce_prod(part)
                              for part in (self._shape[:axis], self._shape[axis + 1:]))
        else:
            self._shape = shape
            before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1:])
        self._last = axis == len(shape) - 1
        self._is_flat = self._last and len(shape) == 2
        self._sizes = [before, shape[axis]] if self._last else [before, shape[axis], behind]
        self._middle = [size // 2 for size in (before, behind)]
        self._count = before if self._last else before * behind
        many = self._last and isinstance(before, int) and before >= PARTS_FROM
        self._even = before - before % PARTS if many else 0

    def share(self, dtype: tf.DType) -> tf.Tensor:
        """1 / n, where an empty batch counts as one value: its gradients are 0 and not NaN."""
        if isinstance(self._count, int):
            return tf.constant(1 / max(self._count, 1), dtype)
        return 1 / tf.cast(tf.maximum(self._count, 1), dtype)

    def flat(self, x: tf.Tensor) -> tf.Tensor:
        return x if self._is_flat else tf.reshape(x, self._sizes)

    def restored(self, flat: tf.Tensor) -> tf.Tensor:
        return flat if self._is_flat else tf.reshape(flat, self._shape)

    def pivot(self, flat: tf.Tensor) -> Optional[tf.Tensor]:
        """One value of each channel, (channels,); None where it would not pay.

        XLA on a CPU sums up what it reads twice as fast as what it computes on the way; its two
        passes are as exact as those of Keras's layer, and more so where sums are made in parts.
        """
        if _traced_for_xla():
            return None
        before, behind = self._middle
        if isinstance(self._count, int) and self._count > 0:
            return flat[before] if self._last else flat[before, :, behind]
        row = flat[before:before + 1]  # of an empty batch there is none, and the sum is 0
        return self.total(row if self._last else row[:, :, behind:behind + 1])

    def total(self, flat: tf.Tensor) -> tf.Tensor:
        """Sums of the channels, (channels,)."""
        if not self._last:
            return tf.reduce_sum(flat, [0, 2])
        # A bias's gradient is such a sum, 3 times as fast as reduce_sum.
        return tf.raw_ops.BiasAddGrad(out_backprop=flat)

    def exact_total(self, flat: tf.Tensor) -> tf.Tensor:
        """As `total`, which adds up row after row; this makes short sums of parts of many rows."""
        if not self._even:
            return self.total(flat)
        rows = flat.shape[0]
        even = flat if self._even == rows else flat[:self._even]
        sums = self.total(tf.reshape(even, [-1, PARTS * flat.shape[-1]]))
        sums = tf.reduce_sum(tf.reshape(sums, [PARTS, -1]), 0)
        return sums if self._even == rows else sums + self.total(flat[self._even:])

    def spread(self, per_channel: tf.Tensor) -> tf.Tensor:
        """(channels,) as it broadcasts against a flat tensor."""
        return per_channel if self._last else per_channel[:, tf.newaxis]


def move(variable: tf.Variable, value: tf.Tensor, rate: tf.Tensor) -> None:
    """`functional.move` for a tf.Variable, in four small ops."""
    variable.assign_sub(tf.math.multiply_no_nan(variable - value, rate))


def add(variable: tf.Variable, value: tf.Tensor) -> None:
    """`functional.add` for a tf.Variable, in one op."""
    variable.assign_add(value)


def all_reduce_sum(value: tf.Tensor, group_size: Optional[int] = None) -> tf.Tensor:
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


def require(condition: tf.Tensor, message: str) -> None:
    """Stops the graph with the message where the condition, a boolean tensor, does not hold."""
    tf.debugging.Assert(condition, [message])


def outside_of_graphs() -> ContextManager[Any]:
    """Lifts what is made in it out of the graph that is being traced."""
    return tf.init_scope()
