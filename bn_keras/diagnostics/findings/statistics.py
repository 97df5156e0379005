"""Findings on moving statistics: initial, never updated, late, not finite."""

import math
from typing import Iterator, Optional, Sequence

import numpy as np

from bn_keras.diagnostics.evaluations import Batches
from bn_keras.diagnostics.examination import (
    BY_AVERAGES,
    NOT_CALLED,
    Examination,
    Normalizer,
)
from bn_keras.diagnostics.finding import RISK, WRONG_RESULTS, CannotLook, Cost, Finding, named
from bn_keras.diagnostics.gap import difference
from bn_keras.diagnostics.passes import AVERAGED, EXACT
from bn_keras.registry import FINDINGS
from bn_keras.surgery import statistics

HAND_ON = "# def call(self, inputs, training=None): hand training on to every layer; train again"
ERRORS = 3.0  # standard errors by which an accuracy must fall to count
RECALIBRATE = "import bn_keras; model, _ = bn_keras.recalibrate(model, {})"
IN_ONE_PASS = (
    "from bn_keras.surgery.recalibrate import recalibrate_in_one_pass; "
    "model, _ = recalibrate_in_one_pass(model, {}, 256)"
)
MANY = 8  # layers from which on exact statistics, with a pass for each, take too long
OUTPUTS_CHANGED = 0.05  # of their root mean square: less is lost in the noise of training
LOSS_CHANGED = 0.05  # of the loss: statistics of some examples fit these a little too well
EXPLODED = 1e15  # of a variance: products of a few such values leave float32's range of 1e38
STOP_AT_NAN = "callback = keras.callbacks.TerminateOnNaN()"


@FINDINGS.register(
    "statistics_initial", title="statistics were never updated", severity="wrong results", needs=(),
)
def statistics_initial(examined: Examination) -> Iterator[Finding]:
    """Moving means and variances have their initial values, such as 0 and 1.

    A risk, if nothing shows that the model was ever trained. Silent where the data show that the
    initial values happen to be right.
    """
    initial = [one for one in initial_ones(examined) if not _right(one, examined)]
    if not initial:
        return
    trained = examined.weights_moved()
    cost, note, _ = cost_of_averages(examined, initial)
    yield Finding(
        f"{named([one.path for one in initial], len(examined.normalizers))} still have their "
        f"initial statistics (mean {initial[0].mean.mean():g}, variance "
        f"{initial[0].variance.mean():g}), " + (
            f"though the model was trained: {trained}." if trained
            else "and nothing shows that the model was ever trained."
        ),
        exact_statistics(examined), tuple(one.path for one in initial),
        {"layers": len(initial), "of": len(examined.normalizers), "trained": trained},
        cost, note, WRONG_RESULTS if trained or cost else RISK,
    )


@FINDINGS.register(
    "never_updated", title="weights were trained, statistics were not", severity="wrong results",
    needs=(),
)
def never_updated(examined: Examination) -> Iterator[Finding]:
    """Training moved weights and left statistics alone, or would do so.

    Either they are initial while gamma, beta or the optimizer's counter have moved: training=True
    was forgotten in a loop of one's own, or a file lost them. Or the model's own code never hands
    `training` on, so that `fit` runs trainable layers in inference mode.
    """
    trained = examined.weights_moved()
    left = [
        one for one in initial_ones(examined)
        if trained and (one.learned or one.learned is None or not _right(one, examined))
    ]
    deaf = [one for one in examined.normalizers if one.moves and examined.mode(
        one.index) == BY_AVERAGES]
    if not left and not deaf:
        return
    about = deaf or left
    cost, note, _ = cost_of_averages(examined, about)
    paths = [one.path for one in about]
    told = named(paths, len(examined.normalizers))
    if deaf:
        own = "" if examined.model._call_has_training_arg else (
            f": {type(examined.model).__name__}.call has no argument `training`, and Keras then "
            "tells its layers nothing"
        )
        symptom = f"`fit` runs {told} in inference mode though they are trainable{own}."
    else:
        symptom = (
            f"{told} have their initial statistics while the weights have moved ({trained}): "
            "training=True was forgotten in the loop, or a file lost the statistics."
        )
    if deaf:  # its weights were trained with these averages: others would not suit them
        cost, note = None, "not measured: the net has to be trained once more"
    yield Finding(
        symptom, HAND_ON if deaf else exact_statistics(examined), tuple(paths),
        {"trained": trained, "initial": [one.path for one in left],
         "inference_mode_in_fit": [one.path for one in deaf]},
        cost, note, WRONG_RESULTS if trained or cost else RISK,
    )


