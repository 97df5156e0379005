"""Kinds of layers that Keras, PyTorch and Flax have, and how each of them lays out the weights.

`ports` reads this table; a kind more is an entry more. Keras and PyTorch both slide a kernel
without flipping it, so that going from one to the other moves axes and no more than that.
"""

import dataclasses
import math
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.surgery.surgeon import is_batch_normalization

Array = NDArray[Any]
Shape = tuple[int, ...]
Convert = Callable[[Array, Shape], Array]
L = keras.layers


class Misfit(ValueError):
    """A layer and what it is compared with do not belong together; the message is the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A layer of a net in another framework.

    Attributes:
        name: as in that net, such as "layer1.0.conv1".
        arrays: its weights and statistics by their names there.
        behind: names of the layers that certainly come before it.
        module: PyTorch's module, with its settings; None if only arrays are given.
    """

    name: str
    arrays: Mapping[str, Array]
    behind: frozenset[str] = frozenset()
    module: Any = None

    def __str__(self) -> str:
        kind = [] if self.module is None else [type(self.module).__name__]
        shapes = [f"{name} {array.shape}" for name, array in self.arrays.items() if array.ndim]
        return f"{self.name!r} ({', '.join(kind + shapes)})"


class Field(NamedTuple):
    """A weight in another framework.

    Attributes:
        name: there.
        read: `(its array, shape of Keras's weight) -> Keras's array`.
        write: `(Keras's array, shape of its array) -> its array`.
    """

    name: str
    read: Convert
    write: Convert


class Weight(NamedTuple):
    """A weight of a Keras layer, and its counterparts.

    Attributes:
        name: of Keras's variable.
        torch, flax: its counterparts.
        missing: the value that a layer without it behaves as if it had; None if it must be there.
    """

    name: str
    torch: Field
    flax: Field
    missing: Optional[float] = None


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        keras: classes of Keras.
        torch: names of classes of PyTorch.
        weights: what the layer has.
        settings: `(layer, module) -> pairs (what, Keras's value, PyTorch's value)` that must agree.
        own: other weights that a Keras layer of this kind may have, which a port leaves alone.
    """

    keras: tuple[type, ...]
    torch: tuple[str, ...]
    weights: tuple[Weight, ...]
    settings: Callable[[Any, Any], Iterator[tuple[str, Any, Any]]] = lambda layer, module: iter(())
    own: tuple[str, ...] = ()


def _same(array: Array, shape: Shape) -> Array:
    return array


def _vector(array: Array, shape: Shape) -> Array:
    if array.ndim > 1:
        raise Misfit(
            f"it normalizes over axes of sizes {array.shape}, whose order in the other framework "
            "is not known"
        )
    return array


def _reversed(array: Array, shape: Shape) -> Array:
    return array.T


def _kernel(array: Array, shape: Shape) -> Array:
    """(a, b, *positions) → (*positions, b, a)."""
    return np.moveaxis(array, (0, 1), (-1, -2))


def _torch_kernel(array: Array, shape: Shape) -> Array:
    return np.moveaxis(array, (-1, -2), (0, 1))


def _depthwise(array: Array, shape: Shape) -> Array:
    """(channels * multiplier, 1, *positions) → (*positions, channels, multiplier)."""
    if array.ndim != len(shape) or array.shape[:2] != (shape[-2] * shape[-1], 1):
        raise Misfit(f"weight {array.shape} is no kernel of one input channel for each output")
    return np.moveaxis(array, 0, -1)[0].reshape(shape)


def _torch_depthwise(array: Array, shape: Shape) -> Array:
    return np.moveaxis(array.reshape((*array.shape[:-2], -1)), -1, 0)[:, None]


def _flax_depthwise(array: Array, shape: Shape) -> Array:
    """(*positions, 1, channels * multiplier) → (*positions, channels, multiplier)."""
    if array.ndim != len(shape) or array.shape[-2:] != (1, shape[-2] * shape[-1]):
        raise Misfit(f"kernel {array.shape} is no kernel of one input channel for each output")
    return array.reshape(shape)


def _turned(array: Array, shape: Shape) -> Array:
    """Flax's transposed convolution slides the kernel that Keras's has mirrored."""
    positions = tuple(range(array.ndim - 2))
    return np.flip(np.swapaxes(array, -1, -2), positions)


def _slopes(array: Array, shape: Shape) -> Array:
    """One slope, or one for each channel, → Keras's slopes, which may differ between positions."""
    if array.size == 1:
        return np.full(shape, array.item())
    axis = -1 if array.shape == shape[-1:] else 0
    sizes = [1] * len(shape)
    sizes[axis] = array.size
    if array.ndim != 1 or shape[axis] != array.size:
        raise Misfit(f"weight {array.shape} does not go with alpha {shape}")
    return np.broadcast_to(array.reshape(sizes), shape)


