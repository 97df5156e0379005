"""What stands in front of each batch normalization, and which activation behind it.

It is read from TensorFlow's graph of a forward pass, so that code of a model's own is seen as well
as a graph of layers.
"""

import contextlib
from typing import Any, Iterator, NamedTuple, Optional

import keras
import numpy as np
from keras.src.backend.common import global_state

from bn_keras.diagnostics.finding import CannotLook
from bn_keras.diagnostics.passes import Array, Passes, as_array
from bn_keras.surgery import calls, certificate
from bn_keras.surgery.examples import length
from bn_keras.texts import in_a_line

# Operations behind which a constant that is added to a channel is still one.
KEEPS_CONSTANTS = ("Identity", "Cast", "MaxPool", "AvgPool")
# Those behind which channels are still where they were.
KEEPS_CHANNELS = (
    *KEEPS_CONSTANTS, "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Tanh", "Sigmoid", "Softplus",
    "Pad", "PadV2", "BiasAdd",
)
# Those that may stand between a normalizer and its activation.
BEFORE_ACTIVATION = (*KEEPS_CONSTANTS, "AddV2")
FLAT = 0.005  # of an activation's range: so near to its ends, it lets almost no gradient through
# Activation → the ends of its range, where it has no gradient or almost none.
ENDS = {
    "Relu": (0.0, None), "Relu6": (0.0, 6.0), "Tanh": (-1 + 2 * FLAT, 1 - 2 * FLAT),
    "Sigmoid": (FLAT, 1 - FLAT),
}
OF_LAYERS = {"relu": "Relu", "relu6": "Relu6", "tanh": "Tanh", "sigmoid": "Sigmoid"}


class Front(NamedTuple):
    """The nearest layer with a kernel in front of a batch normalization.

    Attributes:
        path: of the layer.
        layer: the copy's.
        adds_constant: whether its bias reaches the normalizer as a constant of each channel, and
            nothing else.
    """

    path: str
    layer: keras.Layer
    adds_constant: bool


