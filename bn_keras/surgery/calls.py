"""How a layer is called, changed from outside: for the layers of copies, or for a while.

The `call` of one layer object is replaced, below Keras's `__call__`: it works wherever the layer
stands, in a graph of layers, in code of a model's own, or in a wrapper, and in a tf.function.
"""

import contextlib
import functools
import warnings
from typing import Any, Callable, Iterator, NoReturn

import keras

from bn_keras.surgery import statistics
from bn_keras.texts import in_a_line

# `(layer, call, *args, **kwargs) -> outputs`, in place of `call(*args, **kwargs)`.
Instead = Callable[..., Any]


def redirect(layer: keras.Layer, instead: Instead) -> None:
    """Lets every later call of a layer go through `instead`."""
    layer.call = functools.partial(instead, layer, layer.call)


@contextlib.contextmanager
def redirected(layer: keras.Layer, instead: Instead) -> Iterator[None]:
    """Lets the calls of a layer within go through `instead`."""
    before = vars(layer).get("call")
    redirect(layer, instead)
    try:
        yield
    finally:
        if before is None:
            del layer.call
        else:
            layer.call = before


def in_mode(
    training: bool, layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Calls a layer in a mode, whatever mode it was asked for; its statistics stay as they are.

    A layer that has no argument `training` is called as it was asked to be.
    """
    if "training" in layer._call_signature.parameters:
        bound = layer._call_signature.bind(*args, **kwargs)
        bound.arguments["training"] = training
        args, kwargs = bound.args, bound.kwargs
    if not training or not statistics.is_batch_normalizer(layer):
        return call(*args, **kwargs)
    with statistics.held(layer):
        return call(*args, **kwargs)


def infer(model: Any, inputs: Any) -> Any:
    """The outputs of a model in inference mode, whether or not it takes a mode.

    A net of another framework takes none: it is wrapped in a function that infers.
    """
    takes_mode = isinstance(model, keras.Layer) and "training" in model._call_signature.parameters
    return model(inputs, training=False) if takes_mode else model(inputs)


def input_count(model: keras.Model) -> int:
    """How many tensors a model takes, from its graph or from its first call; 1 if nobody knows."""
    if getattr(model, "inputs", None):
        return len(model.inputs)
    shape = (model.get_build_config() or {}).get("input_shape")
    if isinstance(shape, dict):
        return len(shape)
    if isinstance(shape, (list, tuple)) and all(isinstance(s, (list, tuple)) for s in shape):
        return len(shape)
    return 1


def check_inputs(model: keras.Model, x: Any, caller: str) -> None:
    """Raises where a batch has not the shapes that the model's graph tells, and cannot be run.

    Keras takes more than a graph tells: a last axis of length 1, or images of another size. So what
    differs is tried on an example. Of a model without a graph nobody knows what it takes.

    Raises:
        ValueError: inputs are missing, or have other shapes.
    """
    difference = _difference(model, x)
    if difference and not _runs(model, x):
        raise ValueError(f"{caller}: received {difference}.")


def why_not_run(model: keras.Model, x: Any) -> str:
    """Why a model cannot be called on a batch in inference mode; "" if it can, or on its first row.

    Args:
        model: a copy: its state may change.
        x: a batch.
    """
    if _runs(model, x):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            infer(model, x)
    except Exception as error:
        shapes = ", ".join(
            str(tuple(one.shape)) for one in keras.tree.flatten(x) if one is not None
        )
        return (
            f"received inputs of shape {shapes}, on which {model.name!r} cannot be run: "
            f"{in_a_line(error)}. Expected batches as its `predict` takes them."
        )
    return ""


def _difference(model: keras.Model, x: Any) -> str:
    """How a batch differs from what the graph of a model tells, in words; "" if it does not."""
    wanted = getattr(model, "inputs", None)
    if not wanted:
        return ""
    names = {one.name: one for one in wanted}
    structure = getattr(model, "_inputs_struct", None)
    if isinstance(structure, dict) and all(hasattr(one, "shape") for one in structure.values()):
        names = structure
    if isinstance(x, dict) and all(hasattr(one, "shape") for one in x.values()):
        if not names.keys() <= x.keys():
            return (
                f"inputs {', '.join(map(repr, x))}; the model takes {', '.join(map(repr, names))}"
            )
        pairs = [(repr(name), x[name], of) for name, of in names.items()]
    else:
        arrays = keras.tree.flatten(x)
        if len(arrays) != len(wanted):
            count = f"{len(arrays)} array{'' if len(arrays) == 1 else 's'}"
            return f"{count} as inputs; the model takes {len(wanted)}"
        pairs = [(repr(of.name), array, of) for array, of in zip(arrays, wanted)]
    for name, array, of in pairs:
        shape = getattr(array, "shape", None)  # None: an optional input that is left out
        if shape is not None and not _fits(tuple(shape), tuple(of.shape)):
            which = f" for {name}" if len(pairs) > 1 else ""
            return f"inputs of shape {tuple(shape)}{which}; the model takes {tuple(of.shape)}"
    return ""


def _runs(model: keras.Model, x: Any) -> bool:
    """Whether a model can be called on the first example of a batch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            infer(model, keras.tree.map_structure(lambda one: None if one is None else one[:1], x))
    except Exception:
        return False
    return True


def _fits(shape: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or length is None or size == length
        for size, length in zip(wanted[1:], shape[1:])
    )


def inputs_and_mask(
    layer: keras.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """What a call of a normalizer normalizes, and the mask that it heeds or None."""
    arguments = layer._call_signature.bind(*args, **kwargs).arguments
    inputs = next(iter(arguments.values()))
    if "mask" not in layer._call_signature.parameters:
        return inputs, None
    mask = arguments.get("mask")
    return inputs, getattr(inputs, "_keras_mask", None) if mask is None else mask


def check_readable(layer: keras.Layer, inputs: Any) -> None:
    """Raises unless the inputs of a layer have values, which they have not inside a graph.

    Raises:
        ValueError: they have none.
    """
    try:
        keras.ops.convert_to_numpy(inputs)
    except Exception:  # each backend has its own error
        refuse_graph(layer)


def refuse_graph(layer: keras.Layer) -> NoReturn:
    """Raises for a layer that cannot be looked at because the model calls it in a graph.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{layer.name!r} is called inside a tf.function of the model, where its inputs cannot be "
        "read; expected a model that runs eagerly, for example after "
        "tf.config.run_functions_eagerly(True)."
    )
