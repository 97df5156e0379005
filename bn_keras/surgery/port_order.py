"""The layers of a model that hold weights: their order, and the order of their channels.

A net in another framework comes as a list of layers, and a port pairs it with a Keras model. For
that, `layers_of` follows the model's graph of calls, through nested models and through code of
layers of one's own as far as Keras can trace it.

On the way it finds where the orders of channels differ. Keras flattens (height, width, channels),
PyTorch (channels, height, width): the inputs of a dense layer behind a flattened image, and the
outputs of one whose outputs become an image, lie in another order there.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Optional, Sequence

import keras
import numpy as np
from keras.src.models.functional import Functional
from keras.src.ops.function import Function

from bn_keras.surgery import copies
from bn_keras.surgery.certificate import paths, random_inputs
from bn_keras.surgery.port_kinds import CHANNELWISE, Array, Kind, kind_of, own_weights

L = keras.layers
Shape = tuple[Optional[int], ...]
CONVS = (
    L.Conv1D, L.Conv2D, L.Conv3D, L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose,
    L.DepthwiseConv1D, L.DepthwiseConv2D,
)


class UnknownOrder(ValueError):
    """Nobody knows in which order channels lie in PyTorch; the message says why."""


class Channels:
    """The channels of a tensor: in which order they lie in PyTorch, as far as that is known.

    Layers that leave the channels as they are share one object between inputs and outputs.

    Attributes:
        moved: whether PyTorch has this axis in front of the positions and Keras behind them; None
            if that is not known.
    """

    def __init__(
        self, size: Optional[int], *, moved: Optional[bool] = None, order: Optional[Array] = None,
        reason: str = "", after: Sequence["Channels"] = (), parts: Sequence["Channels"] = (),
    ) -> None:
        self.size, self.moved = size, moved
        self._order, self._reason = order, reason
        self._after, self._parts = after, parts
        self._same: Optional[Channels] = None

    def root(self) -> "Channels":
        """The object that stands for all tensors with these channels."""
        found = self
        while found._same is not None:
            found = found._same
        return found

    def join(self, other: "Channels") -> None:
        """Notes that another tensor has the same channels."""
        one, two = self.root(), other.root()
        if one is two:
            return
        if two._order is not None:
            one.put(two._order)
        one._reason = one._reason or two._reason
        one._after = [*one._after, *two._after]
        one._parts = one._parts or two._parts
        if one.moved is None:
            one.moved = two.moved
        two._same = one

    def put(self, order: Array) -> None:
        """Notes an order: the channel i of Keras is the channel order[i] of PyTorch."""
        one = self.root()
        if one._order is not None and not np.array_equal(one._order, order):
            one._reason = "its channels are flattened images of two shapes"
            one._after = []
        one._order = order

    def tell(self, order: Optional[Array]) -> None:
        """Puts an order, or None for the same one, in the place of all that was found out."""
        one = self.root()
        one._order, one._reason, one._after, one._parts = order, "", [], []

    def order(self, seen: frozenset[int] = frozenset()) -> Optional[Array]:
        """For each channel of Keras the one of PyTorch; None if they are the same.

        Args:
            seen: ids of the channels that ask.

        Raises:
            UnknownOrder: nobody knows, with the reason.
        """
        one = self.root()
        if id(one) in seen:
            return None
        seen |= {id(one)}
        orders = [other.order(seen) for other in one._after]
        if one._reason and (not one._after or any(order is not None for order in orders)):
            raise UnknownOrder(one._reason)
        if one._order is not None or not one._parts:
            return one._order
        found, start, plain = [], 0, True
        for part in one._parts:
            order = part.order(seen)
            plain = plain and order is None
            size = part.root().size
            if size is None:
                return None
            found.append(start + (np.arange(size) if order is None else order))
            start += size
        return None if plain else np.concatenate(found)


class Tensor(NamedTuple):
    """A tensor in the graph: its shape, its channels, and the places of the layers before it."""

    shape: Shape
    channels: Channels
    behind: frozenset[int]


@dataclasses.dataclass
class Place:
    """A layer that a port is about.

    Attributes:
        layer: of the model.
        path: its name in a certificate.
        kind: None if it has no counterpart elsewhere.
        behind: numbers of the places before it.
        inputs, outputs: their channels; the same object if the layer leaves channels alone.
    """

    layer: keras.Layer
    path: str
    kind: Optional[Kind]
    behind: frozenset[int] = frozenset()
    inputs: Optional[Channels] = None
    outputs: Optional[Channels] = None


class Places(NamedTuple):
    """The places of a model, in the order of its layers, and the channels at its ends.

    Attributes:
        places: those of the layers with weights, and normalizations without.
        inputs, outputs: flat; empty where the graph of calls is not known.
    """

    places: list[Place]
    inputs: list[Channels]
    outputs: list[Channels]


def places_of(model: keras.Model) -> Places:
    """The layers of a model that hold weights or an epsilon, with all that a port asks of them.

    Args:
        model: built; it is neither called nor changed.
    """
    draft, parts = copies.copy_with_parts(model)  # tracing leaves traces
    mine = {id(new): (old, new) for old, new in parts if isinstance(old, keras.Layer)}
    names, found = paths(model), []
    for key in {**paths(draft), **mine}:  # in the order of attributes; then what nobody tracks
        old, new = mine[key]
        kind = kind_of(old) if id(old) in names else None
        is_bare = kind is not None and hasattr(old, "epsilon")
        if own_weights(old) or is_bare or isinstance(old, copies.OPAQUE):
            found.append((new, Place(old, names.get(id(old), old.path or old.name), kind)))
    inputs, outputs = _Walk(draft, found).run()
    return Places([place for _, place in found], inputs, outputs)


class _Walk:
    """One way through a model's graph."""

    def __init__(self, model: keras.Model, found: list[tuple[keras.Layer, Place]]) -> None:
        self._model = model
        self._numbers = {id(layer): number for number, (layer, _) in enumerate(found)}
        self._places = [place for _, place in found]
        formats = {
            layer.data_format for layer in model._flatten_layers()
            if getattr(layer, "data_format", None) is not None and not isinstance(layer, L.Flatten)
        }
        # All images of a model have their channels on one axis, or nobody follows them.
        self._is_first = formats == {"channels_first"}
        self._is_mixed = len(formats) > 1
        # Flat channels that become (positions, channels): the layers behind show what these are.
        self._unfolded: list[tuple[Channels, Shape, Channels]] = []

    def run(self) -> tuple[list[Channels], list[Channels]]:
        function = self._function_of_the_model()
        if function is not None:
            inputs = [self._input(tuple(x.shape)) for x in function._inputs]
            outputs = self._function(function, inputs)
            for flat, shape, channels in self._unfolded:
                self._unfold(flat, shape, channels.root().moved)
            if all(place.inputs is not None for place in self._places):
                return [x.channels for x in inputs], [y.channels for y in outputs]
        for place in self._places:
            place.inputs = None
        shape = (None,) * 4 if function is None else tuple(function._inputs[0].shape)
        self._chain(self._model, self._input(shape))
        return [], []

    def _function_of_the_model(self) -> Optional[Function]:
        model = self._model
        if isinstance(model, keras.Sequential):
            return model._functional
        if isinstance(model, Functional) and type(model).call is Functional.call:
            return model
        try:
            inputs = random_inputs(model)
        except ValueError:
            return None
        tensors = keras.tree.map_structure(
            lambda x: keras.KerasTensor((None, *x.shape[1:]), str(x.dtype)), inputs
        )
        return _traced(model, (tensors,), {})

    def _input(self, shape: Shape) -> Tensor:
        moved = None if len(shape) == 3 else len(shape) > 3 and not self._is_first
        return Tensor(shape, Channels(self._size(shape), moved=moved), frozenset())

    def _size(self, shape: Shape) -> Optional[int]:
        if len(shape) < 2:
            return None
        return shape[1] if self._is_first and len(shape) > 2 else shape[-1]

    def _function(self, function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
        known = {id(x): tensor for x, tensor in zip(function._inputs, inputs)}
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for node in function._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                given = [known[id(x)] for x in node.arguments.keras_tensors]
                outputs = [tuple(y.shape) for y in node.outputs]
                found = self._operation(node.operation, node.arguments, given, outputs)
                known.update(zip(map(id, node.outputs), found))
        return [known[id(y)] for y in function._outputs]

    def _operation(
        self, operation: Any, arguments: Any, given: list[Tensor], shapes: list[Shape]
    ) -> list[Tensor]:
        behind = frozenset().union(*(x.behind for x in given))
        if id(operation) in self._numbers:
            channels, number = self._layer(operation, given[0], behind)
            return [Tensor(shape, channels, behind | {number}) for shape in shapes]
        inside = [
            self._numbers[id(layer)] for layer in operation._flatten_layers()
            if id(layer) in self._numbers
        ] if isinstance(operation, keras.Layer) else []
        if inside:
            function = None
            if isinstance(operation, keras.Sequential):
                function = operation._functional
            elif isinstance(operation, Functional) and type(operation).call is Functional.call:
                function = operation
            else:
                args, kwargs = keras.tree.map_structure(
                    lambda x: keras.KerasTensor(x.shape, x.dtype)
                    if isinstance(x, keras.KerasTensor) else x,
                    (arguments.args, arguments.kwargs),
                )
                function = _traced(operation, args, kwargs)
            if function is not None and len(function._inputs) == len(given):
                found = self._function(function, given)
                if all(self._places[number].inputs is not None for number in inside):
                    return found
            end = self._chain(operation, given[0]._replace(behind=behind))
            return [Tensor(s, self._behind_code(operation, end, s), end.behind) for s in shapes]
        return [
            Tensor(shape, self._channels(operation, given, shape), behind) for shape in shapes
        ]

    def _chain(self, layer: keras.Layer, x: Tensor) -> Tensor:
        """The layers inside of one whose code nobody can follow, in the order of its attributes."""
        is_image = len(x.shape) > 3
        inside = {id(inner): inner for inner in layer._flatten_layers()}
        for key in self._numbers:
            inner = inside.get(key)
            if inner is None:
                continue
            expected = _channels_in(inner)
            if expected is not None and expected != x.channels.root().size:
                reason = f"the code of {layer.name!r} makes its inputs, and nobody can follow that"
                is_image = is_image or any(
                    isinstance(self._places[number].layer, CONVS) for number in x.behind
                )
                x = x._replace(channels=Channels(expected, reason=reason if is_image else ""))
            channels, number = self._layer(inner, x, x.behind)
            x = Tensor(x.shape, channels, x.behind | {number})
        return x

    def _behind_code(self, layer: keras.Layer, end: Tensor, shape: Shape) -> Channels:
        if self._size(shape) == end.channels.root().size:
            return end.channels
        if type(layer).__module__.startswith("keras."):  # recurrent layers, attention
            return Channels(self._size(shape))
        reason = f"it lies behind the code of {layer.name!r}, which nobody can follow"
        return Channels(self._size(shape), reason=reason)

    def _layer(
        self, layer: keras.Layer, x: Tensor, behind: frozenset[int]
    ) -> tuple[Channels, int]:
        """Puts a layer into its place; its outputs' channels, and the place's number."""
        number = self._numbers[id(layer)]
        place, rank = self._places[number], len(x.shape)
        if isinstance(layer, CONVS):
            x.channels.root().moved = layer.data_format == "channels_last"
            outputs = Channels(_units(layer), moved=layer.data_format == "channels_last")
        elif place.kind is None:
            outputs = Channels(None)
        elif isinstance(layer, L.Embedding):
            outputs = Channels(_units(layer), moved=False)
        elif isinstance(layer, L.Dense):
            if rank == 3 and x.channels.root().moved is None:
                x.channels.root().moved = False
            outputs = Channels(_units(layer), moved=None if x.channels.root().moved else False)
        else:
            axis = getattr(layer, "axis", None)
            if x.channels.root().moved is None and rank > 2 and isinstance(axis, int):
                is_last = axis in (-1, rank - 1)
                x.channels.root().moved = is_last and not isinstance(
                    layer, (L.LayerNormalization, L.RMSNormalization)
                )
            outputs = x.channels
        if place.inputs is None or place.outputs is None:  # else it is called once more
            place.behind, place.inputs, place.outputs = behind, x.channels, outputs
        else:
            place.inputs.join(x.channels)
            place.outputs.join(outputs)
        return place.outputs, number

    def _channels(self, operation: Any, given: list[Tensor], shape: Shape) -> Channels:
        """The channels of what an operation without weights gives."""
        kind, size = type(operation).__name__, self._size(shape)
        x = given[0]
        here = x.channels.root()
        if getattr(operation, "data_format", None) and len(x.shape) > 2 and kind != "Flatten":
            here.moved = operation.data_format == "channels_last"
        if kind in ("Flatten", "Reshape"):
            return self._reshaped(operation, x, shape)
        if kind in ("Permute", "Transpose", "Moveaxis", "Swapaxes"):
            return Channels(size, reason=f"{operation.name!r} changes the order of the axes")
        axis = getattr(operation, "axis", None)
        if kind == "Concatenate" and axis in (
            (1,) if self._is_first and len(shape) > 2 else (-1, len(shape) - 1)
        ):
            return Channels(size, moved=here.moved, parts=[one.channels for one in given])
        same = [
            one.channels for one in given if size is not None and self._size(one.shape) == size
        ]
        for other in same[1:]:
            same[0].join(other)
        if same:
            return same[0]
        reason = f"{operation.name!r} ({kind}) makes {shape} of {x.shape}"
        if any(len(one.shape) > 2 for one in given):
            return Channels(size, reason=reason)
        return Channels(size, reason=reason, after=[one.channels for one in given])

    def _reshaped(self, operation: Any, x: Tensor, shape: Shape) -> Channels:
        """The channels behind a Flatten or a Reshape, by layer or operation."""
        size, rank, here = self._size(shape), len(x.shape), x.channels.root()
        if len(shape) == 2 and rank == 2:
            return here
        if len(shape) == 2:
            to_last = getattr(operation, "data_format", None) == "channels_first"
            order, reason = self._flat(x.shape, here.moved, to_last)
            if reason:
                return Channels(size, reason=reason)
            reason = f"{operation.name!r} flattens channels that lie in another order already"
            return Channels(size, order=order, reason=reason, after=[here])
        if rank == 2:
            channels = Channels(size, moved=None if len(shape) == 3 else not self._is_first)
            self._unfolded.append((here, shape, channels))
            return channels
        reason = f"{operation.name!r} makes {shape} of {x.shape}"
        if size is not None and size == self._size(x.shape):
            return Channels(size, reason=reason, after=[here])
        return Channels(size, reason=reason)

    def _unfold(self, flat: Channels, shape: Shape, moved: Optional[bool]) -> None:
        """Notes in which order flat channels lie that become an image of that shape."""
        order, reason = self._flat(shape, moved, False)
        if order is not None:
            flat.put(order)
        elif reason:
            flat.join(Channels(flat.size, reason=reason))

    def _flat(
        self, shape: Shape, moved: Optional[bool], to_last: bool
    ) -> tuple[Optional[Array], str]:
        """The order of the numbers of an image in PyTorch by their order in Keras; or why not."""
        sizes = shape[1:]
        if None in sizes:
            return None, f"the shape {shape} that is flattened is open"
        if sum(size != 1 for size in sizes) <= 1:
            return None, ""
        if self._is_mixed:
            return None, "the model has images with channels first and others with channels last"
        if moved is None:
            return None, (
                f"nothing shows whether PyTorch has the axes {sizes}, flat here, in that order or "
                "channels first"
            )
        if moved:
            return order_of_flat(sizes), ""
        if to_last:
            return order_of_flat((*sizes[1:], sizes[0])), ""
        return None, ""


def order_of_flat(sizes: Sequence[Any]) -> Array:
    """For each number of a flattened (…, channels) its place in the flattened (channels, …)."""
    found = np.arange(math.prod(sizes)).reshape((sizes[-1], *sizes[:-1]))
    return np.moveaxis(found, 0, -1).ravel()


def _traced(layer: Any, args: Any, kwargs: Any) -> Optional[Function]:
    """The graph of a layer's own code; None if Keras cannot trace it."""
    known = layer._call_signature.parameters
    try:
        given = {key: x for key, x in kwargs.items() if x is not None and key in known}
        outputs = layer.call(*args, **given)
        tensors = [
            x for x in keras.tree.flatten((args, given)) if isinstance(x, keras.KerasTensor)
        ]
        return Function(tensors, outputs)
    except Exception:  # whatever somebody's code does with a tensor that has no values
        return None


def _channels_in(layer: keras.Layer) -> Optional[int]:
    """How many channels a layer with weights takes; None if any."""
    if isinstance(layer, (L.DepthwiseConv1D, L.DepthwiseConv2D)):
        return layer.kernel.shape[-2]
    if isinstance(layer, (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)):
        return layer.kernel.shape[-1]
    if isinstance(layer, CONVS):
        return layer.kernel.shape[-2] * layer.groups
    if isinstance(layer, L.Dense):
        return layer.kernel.shape[0]
    weights = own_weights(layer)
    if isinstance(layer, CHANNELWISE) and weights and len(weights[0].shape) == 1:
        return weights[0].shape[0]
    return None


def _units(layer: Any) -> int:
    """How many channels a layer makes."""
    if isinstance(layer, (L.DepthwiseConv1D, L.DepthwiseConv2D)):
        return layer.kernel.shape[-2] * layer.depth_multiplier
    if isinstance(layer, L.Embedding):
        return layer.output_dim
    return layer.units if isinstance(layer, L.Dense) else layer.filters
