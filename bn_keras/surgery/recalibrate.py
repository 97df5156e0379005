"""Exact population statistics: what the moving averages only follow, computed over all examples.

A reader recalibrates a trained model to see how it would do with right statistics: the weights stay
as they are, so a better score afterwards is the moving averages' fault and not the training's.
`recalibrate` is exact, and reads the examples as often as normalizers stand behind one another;
`recalibrate_in_one_pass` is the usual approximation. `recalibrate_in_place` is for the middle of a
training run.
"""

import collections
import contextlib
import math
import warnings
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

import keras
import numpy as np

from bn_keras.batch_norm import functional
from bn_keras.surgery import calls, copies, scores, statistics
from bn_keras.surgery.certificate import LEFT, Certificate, Row, certificate_of, paths
from bn_keras.surgery.dependencies import Call, order_of_calls
from bn_keras.surgery.examples import DATA, Examples, length, not_finite
from bn_keras.surgery.surgeon import name_of, unseen

BATCH_SIZE = 1000
NO_CALL = -1
RECALIBRATED = "recalibrated"
CLOSE = 0.05  # standard deviations: statistics this far off change no output that anyone sees


def recalibrate(
    model: keras.Model, data: Any, batch_size: int = BATCH_SIZE
) -> tuple[keras.Model, Certificate]:
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
        data: the training set, in a form that `Examples` takes; labels are for the certificate
            only. Each pass must give the same examples, in any order. A generator can be read once
            only, so it does for a model whose normalizers do not stand behind one another.
        batch_size: examples of an array that go through the model at once.

    Returns:
        `(new model, certificate)`. The model has the same weights and names, and is not compiled;
        it equals the given one where that has no batch normalization. A row of the certificate
        says how far the statistics of a layer moved: its mean in old standard deviations, its
        variance as a factor, each in the channel where that is most. The figures are

        - `before`, `after`: loss and metrics over the examples, with their labels;
        - `judged by`: which loss that is, or why there is none;
        - `error after batches`: how far the statistics of the first 1, 2, 4, … batches are from
          those of all, in the worst channel of all layers: the shift of the mean in standard
          deviations, or the relative error of the standard deviation where that is larger. Each
          layer stands behind layers with final statistics;
        - `batches enough`: the smallest of these numbers from which on that error is below .05.

    Raises:
        TypeError: no model or no examples of these kinds, or the model cannot be copied.
        ValueError: the model is not built; there are no examples, infinitely many, or arrays of
            different lengths; a generator for several passes; a layer inside a tf.function; the
            model cannot be run on the examples; or NaN and infinite values go into a layer, which
            names the example.

    Warns:
        UserWarning: no statistics were computed, because all layers are frozen for example.
    """
    return _certified("recalibrate", False, model, data, batch_size)


def recalibrate_in_one_pass(
    model: keras.Model, data: Any, batch_size: int = BATCH_SIZE
) -> tuple[keras.Model, Certificate]:
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
    return _certified("recalibrate_in_one_pass", True, model, data, batch_size)


def recalibrated(
    model: keras.Model, data: Any, batch_size: int = BATCH_SIZE, *, finite: bool = True
) -> keras.Model:
    """The new model of `recalibrate` alone, without what a certificate costs.

    Args: as for `recalibrate`; finite=False takes in NaN, for a stack of nets of which some have
    diverged.
    """
    source = _examples(model, data, batch_size, "recalibrate")
    work = _work_on(model, finite)
    _compute(_exactly, work, source, "recalibrate")
    return work.copy


def recalibrate_in_place(
    model: keras.Model, data: Any, batch_size: int = BATCH_SIZE
) -> statistics.Snapshot:
    """Gives a model the statistics that `recalibrate` computes, and returns the old ones.

    For a model in the middle of training, whose weights were exchanged for their averages, as
    `keras.callbacks.SwapEMAWeights` does for an evaluation: `statistics.restore` puts the old
    statistics back afterwards. Elsewhere take `recalibrate`, which leaves the model alone.

    Returns:
        The old statistics of all layers, for `statistics.restore`.

    Raises:
        TypeError: as `recalibrate`; the model has its old statistics then.
        ValueError: as `recalibrate`; the model has its old statistics then.
    """
    new = recalibrated(model, data, batch_size)
    old = statistics.snapshot(model)
    statistics.restore(model, statistics.snapshot(new))
    return old


class _Work(NamedTuple):
    """The copy, its layers whose statistics are to be computed, and all normalizers.

    Attributes:
        pairs: each batch normalization of the model and the one in the copy, those that Keras does
            not track included.
        finite: whether statistics that are no numbers are refused.
    """

    copy: keras.Model
    layers: list[keras.Layer]
    pairs: list[tuple[keras.Layer, keras.Layer]]
    finite: bool


def _examples(model: keras.Model, data: Any, batch_size: int, caller: str) -> Examples:
    copies.check_model(model, caller)
    return Examples(model, data, batch_size, caller)


def _work_on(model: keras.Model, finite: bool = True) -> _Work:
    copy, parts = copies.copy_with_parts(model)
    order = {key: number for number, key in enumerate(paths(model))}
    pairs = [(old, new) for old, new in parts if statistics.is_batch_normalizer(old)]
    pairs.sort(key=lambda pair: order.get(id(pair[0]), len(order)))
    layers = [new for _, new in pairs if statistics.moves_statistics(new)]
    return _Work(copy, layers, pairs, finite)


Pooled = dict[int, "_Moments"]  # by the id of the layer


def _compute(
    method: Callable[[_Work, Examples, str], Pooled], work: _Work, source: Examples, caller: str
) -> Pooled:
    """The statistics of the layers of a copy; a model that the examples do not suit is named."""
    try:
        return method(work, source, caller)
    except Exception as error:
        why = calls.why_not_run(work.copy, source.first)
        if why:
            raise ValueError(f"{caller}: {why}") from error
        raise


def _exactly(work: _Work, source: Examples, caller: str) -> Pooled:
    """Layer by layer, each behind layers that are done."""
    copy, layers = work.copy, work.layers
    passes = order_of_calls(copy, layers, source.first)
    if source.once and len(passes) > 1:
        raise ValueError(
            f"{caller}: received a {source.kind}, which can be read once; {len(passes)} "
            f"normalizers of this model stand behind one another, which takes {len(passes)} "
            f"passes. Expected {DATA} that can be read again, or recalibrate_in_one_pass."
        )
    pooled = {id(layer): _Moments(layer) for layer in layers}
    # Layers that take a pass for each call: all batches must call them as often as the first one.
    limits = collections.Counter(
        id(layer) for now in passes for layer, number in now if number is not None
    )
    for now in passes:
        whole = [pooled[id(layer)] for layer, number in now if number is None]
        with _measured(copy, layers, pooled, now, limits) as forward:
            _read(work, source, caller, forward, pooled, whole)
        for layer in {id(layer): layer for layer, _ in now}.values():
            _assign(layer, pooled[id(layer)], caller)
    return pooled


def _in_one_pass(work: _Work, source: Examples, caller: str) -> Pooled:
    """All layers at once, in training mode."""
    pooled = {id(layer): _Moments(layer) for layer in work.layers}
    with _measured(work.copy, work.layers, pooled, None, {}) as forward:
        _read(work, source, caller, forward, pooled, list(pooled.values()))
    for layer in work.layers:
        _assign(layer, pooled[id(layer)], caller)
    return pooled


def _read(
    work: _Work, source: Examples, caller: str, forward: Callable[[Any], None], pooled: Pooled,
    whole: list["_Moments"],
) -> None:
    """One pass; moments that are computed in it alone note where they stand after 1, 2, 4, ….

    Raises:
        ValueError: NaN or infinite values go into a layer.
    """
    start = 0
    for number, (x, _, _) in enumerate(source, 1):
        forward(x)
        for moments in pooled.values() if work.finite else ():
            if moments.not_finite is not None:
                raise ValueError(f"{caller}: {_no_numbers(work, moments, x, start)}")
        start += length(x)
        for moments in whole:
            moments.note(number)


def _no_numbers(work: _Work, moments: "_Moments", x: Any, start: int) -> str:
    """Why there are no statistics, in words: an example, weights of the model, or an overflow.

    Args:
        work: the copy and its layers.
        moments: of a layer.
        x: the batch that spoilt them.
        start: how many examples were before it.
    """
    names = paths(work.copy)
    layer = names.get(id(moments.layer)) or moments.layer.name
    of_data, inside = not_finite(x), not_finite(moments.not_finite)
    if len(moments.not_finite) != length(x) or not inside.any():  # of time steps, or an overflow
        inside = np.zeros(0, bool)
    rows = np.flatnonzero(of_data & inside if len(inside) else of_data)
    if len(rows):
        return (
            f"example {start + rows[0]} of the data holds NaN or infinity, and so would the "
            f"statistics of {layer!r}; expected numbers. Leave out that example, or mend it."
        )
    computed = {id(v) for one in work.layers for v in statistics.variables_of(one)}
    bad = [
        variable.path for variable in work.copy.variables
        if id(variable) not in computed and not_finite(variable.value[None]).any()
    ]
    where = f" for example {start + np.flatnonzero(inside)[0]}" if len(inside) else ""
    return (
        f"what goes into {layer!r} has no finite mean and variance{where}, though the data are "
        "numbers: " + (
            f"NaN or infinity is in {', '.join(bad[:3])} of the model. Expected weights that are "
            "numbers, such as those of an earlier checkpoint." if bad
            else "it overflows, or a layer in front of it gives NaN. Expected smaller inputs, or a "
            "wider dtype."
        )
    )


def computed(
    caller: str, model: keras.Model, data: Any, batch_size: int, in_one_pass: bool
) -> tuple[keras.Model, list[Row], dict[str, Any], Examples]:
    """The new model of `recalibrate`, or in one pass, with all that a certificate is made of.

    Returns:
        `(new model, rows, figures, examples)`; the figures say nothing of losses.

    Raises:
        TypeError: as `recalibrate`.
        ValueError: as `recalibrate`.
    """
    source = _examples(model, data, batch_size, caller)
    work = _work_on(model)
    pooled = _compute(_in_one_pass if in_one_pass else _exactly, work, source, caller)
    rows = _rows(model, work, pooled)
    if not any(row.fate == RECALIBRATED for row in rows):
        reasons = "; ".join(f"{row.path}: {row.note}" for row in rows)
        warnings.warn(
            f"{caller}: no statistics were computed in {model.name!r}, "
            f"{reasons or 'which has no batch normalization'}.", UserWarning, stacklevel=4,
        )
    return work.copy, rows, _enough(list(pooled.values())), source


def _certified(
    caller: str, in_one_pass: bool, model: keras.Model, data: Any, batch_size: int
) -> tuple[keras.Model, Certificate]:
    copy, rows, enough, source = computed(caller, model, data, batch_size, in_one_pass)
    figures = {**scores.judged(model, {"before": model, "after": copy}, source), **enough}
    return copy, certificate_of(caller, model, copy, rows, inputs=source.first, figures=figures)


def _rows(model: keras.Model, work: _Work, pooled: Pooled) -> list[Row]:
    names, rows = paths(model), []
    for old, new in work.pairs:
        kind, fate = name_of(type(old)), LEFT
        if id(new) not in pooled:
            note = "frozen: its statistics are not those of training"
        elif not np.any(pooled[id(new)].count):
            note = "the examples never reach it"
        else:
            fate = RECALIBRATED
            before, after = statistics.snapshot(old), statistics.snapshot(new)
            (shift, factor), = statistics.difference(before, after).values()
            note = f"mean by {shift:.2g} standard deviations, variance by a factor {factor:.2g}"
            if not all(np.isfinite(value).all() for value in before.values()):
                note = "the old statistics were not finite"
            note += f"; {int(np.max(pooled[id(new)].count))} values a channel"
        if id(old) not in names:
            note += "; not tracked by Keras, in no file"
        rows.append(Row(names.get(id(old), old.path or old.name), kind, kind, fate, note))
    seen = {id(old) for old, _ in work.pairs}
    for layer in model._flatten_layers():
        reason = None if id(layer) in seen else unseen(layer)
        if reason is not None:
            rows.append(Row(names[id(layer)], name_of(type(layer)), None, LEFT, reason))
    return rows


def _enough(pooled: list["_Moments"]) -> dict[str, Any]:
    """How far the statistics of the first batches are from those of all, and how many do."""
    trails = [moments.trail for moments in pooled if moments.trail]
    last = max((max(trail) for trail in trails), default=0)
    if last < 2:
        return {"batches enough": "not measured: " + (
            "there is one batch only" if last else "no layer was computed in a single pass"
        )}
    errors: dict[int, float] = {}
    for moments in pooled:
        for number in moments.trail:
            errors[number] = max(errors.get(number, 0.0), moments.error(number))
    total = max(moments.batches for moments in pooled)
    numbers = sorted(errors)
    good = [n for n in numbers if all(errors[m] <= CLOSE for m in numbers if m >= n)]
    return {
        "error after batches": {str(number): round(errors[number], 4) for number in numbers},
        "batches enough": f"{good[0]} of {total}, for an error below {CLOSE}" if good else (
            f"more than {numbers[-1]}: all {total} were read, and nobody knows whether they do"
        ),
    }


@contextlib.contextmanager
def _measured(
    model: keras.Model, layers: list[keras.Layer], pooled: Pooled,
    now: Optional[list[Call]], limits: Mapping[int, int],
) -> Iterator[Callable[[Any], None]]:
    """Lets what goes into some calls of some layers be added to their moments.

    Args:
        model, layers: the copy and its layers.
        pooled: the moments of each.
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


