"""What goes into some layers of a net and what comes out of them, whatever kind of model it is.

The calls of the layers are watched while the net runs eagerly: in a Sequential or nested model, in
the code of a subclassed one and in wrappers, as in a graph of layers.
"""

import contextlib
import itertools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import keras
import numpy as np

from bn_keras.diagnostics.probe import Nets
from bn_keras.models.blocks import place_of
from bn_keras.surgery import calls

TRIED = 2  # examples on which it is tried whether the layers can be watched
REMEDY = "leave this probe out, or give a net whose layers take a tensor of examples each"


class Inside:
    """Runs the nets in inference mode and tells what goes into some layers and comes out.

    Args:
        nets: Nets.
        layers: of its net.
        what: what they are, in words, such as "normalizer".

    Attributes:
        layers: in the order of their first calls.
        names: theirs, each another one.
        widest: values of the largest input or output, for each example.

    Raises:
        ValueError: there are none, or one is called in a way that cannot be watched.
    """

    def __init__(self, nets: Nets, layers: Sequence[Any], what: str) -> None:
        self._nets, self._what = nets, what
        self.layers: List[Any] = list(layers)
        if not layers:
            raise ValueError(f"{nets.net.name!r} has no {what}; leave this probe out")
        found = self._watched(nets.inputs(nets.splits.train.first(TRIED).images))
        by_id = {id(layer): layer for layer in layers}
        unseen = [place_of(layer) for key, layer in by_id.items() if key not in found]
        if unseen:
            raise ValueError(
                f"the {what} {unseen[0]!r} of {nets.net.name!r} is not seen at work in inference "
                "mode: it is called inside a tf.function, or not at all; leave this probe out, or "
                "take the tf.function away"
            )
        self.layers = [by_id[key] for key in found]
        self.names = _distinct([place_of(layer) for layer in self.layers])
        self.widest = max(int(np.prod(end.shape[1:])) for end in self._ends(found))

    def __call__(self, inputs: Any) -> List[Any]:
        """Input and output of every layer, in turn, as tensors (n, ..., channels).

        The calls of a layer that is called several times stand side by side, (n, values, channels).
        """
        return self._ends(self._watched(inputs))

    def _ends(self, found: Dict[int, List[Tuple[Any, Any]]]) -> List[Any]:
        return [end for layer in self.layers for end in map(_joined, zip(*found[id(layer)]))]

    def _watched(self, inputs: Any) -> Dict[int, List[Tuple[Any, Any]]]:
        """Id of each layer → (input, output) of each of its calls; first calls in order."""
        examples = len(keras.tree.flatten(inputs)[0])
        found: Dict[int, List[Tuple[Any, Any]]] = {}

        def watch(
            layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
        ) -> Any:
            of_layer = found.setdefault(id(layer), [])
            before = self._checked(layer, calls.inputs_and_mask(layer, args, kwargs)[0], examples)
            outputs = call(*args, **kwargs)
            # A recurrent cell gives its states as well.
            first = outputs[0] if hasattr(layer, "state_size") else outputs
            of_layer.append((before, self._checked(layer, first, examples)))
            return outputs

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(calls.redirected(layer, watch))
            self._nets.net(inputs, training=False)
        return found

    def _checked(self, layer: keras.Layer, end: Any, examples: int) -> Any:
        """A tensor of a call, if it has values, one row or several for each example.

        Raises:
            ValueError: it has not.
        """
        where = f"the {self._what} {place_of(layer)!r} of {self._nets.net.name!r}"
        shape = getattr(end, "shape", None)
        if shape is None:
            raise ValueError(f"{where} takes or gives {type(end).__name__}; {REMEDY}")
        try:
            keras.ops.convert_to_numpy(end)
        except Exception as error:  # each backend has its own
            raise ValueError(
                f"{where} is called inside a tf.function or a loop of a graph, where nobody can "
                f"look; {REMEDY}"
            ) from error
        if len(shape) < 2 or shape[0] % examples:
            raise ValueError(
                f"{where} takes or gives a tensor of shape {tuple(shape)} for {examples} examples; "
                f"{REMEDY}"
            )
        return end if shape[0] == examples else keras.ops.reshape(end, (examples, -1, shape[-1]))


def _joined(ends: Sequence[Any]) -> Any:
    """The tensors of several calls as one; of a single call, as it is."""
    if len(ends) == 1:
        return ends[0]
    return keras.ops.concatenate(
        [keras.ops.reshape(end, (end.shape[0], -1, end.shape[-1])) for end in ends], axis=1
    )


def _distinct(names: Sequence[str]) -> List[str]:
    """Names with a number behind those that occur before."""
    found: List[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        taken = {*names, *found}
        found.append(next(n for n in numbered if n not in taken) if name in found else name)
    return found
