"""Batch normalization as pure functions over keras.ops: arithmetic without a layer.

`batch_norm` is training mode and `normalize` inference mode. They decide whether a kernel of the
backend does the work; `standardize` is the same arithmetic for every backend, with masks and over
replicas.
"""

import contextlib
import importlib
import math
from typing import Any, ContextManager, Optional, Tuple

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

Tensor = Any  # of the backend: TensorFlow, PyTorch and JAX have no type in common
Count = Any  # an int where shapes tell it, else an integer tensor


def batch_norm(
    x: Tensor,
    gamma: Optional[Tensor],
    beta: Optional[Tensor],
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Optional[Tensor] = None,
    synchronized: bool = False,
    group_size: Optional[int] = None,
    n: Optional[Count] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Normalizes x with its own statistics (Ioffe & Szegedy 2015, algorithm 1).

    Args:
        x: tensor of static rank 2 or more; numbers that are no floats are taken as float32.
        gamma: scale, shape (channels,), float32 or the wider dtype of x; None means ones.
        beta: offset, likewise; None means zeros.
        axis: the channel axis.
        epsilon: added to the variance.
        mask: boolean tensor, True counts, in one of the shapes that `mask_like` takes.
        synchronized: take the statistics over all replicas of `tf.distribute`.
        group_size: if synchronized, over consecutive groups of that many replicas only.
        n: what `count` gives for these arguments, if the caller has it already.

    Returns:
        `(outputs, mean, variance)`: outputs in the shape and dtype of x; mean and biased variance
        of shape (channels,), in float32 at least and without a gradient.

    Raises:
        ValueError: the mask does not fit.
    """
    x = floating(x)
    axis = axis % len(x.shape)
    dtype = keras.backend.result_type(x.dtype, "float32")
    kernels = backend_kernels()
    if mask is None and not synchronized and kernels is not None:
        gamma, beta = _affine(gamma, beta, x.shape[axis], dtype)
        return kernels.batch_norm(x, gamma, beta, axis, epsilon)
    wide = ops.cast(x, dtype)
    sums = Sums(wide, axis, mask=mask, synchronized=synchronized, group_size=group_size)
    centered, mean, variance = standardize(wide, sums, n)
    outputs = affine(centered, ops.rsqrt(variance + epsilon), gamma, beta, sums)
    return ops.cast(outputs, x.dtype), ops.stop_gradient(mean), ops.stop_gradient(variance)


def normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Optional[Tensor] = None,
    beta: Optional[Tensor] = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, in the shape and dtype of x.

    Args: as for `batch_norm`; mean and variance are of shape (channels,).
    """
    x = floating(x)
    axis = axis % len(x.shape)
    dtype = keras.backend.result_type(x.dtype, "float32")
    wide, mean, variance = (ops.cast(value, dtype) for value in (x, mean, variance))
    kernels = backend_kernels()
    if kernels is not None:
        gamma, beta = _affine(gamma, beta, x.shape[axis], dtype)
        outputs = kernels.normalize(wide, mean, variance, gamma, beta, axis, epsilon)
    else:
        sums = Sums(wide, axis)
        outputs = affine(
            wide - sums.spread(mean), ops.rsqrt(variance + epsilon), gamma, beta, sums
        )
    return ops.cast(outputs, x.dtype)


def moments(
    x: Tensor,
    *,
    axis: int = -1,
    mask: Optional[Tensor] = None,
    synchronized: bool = False,
    group_size: Optional[int] = None,
    n: Optional[Count] = None,
) -> Tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, each of shape (channels,).

    Args: as for `batch_norm`. Where nothing counts, both are 0.
    """
    x = floating(x)
    wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    sums = Sums(wide, axis, mask=mask, synchronized=synchronized, group_size=group_size)
    return standardize(wide, sums, n)[1:]


def count(
    x: Tensor,
    *,
    axis: int = -1,
    mask: Optional[Tensor] = None,
    synchronized: bool = False,
    group_size: Optional[int] = None,
) -> Count:
    """How many values of a channel count.

    Returns:
        An int where the shapes tell, else an integer tensor: a scalar, or of shape (channels,)
        where the mask tells the channels apart.
    """
    return Sums(
        x, axis, mask=mask, synchronized=synchronized, group_size=group_size
    ).count()


def standardize(
    x: Tensor, sums: "Sums", n: Optional[Count] = None
) -> Tuple[Tensor, Tensor, Tensor]:
    """Subtracts the mean; the variance is the mean squared distance from it.

    A first estimate of the mean serves as pivot: what is summed then are distances from it, so
    that values far from zero lose no digits (Chan, Golub & LeVeque 1983, on shifted data). On JAX
    the first estimate is the mean.

    Args:
        x: tensor, float32 or float64.
        sums: a `Sums` of x.
        n: how many values count; None asks `sums`.

    Returns:
        `(centered, mean, variance)`: x minus its mean, in x's shape; the others in the shape of
        `sums.total`.
    """
    n = ops.maximum(ops.cast(sums.count() if n is None else n, x.dtype), 1)
    mean = sums.total(sums.kept(x)) / n
    if keras.backend.backend() == "jax":  # a third sum would cost 10 to 20 % under XLA
        centered = x - sums.spread(mean)
    else:
        pivot = ops.stop_gradient(mean)
        shifted = x - sums.spread(pivot)
        offset = sums.total(sums.kept(shifted)) / n
        centered, mean = shifted - sums.spread(offset), pivot + offset
    return centered, mean, sums.total(ops.square(sums.kept(centered))) / n


def affine(
    centered: Tensor, inverse: Tensor, gamma: Optional[Tensor], beta: Optional[Tensor], sums: "Sums"
) -> Tensor:
    """gamma * centered * inverse + beta; None means ones and zeros."""
    scale = inverse if gamma is None else inverse * ops.cast(gamma, inverse.dtype)
    outputs = centered * sums.spread(scale)
    if beta is None:
        return outputs
    return outputs + broadcast(ops.cast(beta, outputs.dtype), outputs, sums.axis)


class Sums:
    """How the values of a channel are counted and added up, and how a result is handed back.

    Args:
        x: tensor of static rank.
        axis: the channel axis.
        mask, synchronized, group_size: as for `batch_norm`.
    """

    def __init__(
        self,
        x: Tensor,
        axis: int = -1,
        *,
        mask: Optional[Tensor] = None,
        synchronized: bool = False,
        group_size: Optional[int] = None,
    ) -> None:
        self.x = x
        self.axis = axis % len(x.shape)
        self.others = [a for a in range(len(x.shape)) if a != self.axis]
        self._keep = None if mask is None else mask_like(x, mask, axis)
        self._synchronized, self._group_size = synchronized, group_size

    def count(self) -> Count:
        """As the function `count`."""
        if self._keep is not None:
            # A mask may be as short as 1 where it is to be repeated. Along the channels, 1 says
            # that all of them count alike.
            alike = self._keep.shape[self.axis] == 1
            shape = list(ops.shape(self.x))
            shape[self.axis] = 1 if alike else self.x.shape[self.axis]
            n = ops.sum(ops.broadcast_to(ops.cast(self._keep, "int32"), shape), self.others)
            return self._over_replicas(n[0] if alike else n)
        sizes = [self.x.shape[a] for a in self.others]
        if None not in sizes:
            n = math.prod(sizes)
            return self._over_replicas(ops.cast(n, "int32")) if self._synchronized else n
        return self._over_replicas(math.prod(ops.shape(self.x)[a] for a in self.others))

    def kept(self, values: Tensor) -> Tensor:
        """The values with those that do not count set to 0; they may be NaN before."""
        if self._keep is None:
            return values
        return ops.where(self._keep, values, ops.zeros_like(values))

    def total(self, values: Tensor) -> Tensor:
        """Sums of the channels, shape (channels,)."""
        return self._over_replicas(ops.sum(values, axis=self.others))

    def spread(self, per_channel: Tensor) -> Tensor:
        """A (channels,) tensor in a shape that broadcasts against x."""
        return broadcast(per_channel, self.x, self.axis)

    def _over_replicas(self, value: Tensor) -> Tensor:
        if not self._synchronized:
            return value
        return backend_kernels().all_reduce_sum(value, self._group_size)


def mask_like(x: Tensor, mask: Tensor, axis: int = -1) -> Tensor:
    """A mask in a shape that broadcasts against x, boolean.

    Args:
        x: tensor of static rank.
        mask: of shape `x.shape[:-1]`, as Keras's layers hand masks on, whatever the axis is; or of
            x's shape without `axis`. Where both fit, it is the first; a size that is open while a
            graph is traced fits. A size of 1 is repeated.
        axis: the channel axis.

    Raises:
        ValueError: neither fits.
    """
    shape, given = tuple(x.shape), tuple(mask.shape)
    axis = axis % len(shape)
    for place in (len(shape) - 1, axis):
        wanted = shape[:place] + shape[place + 1:]
        if len(given) == len(wanted) and all(
            size in (1, None) or other is None or size == other
            for size, other in zip(given, wanted)
        ):
            return ops.expand_dims(ops.cast(mask, "bool"), place)
    raise ValueError(
        "The mask provided should be one dimension less than the inputs. Received: "
        f"mask.shape={given}, inputs.shape={shape}; expected {shape[:-1]}"
        + ("." if axis == len(shape) - 1
           else f" or, without axis {axis}, {shape[:axis] + shape[axis + 1:]}.")
    )


def floating(x: Tensor) -> Tensor:
    """x itself if its numbers are floats, else as float32."""
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    return x if "float" in dtype else ops.cast(x, keras.backend.result_type(dtype, "float32"))


def move(variable: keras.Variable, value: Tensor, rate: Tensor) -> None:
    """Moves a variable towards a value by a share of the way.

    Args:
        variable: keras.Variable.
        value: tensor of its shape.
        rate: tensor of its dtype that broadcasts against it, the share; where it is 0, the
            variable keeps its value, also if `value` is not finite.
    """
    value = ops.cast(value, variable.dtype)
    old = variable.value
    if _assigns_in_place():
        backend_kernels().move(old, value, rate)
        return
    variable.assign(ops.where(rate == 0, old, old - (old - value) * rate))


def add(variable: keras.Variable, value: Tensor) -> None:
    """Adds a tensor to a variable."""
    value = ops.cast(value, variable.dtype)
    if _assigns_in_place():
        backend_kernels().add(variable.value, value)
        return
    variable.assign(variable.value + value)


def _assigns_in_place() -> bool:
    """Whether a variable's value is a tf.Variable: in a stateless scope it is the scope's copy."""
    return keras.backend.backend() == "tensorflow" and not in_stateless_scope()


def broadcast(per_channel: Tensor, x: Tensor, axis: int) -> Tensor:
    """A (channels,) tensor reshaped so that it broadcasts along `axis` of x."""
    if axis % len(x.shape) == len(x.shape) - 1:
        return per_channel
    shape = [1] * len(x.shape)
    shape[axis] = -1
    return ops.reshape(per_channel, shape)


def require(condition: Tensor, message: str) -> None:
    """Stops where a boolean tensor does not hold; backends without assertions in graphs go on."""
    if keras.backend.backend() == "tensorflow":
        backend_kernels().require(condition, message)


def concrete(value: Any) -> Optional[float]:
    """The value of a scalar as a float; None where only the run of a graph will tell."""
    try:
        return float(value)
    except Exception:  # each backend has its own error for "no value while tracing"
        return None


def outside_of_graphs() -> ContextManager[Any]:
    """A context in which variables are made that outlive the graph that is being traced."""
    if keras.backend.backend() == "tensorflow":
        return backend_kernels().outside_of_graphs()
    return contextlib.nullcontext()


def backend_kernels() -> Any:
    """The module of kernels for the present backend; None if there is none."""
    modules = {"tensorflow": "kernels", "torch": "torch_kernels"}
    name = modules.get(keras.backend.backend())
    return None if name is None else importlib.import_module(f"bn_keras.batch_norm.{name}")


def _affine(
    gamma: Optional[Tensor], beta: Optional[Tensor], channels: int, dtype: str
) -> Tuple[Tensor, Tensor]:
    """gamma and beta in a dtype, ones and zeros for None."""
    return (
        ops.ones((channels,), dtype) if gamma is None else ops.cast(gamma, dtype),
        ops.zeros((channels,), dtype) if beta is None else ops.cast(beta, dtype),
    )
