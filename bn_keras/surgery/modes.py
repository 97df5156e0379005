"""What every batch normalization of a model does in `fit`: measured, not read off its flags.

Flags do not tell: `fit` overrides the `training=False` that a graph calls a layer with
(keras#20285), a model's code may hand on no mode at all, a frozen model around a layer keeps its
gamma from learning, and a layer of somebody's own does what it likes. So a copy of the model is
called once as `fit` calls it, and each layer is watched.
"""

import dataclasses
import warnings
from typing import Any, Callable, Optional

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.surgery import calls, copies
from bn_keras.surgery.certificate import paths, random_inputs
from bn_keras.surgery.statistics import variables_of
from bn_keras.surgery.surgeon import is_batch_normalization, name_of, unseen

BATCH, AVERAGES, BOTH, NOTHING, UNKNOWN = "batch", "averages", "both", "nothing", "unknown"
FEW = 4  # examples in a call that is watched
WORDS = {
    BATCH: "normalizes with batch statistics",
    AVERAGES: "normalizes with the averages",
    BOTH: "normalizes with batch statistics in some calls and with the averages in others",
    NOTHING: "is not called",
    UNKNOWN: "normalizes in an unknown way",
}
MOVES = {True: ", moves the averages", False: ", leaves the averages alone",
         None: ", moves the averages or not"}


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a batch normalization does in `fit`. `str()` gives a sentence.

    Attributes:
        path: names of the layers around it and its own.
        layer: its class.
        normalizes: with the statistics of the "batch", with the moving "averages", with "both" in
            several calls; "nothing" where the model does not call it; "unknown" where nobody saw.
        moves: whether the moving averages move; None where nobody saw.
        trains: names of its weights that the optimizer gets, such as gamma and beta.
        note: what else is to be known, such as why nobody saw.
    """

    path: str
    layer: str
    normalizes: str
    moves: Optional[bool]
    trains: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        told = WORDS[self.normalizes] + (MOVES[self.moves] if self.normalizes != NOTHING else "")
        told += f", trains {' and '.join(self.trains) or 'nothing'}"
        return f"{told} ({self.note})" if self.note else told


# What was seen of a call: whether it used the batch's statistics, and whether its averages moved.
Seen = tuple[bool, bool]


def modes(model: keras.Model, inputs: Any = None) -> list[Mode]:
    """What each batch normalization of a model does in `fit`.

    A copy of the model is called in training mode, eagerly, as `fit` calls it. In each call of a
    batch normalization, normal numbers stand in for what goes into it, and are changed in all
    examples but the first: if the first output changes too, it was normalized with batch
    statistics. Where the model cannot be called, layers are judged by their flags and the note says
    so. A `train_step` or a training loop of one's own may call the model in another way.

    >>> x = keras.Input((3,))
    >>> outputs = keras.layers.BatchNormalization()(x, training=False)
    >>> mode, = modes(keras.Model(x, outputs))
    >>> str(mode)
    'normalizes with batch statistics, moves the averages, trains gamma and beta \
(the graph says training=False, which fit overrides)'

    Args:
        model: a keras.Model, built. What `fit` was compiled for before a flag was changed does not
            show here: that takes another `compile`.
        inputs: a few examples, for a model whose inputs are not known; None for random values.

    Returns:
        A Mode for each layer, in the order of the model's layers; those that Keras does not track
        come last. A layer that may hide a batch normalization has one as well.

    Raises:
        TypeError: not a keras.Model, or a part of it cannot be copied.
        ValueError: the model is not built.
    """
    copies.check_model(model, "modes")
    copy, parts = copies.copy_with_parts(model)
    names = paths(model)
    pairs = [(old, new) for old, new in parts if is_batch_normalization(old)]
    order = {key: number for number, key in enumerate(names)}
    pairs.sort(key=lambda pair: order.get(id(pair[0]), len(order)))
    seen, reason = _watched(copy, [new for _, new in pairs], model if inputs is None else inputs)
    trained = {id(variable) for variable in model.trainable_variables}
    overridden = told_not_to_train(copy)
    found = []
    for old, new in pairs:
        notes = [] if id(old) in names else ["not tracked by Keras, in no file"]
        looks = seen.get(id(new), [])
        if reason:
            normalizes, moves = _by_flags(old)
            notes.append(f"by its flags alone: {reason}")
        elif looks:
            kinds = {batch for batch, _ in looks}
            normalizes = BOTH if len(kinds) > 1 else BATCH if kinds == {True} else AVERAGES
            moves = any(moved for _, moved in looks)
            if normalizes != AVERAGES and id(new) in overridden:
                notes.append("the graph says training=False, which fit overrides")
        else:
            normalizes, moves = NOTHING, False
        trains = tuple(v.name for v in old.variables if id(v) in trained)
        path = names.get(id(old), old.path or old.name)
        found.append(Mode(path, name_of(type(old)), normalizes, moves, trains, "; ".join(notes)))
    met = {id(old) for old, _ in pairs}
    for layer in model._flatten_layers():
        hidden = None if id(layer) in met else unseen(layer)
        if hidden:
            kind = name_of(type(layer))
            found.append(Mode(names[id(layer)], kind, UNKNOWN, None, (), hidden))
    return found


def told_not_to_train(model: keras.Model) -> set[int]:
    """Ids of the layers that a graph calls with `training=False`, or that are inside of such.

    Keras puts the default of a layer's own `call` into the graph as well: where that is False, as
    in RNN, nobody can tell whether the user said so.
    """
    nodes = [
        node for part in model._flatten_layers()
        for depth in getattr(part, "_nodes_by_depth", {}).values() for node in depth
        if node.operation is not None and node.arguments.kwargs.get("training") is False
    ]
    return {
        id(inner) for node in nodes
        if node.operation._call_signature.parameters["training"].default is not False
        for inner in node.operation._flatten_layers()
    }


def _watched(
    copy: keras.Model, layers: list[keras.Layer], inputs: Any
) -> tuple[dict[int, list[Seen]], str]:
    """What was seen of the calls of a copy's layers, by the id of the layer; or why nothing was.

    Args:
        copy: its state is lost.
        layers: of the copy.
        inputs: for it; or a model whose inputs are drawn at random.
    """
    seen: dict[int, list[Seen]] = {}
    unread: list[str] = []
    rng = np.random.default_rng(0)

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        given = layer._call_signature.bind(*args, **kwargs)
        name = next(iter(given.arguments))
        x = given.arguments[name]
        try:
            calls.check_readable(layer, x)
        except ValueError as error:
            unread.append(str(error))
            return call(*args, **kwargs)
        numbers = rng.normal(size=x.shape)
        others = np.concatenate([numbers[:1], 3 * numbers[1:] + 5])

        def outputs_for(values: NDArray[np.float64]) -> NDArray[np.float64]:
            given.arguments[name] = keras.ops.cast(values, x.dtype)
            outputs = call(*given.args, **given.kwargs)
            first = keras.tree.flatten(outputs)[0][:1]
            return keras.ops.convert_to_numpy(keras.ops.cast(first, "float32"))

        if len(numbers) > 1:
            before = _statistics(layer)
            one = outputs_for(numbers)
            moved = any(not np.array_equal(a, b) for a, b in zip(before, _statistics(layer)))
            is_near = np.allclose(one, outputs_for(others), rtol=1e-2, atol=1e-2)
            seen.setdefault(id(layer), []).append((not is_near, moved))
        else:
            unread.append("a call had one example only, which has no others to depend on")
        given.arguments[name] = keras.ops.cast(numbers, x.dtype)
        return call(*given.args, **given.kwargs)

    try:
        inputs = random_inputs(inputs) if isinstance(inputs, keras.Model) else (
            keras.tree.map_structure(lambda array: array[:FEW], inputs)
        )
        mode = {"training": True} if copy._call_has_training_arg else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for layer in layers:
                _plain(layer)
                calls.redirect(layer, instead)
            copy(inputs, **mode)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        return {}, said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
    return seen, unread[0] if unread else ""


def _plain(layer: keras.Layer) -> None:
    """Gives a layer weights that hide nothing: a gamma of 0 would, and statistics of NaN."""
    for name, value in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            variable.assign(keras.ops.full(variable.shape, value, variable.dtype))


def _statistics(layer: keras.Layer) -> list[NDArray[np.float64]]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables_of(layer)]


def _by_flags(layer: keras.Layer) -> tuple[str, Optional[bool]]:
    if not layer.trainable and isinstance(layer, keras.layers.BatchNormalization):
        return AVERAGES, False
    if not getattr(layer, "moves_statistics", True):
        return AVERAGES, False
    return UNKNOWN, None
