"""Nets of other frameworks, called as a certificate calls a Keras model."""

import contextlib
import dataclasses
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import keras
import numpy as np

from bn_keras.surgery.port_kinds import Array
from bn_keras.surgery.port_order import Channels, Places, UnknownOrder
from bn_keras.surgery.port_pairs import as_array


@dataclasses.dataclass
class Outside:
    """A net of another framework, called as the certificate calls a Keras model: for inference."""

    function: Callable[[Any], Any]
    variables: Sequence[Any] = ()

    def __call__(self, inputs: Any) -> Any:
        outputs = keras.tree.flatten(self.function(inputs))
        return [as_array(y) for y in outputs]


class TorchNet(Outside):
    """A module of PyTorch: it gets arrays in Keras's layout, and gives them so.

    Args:
        module: it is called in evaluation mode, and stays in the mode in which it is.
        places: of the model, with the channels of its inputs and outputs.
        state: a state_dict to call it with; None for its own.
        to_set: settings to call it with, by name of a module.
    """

    def __init__(
        self, module: Any, places: Places, state: Optional[Mapping[str, Any]] = None,
        to_set: Optional[Mapping[str, Mapping[str, float]]] = None,
    ) -> None:
        super().__init__(self._call)
        self._module, self._places = module, places
        self._state, self._to_set = state, to_set or {}

    def _call(self, inputs: Any) -> Any:
        import torch

        module = self._module
        tensor = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
        arrays = keras.tree.flatten(inputs)
        ends = self._places.inputs if len(self._places.inputs) == len(arrays) else [
            None for _ in arrays
        ]
        tensors = keras.tree.pack_sequence_as(inputs, [
            torch.from_numpy(np.array(_to_torch(x, channels))).to(
                tensor.device, tensor.dtype if x.dtype.kind == "f" else torch.int64
            )
            for x, channels in zip(map(as_array, arrays), ends)
        ])
        given: Any = tensors if isinstance(tensors, (list, tuple, dict)) else [tensors]
        args, kwargs = ((), given) if isinstance(given, dict) else (tuple(given), {})
        state = self._state or {}
        named = [*module.named_parameters(), *module.named_buffers()]  # each shared one once
        state = {name: state[name] for name, _ in named if name in state}
        with torch.no_grad(), _evaluated(module, self._to_set):
            outputs = torch.func.functional_call(module, state, args, kwargs)
        found = [as_array(y) for y in keras.tree.flatten(outputs)]
        ends = self._places.outputs if len(self._places.outputs) == len(found) else [
            None for _ in found
        ]
        return [_to_keras(y, channels) for y, channels in zip(found, ends)]


@contextlib.contextmanager
def _evaluated(module: Any, to_set: Mapping[str, Mapping[str, float]]) -> Iterator[None]:
    """Evaluation mode and other settings, for a while."""
    modules = dict(module.named_modules())
    modes = [(one, one.training) for one in modules.values()]
    before = [
        (modules[name], key, getattr(modules[name], key))
        for name, settings in to_set.items() for key in settings
    ]
    try:
        for one, _ in modes:
            one.training = False
        for name, settings in to_set.items():
            for key, value in settings.items():
                setattr(modules[name], key, value)
        yield
    finally:
        for one, mode in modes:
            one.training = mode
        for one, key, value in before:
            setattr(one, key, value)


def _to_torch(array: Array, channels: Optional[Channels]) -> Array:
    if array.ndim == 2 and channels is not None and (order := _order_or_none(channels)) is not None:
        return array[:, np.argsort(order)]
    return np.moveaxis(array, -1, 1) if _is_moved(array, channels) else array


def _to_keras(array: Array, channels: Optional[Channels]) -> Array:
    if array.ndim == 2 and channels is not None and (order := _order_or_none(channels)) is not None:
        return array[:, order]
    return np.moveaxis(array, 1, -1) if _is_moved(array, channels) else array


def _is_moved(array: Array, channels: Optional[Channels]) -> bool:
    moved = None if channels is None else channels.root().moved
    return array.ndim > 2 and (array.ndim > 3 if moved is None else moved)


def _order_or_none(channels: Channels) -> Optional[Array]:
    try:
        return channels.order()
    except UnknownOrder:
        return None