class Surroundings:
    """The neighbours of the batch normalizations of a model.

    Args:
        passes: of the model.
        x: a batch.

    Attributes:
        fronts: for each normalizer a Front for each of its calls; None where no layer with a kernel
            stands right in front.
        activations: for each normalizer the operations behind its calls that are in ENDS.
        unseen: indices of normalizers that are called where this graph does not show their
            neighbours: in a loop, or in a tf.function of the model.

    Raises:
        CannotLook: the backend is not TensorFlow, or the model cannot be traced.
    """

    def __init__(self, passes: Passes, x: Any) -> None:
        if keras.backend.backend() != "tensorflow":
            raise CannotLook("it is read from TensorFlow's graph; this backend has none")
        import tensorflow as tf

        self._passes = passes
        self.fronts: list[list[Optional[Front]]] = [[] for _ in passes.layers]
        self.activations: list[list[str]] = [[] for _ in passes.layers]
        self.unseen: set[int] = set()
        signature = keras.tree.map_structure(
            lambda leaf: tf.TensorSpec(  # any number of examples
                (None, *leaf.shape[1:]), tf.type_spec_from_value(leaf).dtype
            ), x
        )
        function = tf.function(self._run, autograph=False, input_signature=[signature])
        scopes = global_state.get_global_attribute("name_scope_stack", [], set_to_default=True)
        before = list(scopes)
        try:
            function.get_concrete_function()
        except Exception as error:
            scopes[:] = before  # Keras leaves a name there that TensorFlow refuses
            raise CannotLook(f"no graph of the model: {in_a_line(error)}") from error
        self._function = function

    def stuck(self, batches: list[Any]) -> list[Optional[Array]]:
        """For each normalizer the share of positions of each channel at an end of its activation.

        Args:
            batches: batches x.

        Returns:
            (channels,) of each; None where no activation of ENDS stands behind it.
        """
        shares: list[list[Array]] = [[] for _ in self._passes.layers]
        for x in batches:
            weight = length(x)
            for index, found in zip(self._indices, self._function(x), strict=True):
                shares[index].append(weight * as_array(found))
        total = sum(length(x) for x in batches)
        # Of several calls: a channel is stuck where it is in all of them.
        return [
            np.sum(of_one, 0) * len(batches) / len(of_one) / total if of_one else None
            for of_one in shares
        ]

    def _run(self, x: Any) -> list[Any]:
        """A forward pass inside a graph; it looks around in that graph."""
        import tensorflow as tf

        graph = tf.compat.v1.get_default_graph()
        index = {id(layer): number for number, layer in enumerate(self._passes.layers)}
        made: dict[str, keras.Layer] = {}  # name of the operation of an output → its layer
        inputs: list[tuple[int, Any]] = []
        outputs: list[tuple[int, Any]] = []

        def instead(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            number = index.get(id(layer))
            if number is not None:
                given, _ = calls.inputs_and_mask(layer, args, kwargs)
                bound = layer._call_signature.bind(*args, **kwargs)
                # One operation that takes the inputs, in place of several inside of the layer.
                marked = tf.identity(given)
                bound.arguments[next(iter(bound.arguments))] = marked
                args, kwargs = bound.args, bound.kwargs
            results = call(*args, **kwargs)
            results = keras.tree.map_structure(
                lambda y: tf.identity(y) if tf.is_tensor(y) else y, results
            )
            for y in keras.tree.flatten(results):
                if tf.is_tensor(y) and y.graph is graph:
                    made[y.op.name] = layer
            if number is not None:
                if marked.graph is graph:
                    inputs.append((number, marked))
                    outputs.append((number, results))
                else:
                    self.unseen.add(number)
            return results

        with contextlib.ExitStack() as stack:
            for layer in self._passes.model._flatten_layers(include_self=False):
                if id(layer) not in index:
                    stack.enter_context(calls.redirected(layer, instead))
            for layer in self._passes.layers:
                stack.enter_context(calls.redirected(layer, instead))
            answers = calls.infer(self._passes.model, x)
        self._paths = certificate.paths(self._passes.model)
        called = {number for number, _ in inputs}
        self.unseen |= {
            number for number in index.values() if number not in called
        }
        entries = {marked.op.name for _, marked in inputs}
        # What the model hands out takes its bias there.
        self._handed_out = {y.op.name for y in keras.tree.flatten(answers) if tf.is_tensor(y)}
        for number, marked in inputs:
            self.fronts[number].append(self._front(marked.op, made, entries))
        self._indices: list[int] = []
        found = []
        for number, given in outputs:
            for kind, y in _activations(self._passes.layers[number], given):
                self.activations[number].append(kind)
                self._indices.append(number)
                found.append(_share_at_ends(self._passes.layers[number], kind, y))
        return found

    def _front(
        self, operation: Any, made: dict[str, keras.Layer], entries: set[str]
    ) -> Optional[Front]:
        """The nearest layer with a kernel in front of a normalizer.

        Args:
            operation: that takes the normalizer's inputs.
            made: name of the operation of an output → its layer.
            entries: names of the operations that take normalizers' inputs.
        """
        constant = True
        while True:
            tensor = operation.inputs[0]
            # What goes elsewhere too takes its bias there.
            constant = constant and tensor.op.name not in self._handed_out and all(
                one.name == operation.name or one.name in entries or one.type == "Shape"
                for one in tensor.consumers()
            )
            operation = tensor.op
            layer = made.get(operation.name)
            if layer is not None:
                name = type(layer).__name__.lower()
                if "drop" in name:  # in training it is no constant any more
                    constant = False
                if any(hasattr(layer, kernel) for kernel in ("kernel", "pointwise_kernel")):
                    linear = getattr(layer, "activation", None) in (
                        None, keras.activations.linear
                    )
                    path = self._paths.get(id(layer), layer.name)
                    return Front(path, layer, constant and linear)
            if operation.type not in KEEPS_CHANNELS:
                return None
            constant = constant and operation.type in KEEPS_CONSTANTS


def _activations(layer: keras.Layer, outputs: Any) -> Iterator[tuple[str, Any]]:
    """The activations of ENDS right behind a normalizer: operations and their outputs."""
    own = OF_LAYERS.get(getattr(getattr(layer, "activation", None), "__name__", ""))
    if own:  # of a layer that activates by itself
        yield own, outputs
        return
    tensors, met = [outputs], set()
    while tensors:
        tensor = tensors.pop()
        consumers = tensor.consumers()
        for operation in consumers:
            if operation.name in met:
                continue
            met.add(operation.name)
            # x * sigmoid(x) is no sigmoid.
            gates = operation.type == "Sigmoid" and any(one.type == "Mul" for one in consumers)
            if operation.type in ENDS and not gates:
                yield operation.type, operation.outputs[0]
            elif operation.type in BEFORE_ACTIVATION:
                tensors.append(operation.outputs[0])


def _share_at_ends(layer: keras.Layer, kind: str, y: Any) -> Any:
    """Share of positions of each channel at an end of the activation's range."""
    low, high = ENDS[kind]
    at_end = y <= low
    if high is not None:
        at_end = keras.ops.logical_or(at_end, y >= high)
    axis = getattr(layer, "axis", -1) % len(y.shape)
    others = [number for number in range(len(y.shape)) if number != axis]
    return keras.ops.mean(keras.ops.cast(at_end, "float32"), others)