@FINDINGS.register(
    "averages_lag", title="moving averages lag behind the weights", severity="costs accuracy",
    needs=("data",),
)
def averages_lag(examined: Examination) -> Iterator[Finding]:
    """Moving averages are not the exact statistics of the training examples, and that costs."""
    lags = {
        one.index: lag for one, lag in zip(examined.normalizers, examined.lags, strict=True)
        if lag is not None
    }
    late = [
        one for one in examined.normalizers
        if one.moves and one.finite and not one.initial and examined.is_late(one.index)
    ]
    if not late:
        return
    cost, note, clear = cost_of_averages(examined, late)
    if not clear:
        return
    late.sort(key=lambda one: -lags[one.index][0])
    shift, factor = lags[late[0].index]
    whose = "training" if examined.has_train else "these"
    window = late[0].window
    reach = f" (they reach back over {window:.0f} steps)" if window else ""
    yield Finding(
        f"The moving averages of {named([one.path for one in late], len(examined.normalizers))} "
        f"are not the statistics of {whose} examples: in {late[0].path} the mean is off by "
        f"{shift:.2g} standard deviations and the variance by a factor of {factor:.2g}{reach}.",
        exact_statistics(examined), tuple(one.path for one in late),
        {
            "shift": {one.path: lags[one.index][0] for one in late},
            "factor": {one.path: lags[one.index][1] for one in late},
            "outputs_changed": examined.outputs_changed([one.index for one in late]),
            "compared_with": "training examples" if examined.has_train else "the given examples, "
            "which may differ from the training examples: train=… tells these apart",
        },
        cost, note, "" if cost else RISK,
    )


@FINDINGS.register(
    "not_finite", title="statistics or weights are not finite", severity="wrong results", needs=(),
)
def not_finite(examined: Examination) -> Iterator[Finding]:
    """NaN or inf in statistics, gamma, beta or data; a variance below 0 or far too large."""
    yield from _data_not_finite(examined)
    bad: dict[str, str] = {}
    weights_too = False
    for one in examined.normalizers:
        lost = [
            f"{name}: {int((~np.isfinite(value)).sum())} of {value.size} channels not finite"
            for name, value in (("gamma", one.gamma), ("beta", one.beta), ("mean", one.mean),
                                ("variance", one.variance))
            if value is not None and not np.isfinite(value).all()
        ]
        weights_too = weights_too or any(
            value is not None and not np.isfinite(value).all() for value in (one.gamma, one.beta)
        )
        if (one.variance < 0).any():
            lost.append(f"variance: {one.variance[one.variance < 0].min():g}")
        if (one.variance > EXPLODED).any():
            lost.append(f"variance: up to {np.nanmax(one.variance):.2g}")
        if lost:
            bad[one.path] = "; ".join(lost)
    if not bad:
        return
    first = next(iter(bad))
    about = [one for one in examined.normalizers if one.path in bad]
    cost, note, _ = cost_of_averages(examined, about)
    if weights_too:
        cost, note = None, "not measured: gamma or beta are lost, too; go back to an earlier file"
    yield Finding(
        f"{named(list(bad), len(examined.normalizers))} have statistics or weights that are no "
        f"usable numbers: {first} has {bad[first]}.",
        STOP_AT_NAN if weights_too else exact_statistics(examined), tuple(bad), {"where": bad},
        cost, note,
    )


def _data_not_finite(examined: Examination) -> Iterator[Finding]:
    """NaN or inf in the examples, which a single training batch puts into the statistics."""
    if examined.data is None:
        return
    bad = examined.data.not_finite
    if bad:
        yield Finding(
            f"{bad} of {examined.data.read} examples have NaN or inf in them: one such training "
            "batch makes Keras's moving statistics NaN for good.",
            _finite_data(examined.batches),
            (), {"examples": bad}, None, "every output of such an example is NaN",
        )


