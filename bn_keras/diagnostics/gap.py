"""`gap`: why a model's loss in inference mode differs from the one that it has in training mode.

    print(bn_keras.gap(model, (x_validation, y_validation), train=(x_train, y_train)))

Everything is measured with the same weights; nothing but the statistics in batch normalization
changes from one run to the next. Dropout and all other layers stay in inference mode throughout.
"""

import dataclasses
import html
import math
from typing import Any, Mapping, Optional, Sequence

import keras
import numpy as np

from bn_keras.diagnostics.evaluations import (
    BATCH_SIZE,
    EXAMPLES,
    OWN,
    Batches,
    Evaluations,
    Scored,
    check_loss,
    read,
)
from bn_keras.diagnostics.finding import CannotLook, Unusable
from bn_keras.diagnostics.passes import AVERAGED, BATCH, EXACT, Passes
from bn_keras.intervals import CONFIDENCE
from bn_keras.surgery import calls, statistics
from bn_keras.texts import jsonable

MEANING = {
    "lag": "the moving averages are not the exact statistics of the training examples",
    "noise": "in training mode, the batch's statistics stand in for the exact ones",
    "shift": "the statistics of the training examples are not those of these data",
    "data": "these data are harder, or training fitted its own: no matter of statistics",
    "total": "inference mode on these data, less training mode on the training examples",
}


@dataclasses.dataclass(frozen=True)
class Term:
    """A difference of two mean losses, with its 95 % interval over batches.

    Attributes:
        value: the difference; above 0, inference mode is the worse.
        low, high: the interval (Student's t over batches, paired); None for fewer than two batches.
    """

    value: float
    low: Optional[float] = None
    high: Optional[float] = None

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return f"{self.value} (not every output is finite)"
        if self.low is None:
            return f"{self.value:+.4f} (one batch: no interval)"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclasses.dataclass(frozen=True)
class LayerGap:
    """What one layer's statistics cost where those of all others are exact.

    Attributes:
        path: of the layer.
        lag: loss with this layer's moving averages, less that with its exact statistics.
        noise: loss with its exact statistics, less that with those of each batch.
    """

    path: str
    lag: Term
    noise: Term


