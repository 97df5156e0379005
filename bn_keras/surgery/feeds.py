"""Which call of a layer takes the very output of which other one, in any kind of model.

Nothing is concluded from the order of layers or attributes: a forward pass in inference mode is
traced, with the calls of the layers in question marked in its graph, and the graph is read.
"""

import dataclasses
from typing import Any, Callable, NamedTuple, Optional

import keras

from bn_keras.surgery import dependencies
from bn_keras.surgery.certificate import random_inputs
from bn_keras.texts import in_a_line

READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")


@dataclasses.dataclass(eq=False)
class Call:
    """A call of a layer with one tensor.

    Attributes:
        layer: whose call it is. Inside of a TimeDistributed, it stands for the wrapper's call.
        rank: number of axes of the layer's inputs; None if nobody knows.
        dtype: of the inputs that it was given.
        training: whether it was told to be in training mode.
        source: the call whose output it takes; None if it takes something else.
        before: what it takes then, for a message.
        uses: the calls that take its output.
        others: what else takes its output, for a message; empty if nothing does.
    """

    layer: keras.Layer
    rank: Optional[int]
    dtype: str
    training: bool
    source: Optional["Call"] = None
    before: str = ""
    uses: list["Call"] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)


class Pass(NamedTuple):
    """What a forward pass does with some layers.

    Attributes:
        calls: of these layers, in order.
        read_elsewhere: ids of those whose weights something else than their own calls reads, such
            as a decoder with the transposed kernel of its encoder.
    """

    calls: list[Call]
    read_elsewhere: set[int]


def forward_pass(
    model: keras.Model, layers: list[keras.Layer], inputs: Any, caller: str
) -> Pass:
    """What a forward pass in inference mode does with some layers.

    Layers that hand on their inputs as they are, such as Dropout in inference mode, do not stand
    between two calls. Everything else does: an activation, a reshape, a cast.

    Args:
        model: built.
        layers: of the model.
        inputs: a batch; None for the shapes that the model knows.
        caller: for messages.

    Raises:
        ValueError: the inputs are not known, the model cannot be traced, or the backend is another
            one than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{caller}: the Keras backend is {keras.backend.backend()}; expected tensorflow, whose "
            "graphs say which layer feeds which."
        )
    import tensorflow as tf

    wrappers = {
        id(wrapper): wrapper.layer for wrapper in model._flatten_layers()
        if type(wrapper) is keras.layers.TimeDistributed
        and any(wrapper.layer is layer for layer in layers)
    }
    made: list[tuple[Call, Any, Any]] = []  # call, its input and its output as marked
    within: list[keras.Layer] = []  # layers of wrappers that are being called
    ranks: dict[int, Optional[int]] = {}
    # Operations of a call have the name of its layer's scope in their names.
    scopes = {id(layer): f"call.{number}." for number, layer in enumerate(layers)}

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        bound = layer._call_signature.bind(*args, **kwargs)
        name, x = next(iter(bound.arguments.items()))
        ranks[id(layer)] = x.shape.rank if tf.is_tensor(x) else None
        if any(layer is inner for inner in within):
            return call(*args, **kwargs)
        inner = wrappers.get(id(layer))
        training = bound.arguments.get("training")
        mark = tf.identity(x) if isinstance(x, tf.Tensor) else None
        if mark is not None:
            bound.arguments[name] = mark
        core = layer if inner is None else inner
        within.append(inner)
        try:
            with tf.name_scope(scopes[id(core)]):
                y = call(*bound.args, **bound.kwargs)
        finally:
            within.pop()
        dtype = keras.backend.standardize_dtype(x.dtype) if mark is not None else "?"
        is_training = training is not None and training is not False
        found = Call(core, ranks.get(id(core)), dtype, is_training)
        if isinstance(y, tf.Tensor):
            with tf.name_scope(scopes[id(core)]):
                y = tf.identity(y)
        made.append((found, mark, y))
        return y

    marked = [*layers, *(w for w in model._flatten_layers() if id(w) in wrappers)]
    try:
        graph = dependencies.graph_of_pass(model, marked, instead, _signature(model, inputs))
    except Exception as error:
        raise ValueError(
            f"{caller}: {model.name!r} cannot be traced, so that nobody knows which layer feeds "
            f"which ({in_a_line(error)}); expected a model that runs in a tf.function, "
            "and inputs= where it does not know their shapes."
        ) from error
    _connect(made, graph)
    read_elsewhere = {
        id(layer) for layer in layers
        if _is_read_outside(layer, scopes[id(layer)], graph, [y for _, _, y in made])
    }
    return Pass([call for call, _, _ in made], read_elsewhere)


def _connect(made: list[tuple[Call, Any, Any]], graph: Any) -> None:
    """Notes sources and uses of calls, from their marked inputs and outputs."""
    takers = {_key(mark.op): call for call, mark, _ in made if mark is not None}
    givers = {(_key(y.op), 0): call for call, _, y in made if hasattr(y, "op")}
    for call, mark, y in made:
        if mark is not None:
            given = mark.op.inputs[0]
            call.source = givers.get((_key(given.op), given.value_index))
            call.before = _told(given.op, graph)
        if not hasattr(y, "op"):
            call.others.append("something that is no tensor")
            continue
        for consumer in y.consumers():
            other = takers.get(_key(consumer))
            if other is None:
                call.others.append(_told(consumer, graph))
            else:
                call.uses.append(other)
        # An inner graph, of a loop for example, may give it back without a further operation.
        if any(y is output for output in y.graph.outputs) or not y.consumers():
            call.others.append("what is outside of its graph")


def _is_read_outside(layer: keras.Layer, scope: str, graph: Any, marks: list[Any]) -> bool:
    """Whether a graph reads a variable of a layer otherwise than in calls of the layer."""
    graphs = {id(graph): graph, **{id(y.graph): y.graph for y in marks if hasattr(y, "graph")}}
    values = [variable.value for variable in layer.variables]
    # Under tf.distribute, a variable has a part for each replica.
    handles = {id(part.handle) for value in values for part in getattr(value, "values", [value])}
    inner_calls = any(
        scope in y.op.name and y.graph is not graph for y in marks if hasattr(y, "op")
    )
    while True:  # an inner graph has the handles of the one around it under names of its own
        known = len(handles)
        for one in graphs.values():
            handles |= {id(own) for given, own in one.captures if id(given) in handles}
        if len(handles) == known:
            break
    for one in graphs.values():
        for _, own in one.captures:
            for reader in own.consumers() if id(own) in handles else []:
                # Graphs of loops and branches are handed the handle, for a call within.
                passes_on = reader.type not in READS and inner_calls
                if scope not in reader.name and not passes_on:
                    return True
    return False


def _key(operation: Any) -> tuple[int, str]:
    return id(operation.graph), operation.name


def _told(operation: Any, graph: Any) -> str:
    """An operation in words."""
    if operation.graph is graph:
        if operation.type == "Placeholder":
            return "the model's input"
        if any(y is output for y in operation.outputs for output in graph.outputs):
            return "the model's output"
    return f"the operation {operation.type}"


def _signature(model: keras.Model, inputs: Any) -> Any:
    """The specification of a model's inputs, as a tf.function takes it."""
    import tensorflow as tf

    known = getattr(model, "inputs", None)
    if inputs is None and known:
        structure = getattr(model, "_inputs_struct", None)
        structure = known[0] if structure is None else structure
        return keras.tree.map_structure(
            lambda x: tf.TensorSpec(x.shape, x.dtype), structure
        )
    inputs = random_inputs(model) if inputs is None else inputs
    return keras.tree.map_structure(tf.type_spec_from_value, inputs)
