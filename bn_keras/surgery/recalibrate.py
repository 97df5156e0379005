"""Exact population statistics: what the moving averages only follow, computed over all examples.

A reader recalibrates a trained model to see how it would do with right statistics: the weights stay
as they are, so a better score afterwards is the moving averages' fault and not the training's.
`recalibrate` is exact, and reads the examples as often as normalizers stand behind one another;
`recalibrate_in_one_pass` is the usual approximation.
"""

import collections
import contextlib
import math
from typing import Any, Callable, Iterator, Mapping, Optional

import keras
import numpy as np

from bn_keras.batch_norm import functional
from bn_keras.surgery import calls, copies, statistics
from bn_keras.surgery.dependencies import Call, order_of_calls
from bn_keras.surgery.examples import DATA, Examples

BATCH_SIZE = 1000
NO_CALL = -1


def recalibrate(model: keras.Model, inputs: Any, batch_size: int = BATCH_SIZE) -> keras.Model:
    """A copy of a model whose population statistics are those of the given examples.

    Each layer behind layers that are done already: its moving mean and (biased) moving variance
    become mean and variance of what goes into it in inference mode. Batch renormalization gets the
    standard deviation that belongs to them as well, so that training goes on from there. Masked
    positions do not count. The result depends neither on `batch_size` nor on the old statistics.

    The examples go through the model once for all layers that do not stand behind one another, so
    as often as the longest chain of normalizers has members. A layer that is called several times
    gets the statistics of all its calls together; if one of its calls stands behind another one,
    as in an RNN cell, they are taken one after the other, each behind what the calls before it
    gave, in a pass each. (Keras's RNN calls its cell twice for the first time step.)

    Frozen layers (`trainable=False`, or frozen statistics), layers that the examples never reach
    and layers that keep no population statistics stay as they are.

    Args:
        model: a built keras.Model of any kind; what `copy_model` cannot copy is named.
        inputs: the training set, in a form that `Examples` takes; labels do not count. Each pass
            must give the same examples, in any order. A generator can be read once only, so it does
            for a model whose normalizers do not stand behind one another.
        batch_size: examples of an array that go through the model at once.

    Returns:
        A new model with the same weights and names, not compiled; equal to the given one where that
        has no batch normalization.

    Raises:
        TypeError: no model or no examples of these kinds, or the model cannot be copied.
        ValueError: the model is not built; there are no examples, infinitely many, or arrays of
            different lengths; a generator for several passes; a layer inside a tf.function.
    """
    copy, layers = _start(model, "recalibrate")
    source = Examples(copy, inputs, batch_size, "recalibrate")
    passes = order_of_calls(copy, layers, source.first)
    if source.once and len(passes) > 1:
        raise ValueError(
            f"recalibrate: received a {type(inputs).__name__}, which can be read once; "
            f"{len(passes)} normalizers of this model stand behind one another, which takes "
            f"{len(passes)} passes. Expected {DATA} that can be read again, or "
            "recalibrate_in_one_pass."
        )
    pooled = {id(layer): _Moments(layer) for layer in layers}
    # Layers that take a pass for each call: all batches must call them as often as the first one.
    limits = collections.Counter(
        id(layer) for now in passes for layer, number in now if number is not None
    )
    for now in passes:
        with _measured(copy, layers, pooled, now, limits) as forward:
            for x, _, _ in source:
                forward(x)
        for layer in {id(layer): layer for layer, _ in now}.values():
            _assign(layer, pooled[id(layer)])
    return copy


def recalibrate_in_one_pass(
    model: keras.Model, inputs: Any, batch_size: int = BATCH_SIZE
) -> keras.Model:
    """A copy of a model whose population statistics are pooled from batches in training mode.

    The usual approximation (`update_bn` of stochastic weight averaging): every normalizer uses the
    statistics of its batch, and gets the mean and variance of all that went into it. It reads the
    examples once, so that a generator does. It differs from `recalibrate` behind the first
    normalizer, which hands on what it normalized with each batch's statistics in place of the
    population's: the result depends on the batches, the less the larger they are. Unlike
    PyTorch's, it pools exactly, the spread of the batches' means included, weighs batches by their
    sizes, and leaves dropout out.

    Args: as for `recalibrate`; batches of at least 100 examples or so come close to it.

    Returns:
        As `recalibrate`.

    Raises:
        TypeError: as `recalibrate`.
        ValueError: as `recalibrate`.
    """
    name = "recalibrate_in_one_pass"
    copy, layers = _start(model, name)
    source = Examples(copy, inputs, batch_size, name)
    pooled = {id(layer): _Moments(layer) for layer in layers}
    with _measured(copy, layers, pooled, None, {}) as forward:
        for x, _, _ in source:
            forward(x)
    for layer in layers:
        _assign(layer, pooled[id(layer)])
    return copy


