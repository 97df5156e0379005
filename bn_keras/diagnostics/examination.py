"""What the doctor's findings read: everything about a model's batch normalization, measured once.

A finding is a function of an `Examination`. Whatever takes a forward pass is measured when the
first finding asks for it. What cannot be measured raises `CannotLook`, which a finding lets pass:
the doctor lists it with its reason.
"""

import dataclasses
import functools
import math
from typing import Any, Callable, Mapping, Optional, Sequence, TypeVar

import keras
import numpy as np

from bn_keras.diagnostics import passes
from bn_keras.diagnostics.evaluations import (
    BATCH_SIZE,
    EXAMPLES,
    Batches,
    Evaluations,
    Scored,
    check_loss,
    read,
)
from bn_keras.diagnostics.finding import CannotLook, NotLooked, Unusable
from bn_keras.diagnostics.gap import Gap, distances, gap_of, why_unusable
from bn_keras.diagnostics.passes import Array, Call, Moments, Passes
from bn_keras.diagnostics.surroundings import Surroundings
from bn_keras.surgery import certificate, copies, statistics, surgeon
from bn_keras.texts import in_a_line

T = TypeVar("T")

# How a batch normalization normalizes in `fit`.
BY_BATCH, BY_AVERAGES, BOTH, NOT_CALLED, UNKNOWN = (
    "batch", "averages", "both", "not called", "unknown"
)
NO_DATA = "no data: doctor(model, data) takes what `fit` takes"
# How far averages may be from exact statistics before they count as late: training at a momentum of
# .9 leaves so much. Twice what n examples leave open comes on top: 1 / sqrt(n) of a mean,
# sqrt(2 / n) of a variance.
LATE_SHIFT, LATE_FACTOR = 0.1, 1.25


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """A batch normalization of the model, as its weights and settings have it.

    Attributes:
        index: its number among those of the model.
        path: names of the layers around it and its own.
        layer: the layer itself, of the given model: not to be called or changed.
        kind: the name of its class.
        axis: of the channels.
        trainable: Keras's flag.
        moves: whether training moves its statistics: it is not frozen.
        momentum: a number; None for a schedule or a cumulative average.
        epsilon: added to the variance.
        gamma, beta: (channels,); None where it has none.
        mean, variance: moving statistics, (channels,).
        initial: whether they are the initial values still.
        learned: whether gamma or beta are no longer the initial values; None where it has neither.
        dtype: of its computations.
    """

    index: int
    path: str
    layer: keras.Layer
    kind: str
    axis: int
    trainable: bool
    moves: bool
    momentum: Optional[float]
    epsilon: float
    gamma: Optional[Array]
    beta: Optional[Array]
    mean: Array
    variance: Array
    initial: bool
    learned: Optional[bool]
    dtype: str

    @property
    def finite(self) -> bool:
        """Whether its weights are numbers, and its variances not negative."""
        values = [one for one in (self.gamma, self.beta, self.mean, self.variance)
                  if one is not None]
        return all(np.isfinite(one).all() for one in values) and bool((self.variance >= 0).all())

    @property
    def window(self) -> Optional[float]:
        """Over how many steps the moving averages reach, 1 / (1 - momentum)."""
        if self.momentum is None:
            return None
        return math.inf if self.momentum == 1 else 1 / (1 - self.momentum)


@dataclasses.dataclass(frozen=True)
class Observed:
    """What went into a batch normalization and came out, with exact statistics in all layers.

    Attributes:
        per_batch: of each of its calls the inputs' Moments of each batch.
        calls: of each of its calls the inputs' Moments over all batches.
        inputs: the inputs' Moments over all calls and batches.
        outputs: the outputs' Moments over all calls and batches.
        lowest, highest: least and largest output of each channel.
        positive: share of outputs above 0 of each channel: what a relu behind it lets through.
    """

    per_batch: tuple[tuple[Moments, ...], ...]
    calls: tuple[Moments, ...]
    inputs: Moments
    outputs: Moments
    lowest: Array
    highest: Array
    positive: Array


