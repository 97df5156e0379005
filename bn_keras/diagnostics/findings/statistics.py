"""Findings on moving statistics: never updated, late, not finite."""

import math
from typing import Iterator, Optional

from bn_keras.diagnostics.examination import (
    LAG_DEVIATIONS,
    LAG_FACTOR,
    Examination,
    Normalizer,
)
from bn_keras.diagnostics.finding import (
    RISK,
    WRONG_RESULTS,
    CannotLook,
    Cost,
    Finding,
    named,
)
from bn_keras.diagnostics.passes import AVERAGED, EXACT
from bn_keras.registry import FINDINGS

RECALIBRATE = (
    "from bn_keras.surgery.recalibrate import recalibrate; model, _ = recalibrate(model, {})"
)
OUTPUTS_CHANGED = 0.05  # of their root mean square: less is lost in the noise of training
LOSS_CHANGED = 0.02  # of the loss
EXPLODED = 1e12  # a variance above it: float32 squares overflow from 1e38 on, half a batch earlier


@FINDINGS.register(
    "statistics_initial", title="statistics were never updated", severity="wrong results", needs=(),
)
def statistics_initial(examined: Examination) -> Iterator[Finding]:
    """Moving means and variances have their initial values, such as 0 and 1.

    Of a model that was never trained nothing else can be expected, which is then a risk. Silent
    where the data show that the initial values happen to be right.
    """
    initial = [one for one in examined.normalizers if one.initial]
    try:
        initial = [one for one in initial if is_late(*examined.lags[one.index])]
    except CannotLook:
        pass
    if not initial:
        return
    trained = examined.weights_moved()
    cost, note, _ = cost_of_averages(examined)
    yield Finding(
        f"{named([one.path for one in initial], len(examined.normalizers))} still have their "
        f"initial statistics (mean {initial[0].mean.mean():g}, variance "
        f"{initial[0].variance.mean():g}), " + (
            f"though the model was trained: {trained}." if trained
            else "and nothing shows that the model was ever trained."
        ),
        remedy(examined), tuple(one.path for one in initial),
        {"layers": len(initial), "of": len(examined.normalizers), "trained": trained},
        cost, note, WRONG_RESULTS if trained or cost else RISK,
    )


@FINDINGS.register(
    "averages_lag", title="moving averages lag behind the weights", severity="costs accuracy",
    needs=("data",),
)
def averages_lag(examined: Examination) -> Iterator[Finding]:
    """Moving averages are not the exact statistics of the training examples, and that costs."""
    lags = examined.lags
    late = [
        one for one in examined.normalizers
        if one.moves and one.finite and not one.initial and is_late(*lags[one.index])
    ]
    if not late:
        return
    cost, note, clear = cost_of_averages(examined)
    if not clear:
        return
    late.sort(key=lambda one: -lags[one.index][0])
    shift, factor = lags[late[0].index]
    whose = "training" if examined.has_train else "these"
    yield Finding(
        f"The moving averages of {named([one.path for one in late], len(examined.normalizers))} "
        f"are not the statistics of {whose} examples: in {late[0].path} the mean is off by "
        f"{shift:.2g} standard deviations and the variance by a factor of {factor:.2g}"
        f"{_reason(late[0])}.",
        remedy(examined), tuple(one.path for one in late),
        {
            "shift": {one.path: lags[one.index][0] for one in late},
            "factor": {one.path: lags[one.index][1] for one in late},
            "outputs_changed": examined.outputs_changed,
            "compared_with": "training examples" if examined.has_train else "the given examples, "
            "which may differ from the training examples: train=… tells these apart",
        },
        cost, note, "" if cost else RISK,
    )


def remedy(examined: Examination) -> str:
    """Exact statistics, of the training examples where they are known."""
    return RECALIBRATE.format("train" if examined.has_train else "data")


def is_late(shift: float, factor: float) -> bool:
    """Whether averages are further from exact statistics than training leaves them."""
    return not (shift <= LAG_DEVIATIONS and factor <= LAG_FACTOR)


def cost_of_averages(examined: Examination) -> tuple[Optional[Cost], str, bool]:
    """What averages cost in place of exact statistics.

    Returns:
        `(cost, note, clear)`: the cost in accuracy, or else in the loss, or None; why there is
        none; and whether the outputs change by more than noise.
    """
    try:
        changed = examined.outputs_changed > OUTPUTS_CHANGED
    except CannotLook as error:
        return None, f"not measured: {error}", True
    try:
        averaged, exact = examined.scored(AVERAGED), examined.scored(EXACT)
        term = examined.gap.terms["lag"]
    except CannotLook as error:
        return None, (
            f"the outputs change by {examined.outputs_changed:.0%}; no loss measured: {error}"
        ), changed
    costs = not math.isfinite(averaged.loss) or (
        term.value > LOSS_CHANGED * abs(exact.loss) and (term.is_clear or term.low is None)
    )
    if not costs:
        return None, f"loss changes by {term} only", changed
    accuracies = averaged.accuracy, exact.accuracy
    if None not in accuracies and accuracies[0] < accuracies[1]:  # type: ignore[operator]
        return Cost("accuracy", *accuracies), "", True  # type: ignore[arg-type]
    return Cost("loss", averaged.loss, exact.loss), "", True


def _reason(one: Normalizer) -> str:
    return "" if one.window is None else f" (they reach back over {one.window:.0f} steps)"