def _finite_data(data: Batches) -> str:
    """The remedy for data with NaN or inf, for the form that they have."""
    keep = "import numpy as np; keep = np.isfinite({0}).reshape(len({0}), -1).all(1); data = {1}"
    return {
        "array": keep.format("data", "data[keep]"),
        "tuple": keep.format("data[0]", "tuple(part[keep] for part in data)"),
        "dataset": "import tensorflow as tf; data = data.unbatch().filter("
        f"lambda x, *_: tf.reduce_all(tf.math.is_finite(x))).batch({data.size})",
    }.get(data.form, "# where data are made: leave out the examples with NaN or inf")


def layers_in(examined: Examination, chosen: Sequence[Normalizer]) -> str:
    """Code that goes over some layers of `model`: the end of a list comprehension over `one`."""
    every = statistics.batch_normalizers(examined.model)
    ids, names = {id(one.layer) for one in chosen}, [one.layer.name for one in chosen]
    line = "for one in bn_keras.statistics.batch_normalizers(model)"
    if all(id(layer) in ids for layer in every):
        return line
    if all(id(layer) in ids for layer in every if layer.name in names):
        return f"{line} if one.name in {names}"
    places = [number for number, layer in enumerate(every) if id(layer) in ids]
    return (
        "for number, one in enumerate(bn_keras.statistics.batch_normalizers(model)) "
        f"if number in {places}"
    )


def exact_statistics(examined: Examination, of_data: bool = False) -> str:
    """The remedy: exact statistics, of the training examples where they are known.

    Args:
        examined: the model.
        of_data: of the data instead, as for data of another domain.
    """
    line = RECALIBRATE if len(examined.normalizers) < MANY else IN_ONE_PASS
    return line.format("train" if examined.has_train and not of_data else "data")


def initial_ones(examined: Examination) -> list[Normalizer]:
    """The layers with initial statistics that the model uses.

    A frozen layer may have had them from the start, on purpose; if its gamma or beta are learned,
    they are lost ones.
    """
    return [
        one for one in examined.normalizers
        if one.initial and examined.mode(one.index) != NOT_CALLED
        and not (one.moves and examined.mode(one.index) == BY_AVERAGES)  # see never_updated
        and (one.moves or (not one.trainable and one.learned))
    ]


def cost_of_averages(
    examined: Examination, about: Sequence[Normalizer]
) -> tuple[Optional[Cost], str, bool]:
    """What the averages of some layers cost in place of exact statistics.

    All other layers have exact statistics, so that what they cost is not charged to these.

    Returns:
        `(cost, note, clear)`: the cost in accuracy, or else in the loss, or None; why there is
        none; and whether the outputs change by more than noise.
    """
    chosen = {one.index for one in about}
    others = {one.index for one in examined.normalizers if one.moves} - chosen
    whose = " with exact statistics in all other layers" if others else ""
    layers = [one.index for one in examined.normalizers if one.index not in others]
    try:
        far = examined.outputs_changed(layers)
    except CannotLook as error:
        return None, f"not measured: {error}", True
    changed = far > OUTPUTS_CHANGED
    try:
        averaged, exact = examined.scored(AVERAGED, layers), examined.scored(EXACT)
    except CannotLook as error:
        return None, f"the outputs change by {far:.0%}; no loss measured: {error}", changed
    term = difference(averaged, exact)
    costs = not math.isfinite(averaged.loss) or (
        term.value > LOSS_CHANGED * abs(exact.loss) and (term.is_clear or term.low is None)
    )
    one, other = averaged.accuracy, exact.accuracy
    if one is not None and other is not None and one < other:
        # As if of different examples, which overstates the error: these are the same ones.
        spread = math.sqrt((one * (1 - one) + other * (1 - other)) / averaged.sizes.sum())
        if costs or other - one > ERRORS * spread:
            return Cost(f"accuracy{whose}", one, other), "", True
    if not costs:
        return None, f"exact statistics lower the loss by {term} only", changed
    return Cost(f"loss{whose}", averaged.loss, exact.loss), "", True


def _right(one: Normalizer, examined: Examination) -> bool:
    """Whether the data show that a layer's statistics are right."""
    try:
        return one.moves and examined.is_late(one.index) is False
    except CannotLook:
        return False