def _start(model: keras.Model, caller: str) -> tuple[keras.Model, list[keras.Layer]]:
    """The copy, and its layers whose statistics are to be computed."""
    copies.check_model(model, caller)
    copy = copies.copy_model(model)
    return copy, [
        layer for layer in copy._flatten_layers() if statistics.moves_statistics(layer)
    ]


@contextlib.contextmanager
def _measured(
    model: keras.Model, layers: list[keras.Layer], pooled: dict[int, "_Moments"],
    now: Optional[list[Call]], limits: Mapping[int, int],
) -> Iterator[Callable[[Any], None]]:
    """Lets what goes into some calls of some layers be added to their moments.

    Args:
        model, layers: the copy and its layers.
        pooled: id of a layer → its _Moments.
        now: the calls that count, as `order_of_calls` gives them; None for all of them, in
            training mode.
        limits: id of a layer → the most calls in a forward pass that there may be.

    Yields:
        `(batch) -> None`, a forward pass.
    """
    counted = {id(layer): number for layer, number in now or [(layer, None) for layer in layers]}
    # Calls in this forward pass, by the id of the layer.
    seen: collections.Counter[int] = collections.Counter()

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        if counted.get(id(layer), NO_CALL) in (None, seen[id(layer)]):
            pooled[id(layer)].add(*calls.inputs_and_mask(layer, args, kwargs))
        seen[id(layer)] += 1
        if seen[id(layer)] > limits.get(id(layer), math.inf):
            raise ValueError(
                f"recalibrate: {layer.name!r} stands behind itself, and was called more often in a "
                f"later batch than the {limits[id(layer)]} times in the first one; expected the "
                "same number of calls, such as time steps, in all batches, or "
                "recalibrate_in_one_pass."
            )
        return calls.in_mode(now is None, layer, call, *args, **kwargs)

    def forward(batch: Any) -> None:
        seen.clear()
        calls.infer(model, batch)

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(calls.redirected(layer, instead))
        yield forward


def _assign(layer: keras.Layer, moments: "_Moments") -> None:
    """Gives a layer the statistics that were computed for it; none if nothing reached it."""
    if not np.any(moments.count):
        return
    stddev = np.sqrt(moments.variance + getattr(layer, "epsilon", 0.0))
    values = {
        "moving_mean": moments.mean, "moving_variance": moments.variance,
        # Batch renormalization: training normalizes with the last two, and makes the next moving
        # variance of the first one.
        "moving_stddev": stddev, "renorm_mean": moments.mean, "renorm_stddev": stddev,
    }
    for name, value in values.items():
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            old = np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
            reached = np.broadcast_to(moments.count > 0, value.shape)
            variable.assign(np.where(reached, value, old).reshape(variable.shape))


class _Moments:
    """Mean and biased variance of every channel, over any number of batches, in float64.

    Two sets of values are joined as in Chan, Golub & LeVeque (1983): the squared distances add up,
    and so does what the distance of the two means contributes.
    """

    def __init__(self, layer: keras.Layer) -> None:
        self._layer = layer
        self.count, self.mean, self.variance = np.zeros(()), np.zeros(()), np.zeros(())

    def add(self, inputs: functional.Tensor, mask: Optional[functional.Tensor] = None) -> None:
        """Takes in the values of a batch."""
        axis = getattr(self._layer, "axis", -1)
        calls.check_readable(self._layer, inputs)
        found = functional.moments(inputs, axis=axis, mask=mask)
        count = functional.count(inputs, axis=axis, mask=mask)
        mean, variance, count = (np.asarray(value, np.float64) for value in (*found, count))
        total = self.count + count
        share = count / np.maximum(total, 1)
        distance = mean - self.mean
        self.variance = (
            (1 - share) * self.variance + share * variance + share * (1 - share) * distance**2
        )
        self.mean = self.mean + share * distance
        self.count = total