def _assign(layer: keras.Layer, moments: "_Moments", caller: str) -> None:
    """Gives a layer the statistics that were computed for it; none if nothing reached it.

    Raises:
        ValueError: they are too large for its variables.
    """
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
            dtype = keras.backend.standardize_dtype(variable.dtype)
            most = np.max(np.abs(value), initial=0.0)
            if dtype == "float16" and np.finfo(dtype).max < most < math.inf:
                raise ValueError(
                    f"{caller}: {name} of {layer.name!r} is up to {most:.3g}, which its {dtype} "
                    "cannot hold; expected a layer whose weights are of float32, or smaller inputs."
                )
            variable.assign(np.where(reached, value, old).reshape(variable.shape))


class _Moments:
    """Mean and biased variance of every channel, over any number of batches, in float64.

    Two sets of values are joined as in Chan, Golub & LeVeque (1983): the squared distances add up,
    and so does what the distance of the two means contributes.
    """

    def __init__(self, layer: keras.Layer) -> None:
        self.layer = layer
        self.not_finite: Any = None  # the first inputs whose moments are no numbers
        self.count, self.mean, self.variance = np.zeros(()), np.zeros(()), np.zeros(())
        self.batches = 0  # of the pass in which they were computed, if it was a single one
        self.trail: dict[int, tuple[Any, Any]] = {}  # number of batches → mean, variance

    def note(self, batches: int) -> None:
        """Keeps a note of the moments of the first batches, where that is a power of two."""
        self.batches = batches
        if batches & (batches - 1) == 0 and np.any(self.count):
            self.trail[batches] = self.mean, self.variance

    def error(self, batches: int) -> float:
        """How far the moments of the first batches are from those of all, in the worst channel."""
        mean, variance = self.trail[batches]
        epsilon = getattr(self.layer, "epsilon", 1e-12)
        scale = np.sqrt(self.variance + epsilon)
        shift = np.abs(mean - self.mean) / scale
        return float(np.max(np.maximum(shift, np.abs(np.sqrt(variance + epsilon) / scale - 1))))

    def add(self, inputs: functional.Tensor, mask: Optional[functional.Tensor] = None) -> None:
        """Takes in the values of a batch."""
        axis = getattr(self.layer, "axis", -1)
        calls.check_readable(self.layer, inputs)
        found = functional.moments(inputs, axis=axis, mask=mask)
        count = functional.count(inputs, axis=axis, mask=mask)
        mean, variance, count = (np.asarray(value, np.float64) for value in (*found, count))
        if self.not_finite is None and not np.isfinite(mean + variance).all():
            self.not_finite = inputs
        total = self.count + count
        share = count / np.maximum(total, 1)
        distance = mean - self.mean
        self.variance = (
            (1 - share) * self.variance + share * variance + share * (1 - share) * distance**2
        )
        self.mean = self.mean + share * distance
        self.count = total