def _torch_slopes(array: Array, shape: Shape) -> Array:
    channels = array.reshape(-1, array.shape[-1])
    if math.prod(shape) != 1 and array.shape[-1:] != shape:
        channels = array.reshape(array.shape[0], -1).T
    found = channels[0] if math.prod(shape) != 1 else channels.ravel()[:1]
    if not np.array_equal(np.broadcast_to(found, channels.shape), channels):
        raise Misfit(f"alpha {array.shape} has more values than a weight {shape} holds")
    return found.reshape(shape)


def _conv_settings(layer: Any, module: Any) -> Iterator[tuple[str, Any, Any]]:
    yield "strides", tuple(layer.strides), tuple(module.stride)
    yield "dilation", tuple(layer.dilation_rate), tuple(module.dilation)
    channels_in = module.in_channels
    if hasattr(layer, "depth_multiplier"):
        yield "groups", channels_in, module.groups
    else:
        yield "groups", getattr(layer, "groups", 1), module.groups


def _group_settings(layer: Any, module: Any) -> Iterator[tuple[str, Any, Any]]:
    channels = module.num_channels
    yield "groups", channels if layer.groups == -1 else layer.groups, module.num_groups


def _like(name: str, flax: str, missing: Optional[float], torch: str) -> Weight:
    return Weight(name, Field(torch, _same, _same), Field(flax, _same, _same), missing)


BIAS = _like("bias", "bias", 0.0, "bias")
SCALE = _like("gamma", "scale", 1.0, "weight")
OFFSET = _like("beta", "bias", 0.0, "bias")
BATCH_NORMS = ("_BatchNorm", "FrozenBatchNorm2d")
# PyTorch's counter of batches, which a layer of bn_keras that counts has as `updates`.
COUNTER = "num_batches_tracked"

BATCH_NORM = Kind(
    (L.BatchNormalization,), BATCH_NORMS,
    (
        SCALE, OFFSET, _like("moving_mean", "mean", None, "running_mean"),
        _like("moving_variance", "var", None, "running_var"),
    ),
    own=(
        "updates", "pooled_mean", "pooled_squares", "pooled_count", "pooled_freedom",
        "pooled_batches",
    ),
)
DENSE = Kind(
    (L.Dense,), ("Linear",),
    (Weight("kernel", Field("weight", _reversed, _reversed), Field("kernel", _same, _same)), BIAS),
)
KINDS = (
    BATCH_NORM,
    DENSE,
    Kind(
        (L.Conv1D, L.Conv2D, L.Conv3D), ("Conv1d", "Conv2d", "Conv3d"),
        (
            Weight(
                "kernel", Field("weight", _kernel, _torch_kernel), Field("kernel", _same, _same)
            ),
            BIAS,
        ),
        _conv_settings,
    ),
    Kind(
        (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose),
        ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
        (
            Weight(
                "kernel", Field("weight", _kernel, _torch_kernel),
                Field("kernel", _turned, _turned),
            ),
            BIAS,
        ),
        _conv_settings,
    ),
    Kind(
        (L.DepthwiseConv1D, L.DepthwiseConv2D), ("Conv1d", "Conv2d"),
        (
            Weight(
                "kernel", Field("weight", _depthwise, _torch_depthwise),
                Field("kernel", _flax_depthwise, lambda array, shape: array.reshape(shape)),
            ),
            BIAS,
        ),
        _conv_settings,
    ),
    Kind((L.Embedding,), ("Embedding",), (_like("embeddings", "embedding", None, "weight"),)),
    Kind(
        (L.LayerNormalization,), ("LayerNorm",),
        (
            Weight("gamma", Field("weight", _vector, _vector), Field("scale", _same, _same), 1.0),
            Weight("beta", Field("bias", _vector, _vector), Field("bias", _same, _same), 0.0),
        ),
    ),
    Kind((L.GroupNormalization,), ("GroupNorm",), (SCALE, OFFSET), _group_settings),
    Kind((L.RMSNormalization,), ("RMSNorm",), (_like("scale", "scale", 1.0, "weight"),)),
    Kind(
        (L.PReLU,), ("PReLU",),
        (
            Weight(
                "alpha", Field("weight", _slopes, _torch_slopes),
                Field("negative_slope", _slopes, _torch_slopes),
            ),
        ),
    ),
)
# Kinds whose outputs have the channels of the inputs, with one of each weight for each channel.
CHANNELWISE = (
    L.BatchNormalization, L.LayerNormalization, L.RMSNormalization, L.PReLU,
)