@dataclasses.dataclass(frozen=True)
class Gap:
    """The parts of the gap between inference and training mode; printed, it says so in words.

    Attributes:
        loss: the name of the loss, and where it was taken from.
        inference: the loss in inference mode on the data.
        training: that in training mode (batch statistics, no dropout) on the training examples.
        terms: "lag", "noise" and "total"; with training examples "shift" and "data" too. They add
            up to "total".
        layers: a LayerGap for each layer that was asked for.
        examples: what it was measured on, in words.
        metrics: name → value in inference mode, in inference mode with exact statistics, and in
            training mode, on the same examples as the losses.
    """

    loss: str
    inference: float
    training: float
    terms: Mapping[str, Term]
    layers: tuple[LayerGap, ...]
    examples: str
    metrics: Mapping[str, tuple[float, float, float]] = dataclasses.field(default_factory=dict)

    @property
    def worst(self) -> Optional[str]:
        """The name of the largest term that is clearly above 0; None if none is."""
        above = {
            name: term.value for name, term in self.terms.items()
            if name != "total" and term.is_clear and term.value > 0
        }
        return max(above, key=lambda name: above[name]) if above else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; numbers that are not finite are texts."""
        found: dict[str, Any] = jsonable(self)
        return found

    def __str__(self) -> str:
        lines = [
            f"loss ({self.loss}): {self.inference:.4f} in inference mode, {self.training:.4f} in "
            f"training mode ({self.examples})"
        ]
        for name, values in self.metrics.items():
            lines.append("{}: {:.3f} in inference mode, {:.3f} with exact statistics, {:.3f} in "
                         "training mode".format(name, *values))
        lines += [f"  {name:6}{str(term):34}{MEANING[name]}" for name, term in self.terms.items()]
        lines += [f"  {one.path}: lag {one.lag}, noise {one.noise}" for one in self.layers]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def gap(
    model: keras.Model, data: Any, *, train: Any = None, layers: int = 0,
    batch_size: int = BATCH_SIZE, examples: int = EXAMPLES, loss: Any = None,
) -> Gap:
    """Splits the gap between inference and training mode into its parts.

    With L(D, S) the mean loss of the model on examples D with the statistics S in its batch
    normalization, T the training examples, A the moving averages, E(D) the exact statistics of D
    and B those of each batch:

        total = L(data, A) - L(T, B)
        lag   = L(data, A) - L(data, E(T))       the averages are late, or of other weights
        shift = L(data, E(T)) - L(data, E(data)) what the training statistics cost on these data
        data  = L(data, E(data)) - L(T, E(T))    harder data, overfitting: not the statistics
        noise = L(T, E(T)) - L(T, B)             what normalizing by the batch takes away

    total = lag + shift + data + noise. Without `train`, T is `data`: shift and data are 0 and left
    out, and if these are not training examples, the lag contains the shift.

    Frozen layers, and those that `fit` would run in inference mode, keep their averages in all of
    it.

    Args:
        model: a built keras.Model of any kind; it is left as it is.
        data: the examples that do badly, with labels, such as (x_validation, y_validation); in any
            form that `fit` takes.
        train: training examples, likewise.
        layers: for how many layers lag and noise are measured one by one, those with the largest
            lag first.
        batch_size: of arrays: that of training.
        examples: how many are read, of each.
        loss: as `model.compile` takes it; None for the compiled one, or the only one that fits the
            labels.

    Returns:
        A Gap.

    Raises:
        TypeError: no model or data of these kinds, or the model cannot be copied.
        ValueError: the model is not built or has no batch normalization; no examples or labels; no
            loss that is plain, or that fits the labels; the model cannot be run on the examples, or
            they hold NaN or infinity; a layer inside a tf.function.
    """
    check_loss(loss, "gap")
    passes = Passes(model)
    if not passes.layers:
        raise ValueError(f"gap: {model.name!r} has no batch normalization, so no such gap.")
    batches, training = (
        None if one is None else read(model, one, batch_size, examples, "gap")
        for one in (data, train)
    )
    if batches is None:
        raise ValueError("gap: received no data; expected examples with labels.")
    read_ones = [one for one in (batches, training) if one is not None]
    try:
        found = gap_of(Evaluations(passes, batches, training, loss), layers)
    except (CannotLook, Unusable) as error:
        raise ValueError(f"gap: {error}.") from error
    except Exception as error:
        why = why_unusable(passes, read_ones)
        if why:
            raise ValueError(f"gap: {why}") from error
        raise
    bad = sum(one.not_finite for one in read_ones)
    if bad and not math.isfinite(found.training):
        raise ValueError(
            f"gap: {bad} of {sum(one.read for one in read_ones)} examples hold NaN or inf, and "
            "so does the loss; expected numbers. Leave those examples out."
        )
    return found


def why_unusable(passes: Passes, batches: Sequence[Batches]) -> str:
    """Why a model cannot be run on some examples, not even in inference mode; "" if it can."""
    reasons = (calls.why_not_run(passes.model, one.first.x) for one in batches)
    return next(filter(None, reasons), "")


def gap_of(found: Evaluations, layers: int = 0) -> Gap:
    """The gap of a model that is being evaluated.

    Raises:
        CannotLook: there is no loss.
    """
    averaged, exact = found.scored("data", AVERAGED), found.scored("data", EXACT)
    own, batch = found.scored("train", EXACT), found.scored("train", BATCH)
    terms = {"lag": difference(averaged, exact)}
    if found.has_train:
        best = found.scored("data", OWN)
        terms |= {"shift": difference(exact, best), "data": _unpaired([(best, 1)], [(own, -1)])}
    terms["noise"] = difference(own, batch)
    terms["total"] = _unpaired([(averaged, 1)], [(batch, -1)]) if found.has_train else difference(
        averaged, batch
    )
    words = str(found.data)
    if found.has_train:
        words += f"; training: {found.train}"
    frozen = sum(not statistics.moves_statistics(layer) for layer in found.passes.layers)
    if frozen:
        words += f"; {frozen} frozen layers keep their averages in all of it"
    metrics = {
        name: (value, exact.metrics[name], batch.metrics[name])
        for name, value in averaged.metrics.items() if name != "loss"
    }
    return Gap(
        found.scorer.said, averaged.loss, batch.loss, terms,
        tuple(_of_layer(found, index) for index in _worst(found, layers)), words,
        metrics,
    )


def distances(found: Evaluations) -> list[Optional[tuple[float, float]]]:
    """How far each layer's moving averages are from exact statistics, as `distance` says.

    None for a layer that no example reaches in inference mode.
    """
    return [
        distance(layer, new, old) if new else None
        for layer, old, new in zip(found.passes.layers, found.passes.averaged, found.exact)
    ]


def distance(
    layer: keras.Layer, one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[float, float]:
    """How far some statistics of a layer are from others, by the names of its variables.

    Returns:
        `(mean, variance)`: the root mean square over channels of the mean's distance, in standard
        deviations of the one; and e to the root mean square of the log of the variance's factor.
        (0, 1) where they agree.
    """
    epsilon = getattr(layer, "epsilon", 0.0)
    variance = one["moving_variance"] + epsilon
    with np.errstate(all="ignore"):
        shift = (other["moving_mean"] - one["moving_mean"]) / np.sqrt(variance)
        ratio = np.log((other["moving_variance"] + epsilon) / variance)
        return _root_mean_square(shift), float(np.exp(_root_mean_square(ratio)))


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else 0.0


def _worst(found: Evaluations, count: int) -> list[int]:
    if not count:
        return []
    size = {}
    for index, one in enumerate(distances(found)):
        if one is not None:
            lag = one[0] + math.log(one[1])
            size[index] = math.inf if math.isnan(lag) else lag
    order = sorted(size, key=lambda index: -size[index])
    return order[:count]


def _of_layer(found: Evaluations, index: int) -> LayerGap:
    exact, batch = found.scored("train", EXACT), found.scored("train", BATCH, [index])
    return LayerGap(
        found.passes.paths[index],
        difference(found.scored("data", AVERAGED, [index]), found.scored("data", EXACT)),
        difference(exact, batch),
    )


def difference(one: Scored, other: Scored) -> Term:
    """The difference on the same batches."""
    return _unpaired([(one, 1), (other, -1)])


def _unpaired(*sets: Sequence[tuple[Scored, int]]) -> Term:
    """A sum of differences, each over the batches of its own set.

    The batches of a set are weighed by their sizes; the degrees of freedom of several sets are
    Welch's.
    """
    value, parts = 0.0, []
    for signed in sets:
        with np.errstate(invalid="ignore"):
            differences = sum(sign * scored.losses for scored, sign in signed)
        shares = signed[0][0].sizes / signed[0][0].sizes.sum()
        mean, n = float(np.sum(shares * differences)), len(shares)
        value += mean
        if n > 1:
            spread = float(np.sum((shares * (differences - mean)) ** 2)) * n / (n - 1)
            parts.append((spread, n - 1))
    if len(parts) < len(sets) or not math.isfinite(value):
        return Term(value)
    from scipy import stats

    variance = sum(spread for spread, _ in parts)
    if not variance:
        return Term(value, value, value)
    freedom = variance**2 / sum(spread**2 / degrees for spread, degrees in parts)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Term(value, value - half, value + half)