class Examination:
    """A model on some data, looked at as often as findings ask, each quantity measured once.

    Args:
        model: a built keras.Model.
        data: examples, or None.
        train: training examples, where `data` are others.
        batch_size: of arrays: that of training.
        examples: how many are looked at, of each.
        loss: as `Evaluations` takes it.
        layers: for how many layers the gap is measured one by one.

    Attributes:
        model: the given model.
        data: the Batches that are looked at; None without data.
        train: those of the training examples, `data`'s where there are no others; None without.
        has_train: whether there were training examples beside the data.
        batch_size: of training.
        singly: for how many layers the gap is measured one by one.
        normalizers: a Normalizer for each batch normalization.
        hidden: a NotLooked for each layer that may hide one.

    Raises:
        TypeError: no keras.Model, or data in no form that is known.
        ValueError: the model is not built; no examples; a loss that is none.

    Whatever takes a forward pass raises Unusable where the model cannot be run on the data, or the
    labels do not fit the loss.
    """

    def __init__(
        self, model: keras.Model, data: Any = None, train: Any = None, *,
        batch_size: int = BATCH_SIZE, examples: int = EXAMPLES, loss: Any = None, layers: int = 0,
    ) -> None:
        copies.check_model(model, "doctor")
        check_loss(loss, "doctor")
        self.model, self.has_train = model, train is not None
        self.data: Optional[Batches] = None
        self.train: Optional[Batches] = None
        if data is None and train is not None:
            raise ValueError("doctor: received train without data; expected data as well.")
        if data is not None:
            self.data = self.train = read(model, data, batch_size, examples, "doctor")
        if train is not None:
            self.train = read(model, train, batch_size, examples, "doctor")
        self.batch_size = self.train.size if self.train else batch_size
        self._loss, self.singly = loss, layers
        try:
            self._passes: Optional[Passes] = Passes(model)
            self._no_passes = ""
            found, paths = self._passes.given, self._passes.paths
        except TypeError as error:  # names the layer
            self._passes, self._no_passes = None, str(error)
            found = passes.normalizers(model)
            paths = passes.paths_of(model, found)
        self.normalizers = tuple(
            _normalizer(index, path, layer)
            for index, (path, layer) in enumerate(zip(paths, found, strict=True))
        )
        places = certificate.paths(model)
        self.hidden = tuple(
            NotLooked("", reason, places.get(id(layer), layer.name))
            for layer in model._flatten_layers() if not statistics.is_batch_normalizer(layer)
            for reason in [surgeon.unseen(layer)] if reason
        )
        self._failed: dict[str, CannotLook] = {}
        self._changes: dict[tuple[int, ...], float] = {}

    @property
    def passes(self) -> Passes:
        """The copy of the model that is run.

        Raises:
            CannotLook: it cannot be copied.
        """
        if self._passes is None:
            raise CannotLook(self._no_passes)
        return self._passes

    @property
    def batches(self) -> Batches:
        """The data.

        Raises:
            CannotLook: there are none.
        """
        if self.data is None:
            raise CannotLook(NO_DATA)
        return self.data

    @functools.cached_property
    def in_fit(self) -> tuple[tuple[Call, ...], ...]:
        """The calls of each normalizer as `fit` makes them, on the first batch or random values.

        Raises:
            CannotLook: there was no forward pass.
        """
        return self._measured("calls in fit", lambda: self._survey(True))

    @functools.cached_property
    def in_inference(self) -> tuple[tuple[Call, ...], ...]:
        """The calls of each normalizer as `predict` makes them.

        Raises:
            CannotLook: there was no forward pass.
        """
        return self._measured("calls in inference", lambda: self._survey(False))

    @functools.cached_property
    def in_a_call(self) -> tuple[tuple[Call, ...], ...]:
        """The calls of each normalizer in `model(x)`, which names no mode.

        Raises:
            CannotLook: there was no forward pass.
        """
        return self._measured("calls without a mode", lambda: self._survey(None))

    def mode(self, index: int) -> str:
        """How a normalizer normalizes in `fit`: a word for its calls together."""
        try:
            modes = {call.batch_mode for call in self.in_fit[index]}
        except CannotLook:
            return UNKNOWN
        if not modes:
            return NOT_CALLED
        return BOTH if len(modes) > 1 else BY_BATCH if modes.pop() else BY_AVERAGES

    @functools.cached_property
    def evaluations(self) -> Evaluations:
        """Losses and exact statistics.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        return self._measured("evaluations", lambda: Evaluations(
            self.passes, self.batches, self.train if self.has_train else None, self._loss
        ))

    @functools.cached_property
    def exact(self) -> list[dict[str, Array]]:
        """For each normalizer its exact statistics on the training examples, by name.

        {} for one that no example reaches in inference mode.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        return self._measured("exact statistics", lambda: self.evaluations.exact)

    @functools.cached_property
    def lags(self) -> list[Optional[tuple[float, float]]]:
        """How far each normalizer's averages are from exact statistics, as `gap.distances` says.

        None for one that no example reaches in inference mode.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        return self._measured("lags", self._lags)

    def is_late(self, index: int) -> Optional[bool]:
        """Whether a normalizer's averages are further from exact statistics than chance explains.

        None for one that no example reaches in inference mode.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        lag = self.lags[index]
        if lag is None:
            return None
        shift, factor = lag
        examples = self.evaluations.train.read
        allowed = LATE_SHIFT + 2 / math.sqrt(examples)
        return not (
            shift <= allowed and factor <= LATE_FACTOR * math.exp(2 * math.sqrt(2 / examples))
        )

    @functools.cached_property
    def gap(self) -> Gap:
        """The gap between inference and training mode.

        Raises:
            CannotLook: no data, labels or loss, or no forward pass.
        """
        return self._measured("gap", lambda: gap_of(self.evaluations, self.singly))

    def scored(self, kind: str, layers: Optional[Sequence[int]] = None) -> Scored:
        """Losses and accuracies on the data, under statistics of a kind in some layers or all.

        See `Evaluations.scored`.

        Raises:
            CannotLook: no data, labels or loss, or no forward pass.
        """
        return self._measured("losses", lambda: self.evaluations.scored("data", kind, layers))

    @functools.cached_property
    def observed(self) -> tuple[Optional[Observed], ...]:
        """What goes into each normalizer and comes out; None for one that is not called.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        return self._measured("observation", self._observe)

    def outputs_changed(self, layers: Sequence[int]) -> float:
        """How far the outputs on the first batch move when averages become exact statistics.

        The root mean square distance, divided by the root mean square of the outputs with exact
        statistics; inf where outputs are not finite with averages and are with exact ones.

        Args:
            layers: indices of those whose averages become exact; all others have exact statistics.

        Raises:
            CannotLook: no data, or no forward pass.
        """
        key = tuple(sorted(layers))
        if key not in self._changes:
            self._changes[key] = self._measured("outputs", lambda: self._change(key))
        return self._changes[key]

    @functools.cached_property
    def surroundings(self) -> Surroundings:
        """The layers in front of each normalizer, and the activations behind it.

        Raises:
            CannotLook: no graph of a forward pass.
        """
        return self._measured("surroundings", lambda: Surroundings(self.passes, self._first()))

    def weights_moved(self) -> Optional[str]:
        """What shows that the model was trained, in words; None if nothing does."""
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        if steps is not None and int(keras.ops.convert_to_numpy(steps)):
            return f"its optimizer made {int(keras.ops.convert_to_numpy(steps))} steps"
        learned = [one.path for one in self.normalizers if one.learned]
        return f"gamma or beta of {len(learned)} layers are learned" if learned else None

    def _measured(self, what: str, measure: Callable[[], T]) -> T:
        """A measurement; one that fails is not tried again.

        Raises:
            CannotLook: it failed now or before.
        """
        if what in self._failed:
            raise self._failed[what]
        try:
            return measure()
        except CannotLook as error:
            self._failed[what] = error
            raise
        except Unusable:
            raise
        except Exception as error:
            given = [one for one in (self.data, self.train) if one is not None]
            why = why_unusable(self.passes, given)
            if why:
                raise Unusable(why) from error
            self._failed[what] = CannotLook(f"a forward pass failed: {in_a_line(error)}")
            raise self._failed[what] from error

    def _lags(self) -> list[Optional[tuple[float, float]]]:
        self._check_exact(self.exact)
        return distances(self.evaluations)

    def _check_exact(self, exact: Sequence[Mapping[str, Array]]) -> None:
        """Raises where nothing can be measured against exact statistics.

        Raises:
            CannotLook: some are not finite.
        """
        for one, values in zip(self.normalizers, exact, strict=True):
            if one.moves and not all(np.isfinite(value).all() for value in values.values()):
                raise CannotLook(
                    f"the exact statistics of {one.path} are not finite: its inputs have NaN or inf"
                )

    def _survey(self, training: Optional[bool]) -> tuple[tuple[Call, ...], ...]:
        found = self.passes.survey(self._first(), training)
        return tuple(tuple(found[one.index]) for one in self.normalizers)

    def _first(self) -> Any:
        """The x of the first batch, or random values.

        Raises:
            CannotLook: no data, and no known inputs.
        """
        if self.data is not None:
            return self.data.first.x
        try:
            return certificate.random_inputs(self.model)
        except ValueError as error:
            raise CannotLook(f"no data, and {error}") from error

    def _observe(self) -> tuple[Optional[Observed], ...]:
        found: list[dict[int, list[Moments]]] = [{} for _ in self.normalizers]
        behind: list[list[tuple[Moments, Array, Array, Array]]] = [[] for _ in self.normalizers]

        def see(seen: passes.Seen) -> None:
            layer = self.passes.layers[seen.layer]
            found[seen.layer].setdefault(seen.call, []).append(
                passes.moments(layer, seen.inputs, seen.mask)
            )
            behind[seen.layer].append(_behind(layer, seen.outputs, seen.mask))

        self._check_exact(self.evaluations.exact_of_data)
        with self.passes.having(self.evaluations.exact_of_data):
            for batch in self.batches.batches:
                self.passes.outputs(batch.x, see=see)
        return tuple(
            _observed(list(calls.values()), parts) if parts else None
            for calls, parts in zip(found, behind)
        )

    def _change(self, layers: Sequence[int]) -> float:
        x = self.batches.first.x
        with self.passes.having(self.evaluations.with_averages(layers)):
            averaged = self.passes.outputs(x)
        with self.passes.having(self.exact):
            exact = self.passes.outputs(x)
        return relative_change(averaged, exact)


def _normalizer(index: int, path: str, layer: keras.Layer) -> Normalizer:
    momentum = getattr(layer, "momentum", None)
    gamma, beta, mean, variance = (
        None if getattr(layer, name, None) is None else passes.as_array(getattr(layer, name))
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    learned = [
        not _is_initial(layer, name, value)
        for name, value in (("gamma", gamma), ("beta", beta)) if value is not None
    ]
    assert mean is not None and variance is not None  # it is a batch normalizer
    return Normalizer(
        index, path, layer, type(layer).__name__, getattr(layer, "axis", -1), layer.trainable,
        statistics.moves_statistics(layer),
        float(momentum) if isinstance(momentum, (int, float)) else None,
        float(getattr(layer, "epsilon", 0.0)), gamma, beta, mean, variance,
        _is_initial(layer, "moving_mean", mean) and _is_initial(layer, "moving_variance", variance),
        any(learned) if learned else None, layer.compute_dtype,
    )


# What a weight starts with, where the layer has no initializer for it.
STARTS = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


def _is_initial(layer: keras.Layer, name: str, value: Array) -> bool:
    """Whether a weight has its initial value; one that starts at random values never does."""
    initializer = getattr(layer, f"{name}_initializer", None)
    if initializer is None:
        return bool(np.all(value == STARTS[name]))
    fresh = type(initializer).from_config(initializer.get_config())
    start = passes.as_array(keras.ops.convert_to_tensor(fresh(value.shape, dtype="float32")))
    return bool(np.array_equal(start.astype(np.float32), value.astype(np.float32)))


def _behind(layer: keras.Layer, outputs: Any, mask: Any) -> tuple[Moments, Array, Array, Array]:
    """Moments, least and largest value and share above 0 of every channel of some outputs."""
    found = passes.moments(layer, outputs, mask)
    axis = getattr(layer, "axis", -1) % len(outputs.shape)
    others = [number for number in range(len(outputs.shape)) if number != axis]
    ops = keras.ops
    return (
        found, passes.as_array(ops.min(outputs, others)), passes.as_array(ops.max(outputs, others)),
        passes.as_array(ops.mean(ops.cast(outputs > 0, "float32"), others)),
    )


def _observed(
    calls: Sequence[Sequence[Moments]], behind: Sequence[tuple[Moments, Array, Array, Array]]
) -> Observed:
    outputs, lowest, highest, positive = zip(*behind)
    return Observed(
        tuple(tuple(one) for one in calls), tuple(passes.pooled(one) for one in calls),
        passes.pooled([part for one in calls for part in one]), passes.pooled(outputs),
        np.min(lowest, 0), np.max(highest, 0),
        np.average(positive, 0, [part.values.mean() for part in outputs]),
    )


def relative_change(outputs: Any, right: Any) -> float:
    """The root mean square distance of outputs from the right ones, over that of these from 0.

    inf where outputs are not finite.
    """
    one, other = (
        np.concatenate([passes.as_array(y).ravel() for y in keras.tree.flatten(part)])
        for part in (outputs, right)
    )
    if not np.isfinite(one).all():
        return math.inf
    return float(np.sqrt(np.mean((one - other) ** 2) / max(np.mean(other**2), 1e-24)))
