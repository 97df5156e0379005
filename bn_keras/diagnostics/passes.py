"""Forward passes of a model's copy, with the statistics of one's choice in batch normalization.

The same weights are run with three kinds of statistics: the moving averages as they are, the exact
mean and variance over some examples, and those of each batch. What differs between two of these
runs is due to the statistics alone: dropout and all other layers stay in inference mode.
"""

import collections
import contextlib
import warnings
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from bn_keras.batch_norm import callers, functional
from bn_keras.surgery import calls, copies, statistics
from bn_keras.surgery.certificate import paths

AVERAGED, EXACT, BATCH = "averaged", "exact", "batch"
Array = NDArray[np.float64]


class Call(NamedTuple):
    """A call of a batch normalization in a forward pass.

    Attributes:
        batch_mode: whether it normalizes with the batch's statistics.
        shape: of its inputs.
        values: how many of them a channel has, the fewest of all channels.
        giver: what hands it single time steps, in words; None if nothing does.
        source: path of the layer whose outputs, unchanged, are its inputs; None if there is none.
    """

    batch_mode: bool
    shape: tuple[int, ...]
    values: int
    giver: Optional[str]
    source: Optional[str]


class Moments(NamedTuple):
    """Of every channel: mean, biased variance, and how many values they are of."""

    mean: Array
    variance: Array
    values: Array


class Seen(NamedTuple):
    """A call of a batch normalization on a batch, as an observer gets it.

    Attributes:
        layer: its index in `Passes.layers`.
        call: which of its calls in this forward pass, from 0.
        inputs, mask, outputs: tensors; mask may be None.
    """

    layer: int
    call: int
    inputs: Any
    mask: Any
    outputs: Any