def kind_of(layer: keras.Layer) -> Optional[Kind]:
    """The kind of a layer.

    None if it is of none, computes something of its own, or has weights that the kind has not.
    """
    kinds: Any = KINDS
    computes = type(layer).call
    kind = BATCH_NORM if is_batch_normalization(layer) else next(
        (kind for kind in kinds if any(computes is one.call for one in kind.keras)), None
    )
    known = () if kind is None else (*(weight.name for weight in kind.weights), *kind.own)
    return kind if all(variable.name in known for variable in own_weights(layer)) else None


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The weights of a layer itself, without those of layers inside of it."""
    return list(layer._trainable_variables + layer._non_trainable_variables)


def check_settings(layer: keras.Layer, kind: Kind, source: Source) -> None:
    """Raises `Misfit` where a module is of another kind than a layer, or has other settings."""
    if source.module is None:
        return
    names = {one.__name__ for one in type(source.module).__mro__}
    if not names & set(kind.torch):
        raise Misfit("they are of different kinds")
    for what, ours, theirs in kind.settings(layer, source.module):
        if ours != theirs:
            raise Misfit(f"{what} {ours} in Keras and {theirs} there")


def values_for(layer: keras.Layer, kind: Kind, source: Source, framework: str) -> dict[str, Array]:
    """The weights that a Keras layer gets from a source, by their names in Keras.

    Args:
        layer: built.
        kind: its kind.
        source: the layer of another framework.
        framework: "torch" or "flax".

    Raises:
        Misfit: the two do not belong together, with the reason.
    """
    fields, variables = _fields(layer, kind, source, framework)
    found = {}
    for weight, field in fields:
        array, variable = source.arrays.get(field.name), variables.get(weight.name)
        if variable is None:
            _check_missing(array, weight, f"{field.name} there", f"in Keras has no {weight.name}")
            continue
        shape = tuple(variable.shape)
        if array is None:
            found[weight.name] = np.full(shape, weight.missing)
            continue
        if field.read is _kernel and array.ndim != len(shape):
            raise Misfit(f"{field.name} {array.shape} there, {weight.name} {shape} in Keras")
        value = field.read(array, shape)
        if value.shape != shape:
            raise Misfit(
                f"{field.name} {array.shape} there makes {weight.name} {value.shape}; expected "
                f"{shape}"
            )
        found[weight.name] = value
    return found


def values_from(
    layer: keras.Layer, kind: Kind, weights: Mapping[str, Array], source: Source
) -> dict[str, Array]:
    """The arrays that a layer of PyTorch gets from the weights of a Keras layer, by their names.

    Args:
        layer: built.
        kind: its kind.
        weights: its weights.
        source: the layer of PyTorch, which says which arrays there are, and their shapes.

    Raises:
        Misfit: the two do not belong together, with the reason.
    """
    fields, _ = _fields(layer, kind, source, "torch")
    found = {}
    for weight, field in fields:
        value, old = weights.get(weight.name), source.arrays.get(field.name)
        if old is None:
            _check_missing(value, weight, weight.name, f"there has no {field.name}")
            continue
        if value is None:
            found[field.name] = np.full(old.shape, weight.missing)
            continue
        found[field.name] = field.write(value, old.shape)
        if found[field.name].shape != old.shape:
            raise Misfit(
                f"{weight.name} {value.shape} makes {field.name} {found[field.name].shape}; "
                f"expected {old.shape}"
            )
    return found


def _fields(
    layer: keras.Layer, kind: Kind, source: Source, framework: str
) -> tuple[list[tuple[Weight, Field]], dict[str, keras.Variable]]:
    """Pairs of weight and counterpart, and the layer's variables by name, if all is known."""
    check_settings(layer, kind, source)
    fields = [(weight, getattr(weight, framework)) for weight in kind.weights]
    names = {field.name for _, field in fields} | ({COUNTER} if kind is BATCH_NORM else set())
    unknown = sorted(set(source.arrays) - names)
    if unknown:
        raise Misfit(f"{', '.join(unknown)} there has no counterpart")
    for weight, field in fields:
        if weight.missing is None and field.name not in source.arrays:
            raise Misfit(
                f"no {field.name} there: each batch is normalized by its own statistics, in "
                "evaluation too (track_running_stats=False), and there are none to take"
                if weight.name.startswith("moving") else f"no {field.name} there"
            )
    return fields, {variable.name: variable for variable in own_weights(layer)}


def _check_missing(value: Optional[Array], weight: Weight, what: str, why: str) -> None:
    """Raises where a weight that the other layer does not have does something."""
    if value is not None and (weight.missing is None or not np.all(value == weight.missing)):
        raise Misfit(f"{what} is not {weight.missing} everywhere, and the layer {why}")
