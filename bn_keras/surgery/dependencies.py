"""Which calls of a model's layers stand behind which others, in any kind of model.

A surgery that goes through the data layer by layer asks for the fewest passes that are enough.
"""

import contextlib
from typing import Any, Callable, ContextManager, Optional

import keras

from bn_keras.surgery import calls

# A layer, and which of its calls in a forward pass is meant, from 0; None means all of them.
Call = tuple[keras.Layer, Optional[int]]


def order_of_calls(model: keras.Model, layers: list[keras.Layer], inputs: Any) -> list[list[Call]]:
    """The calls of some layers in passes, each after all that it stands behind.

    Calls that do not stand behind one another share a pass, so that there are as many passes as
    the longest chain of layers has members. All calls of a layer are in one pass, unless layers
    stand behind themselves, such as one that is called on its own outputs: each of their calls has
    a pass of its own, in the order of the calls.

    On TensorFlow, the graph of a forward pass tells what stands behind what. Elsewhere, for a model
    that has no graph, and inside of loops and branches of the graph, each call is taken to stand
    behind all calls before it: more passes, the same order.

    Args:
        model: built; it is called in inference mode.
        layers: of the model.
        inputs: a batch.

    Returns:
        A list of passes. Layers that the model does not call are in none.

    Raises:
        ValueError: a layer is called inside a tf.function of the model.
    """
    if not layers:
        return []
    made, behind = _traced(model, layers, inputs)
    if behind is None:
        seen, (made, behind) = made, _called(model, layers, inputs)
        for layer in seen:  # a graph of the model's own, once traced, calls its layers no more
            if not any(layer is other for other in made):
                calls.refuse_graph(layer)
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    places = [numbers[id(layer)] for layer in made]
    called = list(dict.fromkeys(places))
    # Which layers a layer stands behind, at any distance (Warshall's algorithm).
    reach: dict[int, set[int]] = {place: set() for place in called}
    for place, before in zip(places, behind):
        reach[place] |= {places[number] for number in before}
    for middle in called:
        for place in called:
            if middle in reach[place]:
                reach[place] |= reach[middle]
    end: dict[int, int] = {}  # pass after which all calls of a layer are done
    passes: list[list[Call]] = []
    for place in sorted(called, key=lambda place: len(reach[place] | {place})):
        if place in end:
            continue
        # Layers that stand behind one another: this one alone, as a rule.
        circle = {other for other in reach[place] if place in reach[other]}
        start = max((end[other] for other in reach[place] - circle), default=0)
        if not circle:
            turns: list[list[Call]] = [[(layers[place], None)]]
        else:
            turns = [
                [(layers[other], places[:number].count(other))]
                for number, other in enumerate(places) if other in circle
            ]
        end |= dict.fromkeys(circle | {place}, start + len(turns))
        passes += [[] for _ in range(start + len(turns) - len(passes))]
        for number, turn in enumerate(turns, start):
            passes[number] += turn
    return passes


def graph_of_pass(
    model: keras.Model, layers: list[keras.Layer], instead: calls.Instead, signature: Any
) -> Any:
    """The TensorFlow graph of a forward pass in inference mode, traced with some calls redirected.

    Args:
        signature: tf.TypeSpec in the structure of the model's inputs.

    Raises:
        Exception: whatever the model does that no graph can.
    """
    import tensorflow as tf

    with _all_redirected(layers, instead):
        return tf.function(
            lambda x: calls.infer(model, x), autograph=False
        ).get_concrete_function(signature).graph


def _called(
    model: keras.Model, layers: list[keras.Layer], inputs: Any
) -> tuple[list[keras.Layer], list[set[int]]]:
    """The layers that a forward pass calls, in order; each behind all before it."""
    made: list[keras.Layer] = []

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        calls.check_readable(layer, calls.inputs_and_mask(layer, args, kwargs)[0])
        made.append(layer)
        return call(*args, **kwargs)

    with _all_redirected(layers, instead):
        calls.infer(model, inputs)
    return made, [set(range(number)) for number in range(len(made))]


def _traced(
    model: keras.Model, layers: list[keras.Layer], inputs: Any
) -> tuple[list[keras.Layer], Optional[list[set[int]]]]:
    """The same from the graph of a forward pass, each behind what its inputs are made of.

    The second is None where there is no graph, or where a layer is called in a loop or a branch of
    it, which may run as often as it likes.
    """
    if keras.backend.backend() != "tensorflow":
        return [], None
    import tensorflow as tf

    made: list[keras.Layer] = []
    sources: list[list[tf.Tensor]] = []  # of each call
    results: dict[str, int] = {}  # name of an operation → the call whose output it is

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        number = len(made)
        made.append(layer)
        sources.append([x for x in calls.inputs_and_mask(layer, args, kwargs) if tf.is_tensor(x)])
        outputs = keras.tree.map_structure(tf.identity, call(*args, **kwargs))
        results.update({y.op.name: number for y in keras.tree.flatten(outputs)})
        return outputs

    signature = keras.tree.map_structure(tf.type_spec_from_value, inputs)
    try:
        graph = graph_of_pass(model, layers, instead, signature)
    except Exception:  # whatever the model does that no graph can
        return [], None
    if any(x.graph is not graph for given in sources for x in given):
        return made, None
    # Name of an operation → calls that it stands behind; operations come in order.
    behind: dict[str, frozenset[int]] = {}
    for operation in graph.get_operations():
        before = [x.op for x in operation.inputs] + operation.control_inputs
        found = frozenset().union(*(behind.get(other.name, frozenset()) for other in before))
        if operation.name in results:
            found |= {results[operation.name]}
        behind[operation.name] = found
    return made, [
        set().union(*(behind[x.op.name] for x in given)) for given in sources
    ]


def _all_redirected(
    layers: list[keras.Layer], instead: calls.Instead
) -> ContextManager[Any]:
    stack = contextlib.ExitStack()
    for layer in layers:
        stack.enter_context(calls.redirected(layer, instead))
    return stack
