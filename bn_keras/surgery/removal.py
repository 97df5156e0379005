"""Taking layers that hand on their inputs out of the graphs of a copied model.

Keras has no means to remove a layer from a functional model. Building the model anew from the rest
would lose its class, its attributes and whatever else refers to it, so its graph is rewired here.
"""

from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.ops.function import Function, map_graph
from keras.src.ops.node import Node
from keras.src.ops.symbolic_arguments import SymbolicArguments
from keras.src.utils.tracking import DotNotTrackScope


def remove_layers(model: keras.Model, gone: list[keras.Layer]) -> None:
    """Removes layers from all functional and Sequential models within a model, and itself.

    The last layer of a Sequential model stays, since Keras knows none without a layer.

    Args:
        model: nobody else's; it is changed.
        gone: layers that give what they take.
    """
    every = model._flatten_layers()
    stacks = [layer for layer in every if isinstance(layer, keras.Sequential)]
    graphs = [layer for layer in every if isinstance(layer, Functional)]
    graphs += [stack._functional for stack in stacks if stack._functional is not None]
    ids = {id(layer) for layer in gone}
    nodes = {
        id(node): node for graph in graphs for stage in graph._nodes_by_depth.values()
        for node in stage
    }
    around = {  # id of an output of a removed layer → its input
        id(node.outputs[0]): node.input_tensors[0]
        for node in nodes.values() if id(node.operation) in ids
    }

    def swap(x: Any) -> Any:
        while id(x) in around:
            x = around[id(x)]
        return x

    for node in nodes.values():
        _rewire(node, swap)
    for graph in graphs:
        _rebuild(graph, swap)
        for layer in gone:
            graph._tracker.untrack(layer)
    for stack in stacks:
        for layer in [layer for layer in stack._layers if id(layer) in ids]:
            if len(stack.layers) > 1:
                stack._layers.remove(layer)


def _rewire(node: Node, swap: Any) -> None:
    """Lets a call take what comes before the removed layers."""
    olds = node.arguments.keras_tensors
    if all(swap(x) is x for x in olds):
        return
    args, kwargs = keras.tree.map_structure(swap, (node.arguments.args, node.arguments.kwargs))
    node.arguments = SymbolicArguments(*args, **kwargs)
    for x in node.arguments.keras_tensors:
        giver = x._keras_history.operation
        if giver is not None and not any(node is other for other in giver._outbound_nodes):
            giver._outbound_nodes.append(node)


def _rebuild(graph: Function, swap: Any) -> None:
    """Lets a functional model find its calls and layers anew, from its outputs on."""
    with DotNotTrackScope():
        structure = keras.tree.map_structure(swap, graph._outputs_struct)
        outputs = keras.tree.flatten(structure)
        found = map_graph(graph._inputs, outputs)
    names = ("_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth")
    graph.__dict__.update(zip(names, found), _outputs_struct=structure, _outputs=outputs)