class Passes:
    """A copy of a model, to be run in eager mode; the given model is left alone.

    Args:
        model: a built keras.Model.

    Attributes:
        model: the copy.
        source: the given model.
        given: the batch normalizations of the given model, those that Keras does not track last.
        layers: the copies of these, in the same order.
        paths: theirs; a number is added where two layers have the same one.

    Raises:
        TypeError: what `copies.copy_model` cannot copy.
        ValueError: the model is not built.
    """

    def __init__(self, model: keras.Model) -> None:
        self.source = model
        self.model, parts = copies.copy_with_parts(model)
        twins = {id(one): other for one, other in parts}
        self.given = normalizers(model, (one for one, _ in parts))
        self.layers = [twins[id(layer)] for layer in self.given]
        self.paths = paths_of(model, self.given)
        self._names = {id(twins[key]): path for key, path in paths(model).items() if key in twins}
        self._index = {id(layer): index for index, layer in enumerate(self.layers)}
        self._variables = [pair for pair in parts if isinstance(pair[0], keras.Variable)]
        self.averaged = self._averages()
        self._fit: Mapping[int, Sequence[Call]] = {}

    def refresh(self) -> None:
        """Takes over the given model's present weights and statistics."""
        for theirs, ours in self._variables:
            ours.assign(theirs.value)
        self.averaged = self._averages()

    def survey(self, x: Any, training: Optional[bool]) -> dict[int, list[Call]]:
        """How each batch normalization is called when the model is called in some mode.

        Args:
            x: a batch.
            training: True, as `fit` calls the model, dropout included; False, as `predict` does;
                None, as in `model(x)`: a mode that a graph of layers has by itself counts then.

        Returns:
            Index of a layer → its calls, in order; () where there was none.

        Raises:
            ValueError: a layer is called inside a tf.function.
        """
        found: dict[int, list[Call]] = {index: [] for index in range(len(self.layers))}
        made: dict[int, tuple[Any, str]] = {}  # id of an output → (kept alive, path of the layer)

        def normalizer(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            inputs, mask = calls.inputs_and_mask(layer, args, kwargs)
            calls.check_readable(layer, inputs)
            given = layer._call_signature.bind(*args, **kwargs).arguments.get("training")
            values = functional.count(inputs, axis=getattr(layer, "axis", -1), mask=mask)
            found[self._index[id(layer)]].append(Call(
                bool(given) and statistics.moves_statistics(layer), tuple(inputs.shape),
                int(np.min(as_array(values))), callers.one_step_at_a_time(),
                made.get(id(inputs), (None, None))[1],
            ))
            with statistics.held(layer):
                return call(*args, **kwargs)

        def other(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            made[id(outputs)] = outputs, self._names[id(layer)]
            return outputs

        others = [
            layer for layer in self.model._flatten_layers(include_self=False)
            if id(layer) in self._names and id(layer) not in self._index
        ]
        with contextlib.ExitStack() as stack:
            for layer in others:
                stack.enter_context(calls.redirected(layer, other))
            for layer in self.layers:
                stack.enter_context(calls.redirected(layer, normalizer))
            self._run(x, training)
        if training:
            self._fit = found
        return found

    def outputs(
        self, x: Any, batch: Iterable[int] = (), see: Optional[Callable[[Seen], None]] = None,
        everywhere: bool = False,
    ) -> Any:
        """The outputs in inference mode, some batch normalizations aside.

        Args:
            x: a batch.
            batch: indices of the layers that normalize with the batch's statistics, in those calls
                in which they do so in `fit`; `survey` has to be asked before.
            see: an observer, told of every call of a batch normalization.
            everywhere: these layers do so in all calls.
        """
        chosen, seen = set(batch), collections.Counter[int]()

        def instead(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
            index = self._index[id(layer)]
            number, seen[index] = seen[index], seen[index] + 1
            if index in chosen and (everywhere or self._in_batch_mode(index, number)):
                outputs = calls.in_mode(True, layer, call, *args, **kwargs)
            else:
                with statistics.held(layer):  # training=True may be baked in
                    outputs = call(*args, **kwargs)
            if see is not None:
                see(Seen(index, number, *calls.inputs_and_mask(layer, args, kwargs), outputs))
            return outputs

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(calls.redirected(layer, instead))
            return self._run(x, False)

    def exact(self, chunks: Iterable[Any]) -> list[dict[str, Array]]:
        """The statistics of some examples: for each layer, name → array, as `put` takes them.

        Every layer normalizes with its chunk's statistics on the way. Of a single chunk they are
        those of `surgery.recalibrate`; of several chunks they are pooled, which is close to it for
        chunks of some hundred examples. Frozen layers keep theirs; a layer that no example
        reaches has none: {}.

        Args:
            chunks: batches x, large ones.
        """
        moving = [i for i, layer in enumerate(self.layers) if statistics.moves_statistics(layer)]
        found: dict[int, list[Moments]] = collections.defaultdict(list)

        def see(seen: Seen) -> None:
            found[seen.layer].append(moments(self.layers[seen.layer], seen.inputs, seen.mask))

        for x in chunks:
            self.outputs(x, moving, see, everywhere=True)
        exact = [
            dict(values) if index in found else {} for index, values in enumerate(self.averaged)
        ]
        for index in moving:
            if index in found:
                mean, variance, count = pooled(found[index])
                deviation = np.sqrt(variance + getattr(self.layers[index], "epsilon", 0.0))
                new = {"moving_mean": mean, "moving_variance": variance,
                       "moving_stddev": deviation, "renorm_mean": mean, "renorm_stddev": deviation}
                for name, old in exact[index].items():
                    exact[index][name] = np.where(count > 0, new[name], old)
        return exact

    @contextlib.contextmanager
    def having(self, values: Sequence[Mapping[str, Array]]) -> Iterator[None]:
        """Gives the layers other statistics for a while."""
        try:
            self._put(values)
            yield
        finally:
            self._put(self.averaged)

    def _averages(self) -> list[dict[str, Array]]:
        return [
            {n: as_array(getattr(layer, n)) for n in ASSIGNED if _has(layer, n)}
            for layer in self.layers
        ]

    def _put(self, values: Sequence[Mapping[str, Array]]) -> None:
        for layer, of_layer in zip(self.layers, values, strict=True):
            for name, value in of_layer.items():
                variable = getattr(layer, name)
                variable.assign(value.reshape(variable.shape))

    def _in_batch_mode(self, index: int, number: int) -> bool:
        made = self._fit[index]
        return bool(made) and made[min(number, len(made) - 1)].batch_mode

    def _run(self, x: Any, training: Optional[bool]) -> Any:
        # As Keras's own steps: a model whose `call` has no such argument is not told.
        told = training is not None and self.model._call_has_training_arg
        mode = {"training": training} if told else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches of one, which are asked for on purpose
            return self.model(x, **mode)


# Of a layer, what exact statistics take the place of.
ASSIGNED = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")


def normalizers(model: keras.Model, parts: Iterable[Any] = ()) -> list[keras.Layer]:
    """The built batch normalizations of a model in its order, those that are not tracked last.

    Args:
        model: built.
        parts: of the model, untracked ones included.
    """
    order = {key: number for number, key in enumerate(paths(model))}
    tracked = sorted(statistics.batch_normalizers(model), key=lambda layer: order[id(layer)])
    known = {id(layer) for layer in tracked}
    return tracked + [
        part for part in parts if statistics.is_batch_normalizer(part) and id(part) not in known
    ]


def paths_of(model: keras.Model, layers: Sequence[keras.Layer]) -> list[str]:
    """The paths of some layers; `#2` and so on where a path occurs again."""
    known, seen, found = paths(model), collections.Counter[str](), []
    for layer in layers:
        path = known.get(id(layer)) or layer.path or layer.name
        seen[path] += 1
        found.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return found


def moments(layer: keras.Layer, inputs: Any, mask: Any = None) -> Moments:
    """Those of a batch that goes into a batch normalization."""
    axis = getattr(layer, "axis", -1)
    calls.check_readable(layer, inputs)
    mean, variance = functional.moments(inputs, axis=axis, mask=mask)
    count = as_array(functional.count(inputs, axis=axis, mask=mask))
    mean, variance = as_array(mean), as_array(variance)
    return Moments(mean, variance, np.broadcast_to(count, mean.shape))


def pooled(parts: Sequence[Moments]) -> Moments:
    """The moments of several sets of values together (Chan, Golub & LeVeque 1983)."""
    means, variances, counts = (np.stack(column) for column in zip(*parts))
    total = counts.sum(0)
    shares = counts / np.maximum(total, 1)
    mean = (shares * means).sum(0)
    return Moments(mean, (shares * (variances + (means - mean) ** 2)).sum(0), total)


def _has(layer: keras.Layer, name: str) -> bool:
    return isinstance(getattr(layer, name, None), keras.Variable)


def as_array(value: Any) -> Array:
    """A tensor, variable or int as a NumPy array of float64."""
    if isinstance(value, int):
        return np.asarray(value, np.float64)
    if keras.backend.standardize_dtype(value.dtype) == "bfloat16":  # NumPy has none
        value = keras.ops.cast(value, "float32")
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64)
