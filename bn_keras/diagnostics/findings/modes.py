"""Findings on the two modes: a gap between them, and inference that depends on the batch."""

import math
from typing import Iterator

import keras
import numpy as np

from bn_keras.diagnostics.evaluations import OWN, rows
from bn_keras.diagnostics.examination import Examination
from bn_keras.diagnostics.finding import RISK, CannotLook, Cost, Finding, named
from bn_keras.diagnostics.findings.statistics import exact_statistics, layers_in
from bn_keras.diagnostics.gap import MEANING, difference
from bn_keras.diagnostics.passes import AVERAGED, BATCH, EXACT, as_array
from bn_keras.registry import FINDINGS
from bn_keras.surgery.examples import length

LOSS_GAP = 0.1  # of the training mode's loss
LEAST_GAP = 0.02  # of a loss near 0
ALONE = 2  # examples that are fed one by one
# Kernels add up in another order for another batch size: so much of the outputs' size may change.
ROUNDING = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 0.1}
FREEZE = "import bn_keras; model, _ = bn_keras.freeze(model, 'statistics')"


@FINDINGS.register(
    "train_inference_gap", title="inference mode does worse than training mode",
    severity="costs accuracy", needs=("data", "labels"),
)
def train_inference_gap(examined: Examination) -> Iterator[Finding]:
    """On the same examples, the loss with moving averages is clearly above that with the batch's.

    Overfitting does not count: both modes are evaluated on the same examples.
    """
    averaged, batch = examined.scored(AVERAGED), examined.scored(BATCH)
    found, cause = difference(averaged, batch), examined.gap
    if not math.isfinite(batch.loss):
        raise CannotLook(f"the loss is {batch.loss} in training mode: there is nothing to compare")
    least = max(LOSS_GAP * abs(batch.loss), LEAST_GAP)
    lost = not math.isfinite(averaged.loss)
    if not lost and not (found.value > least and (found.is_clear or found.low is None)):
        return
    statistics = {name: one for name, one in cause.terms.items() if name not in ("total", "data")}
    worst = max(statistics, key=lambda name: statistics[name].value)
    if lost:
        worst = "lag"
    # What the remedy gives; a freeze keeps the averages, and training has to go on with it.
    mended = None if worst == "noise" else examined.scored(OWN if worst == "shift" else EXACT)
    cost = None
    if mended is not None:
        one, other = averaged.accuracy, mended.accuracy
        if one is not None and other is not None and one < other:
            cost = Cost("accuracy", one, other)
        elif lost or mended.loss < averaged.loss:
            cost = Cost("loss", averaged.loss, mended.loss)
    note = "" if cost else "not measured: the remedy shows once training goes on"
    yield Finding(
        f"On the same examples and with the same weights, the loss is {averaged.loss:.3g} in "
        f"inference mode and {batch.loss:.3g} in training mode, by {found}; the largest part is "
        f"{worst} ({MEANING[worst]}).",
        FREEZE if worst == "noise" else exact_statistics(examined, worst == "shift"), (),
        {"cause": worst, "difference": found.value, **{
            name: one.value for name, one in cause.terms.items()
        }},
        cost, note,
    )


@FINDINGS.register(
    "batch_dependent", title="a prediction depends on what else is in the batch",
    severity="wrong results", needs=("data",),
)
def batch_dependent(examined: Examination) -> Iterator[Finding]:
    """In inference mode, an example alone gets other outputs than in company.

    Or it does so when the model is called without a mode, which a graph of layers allows:
    `layer(x, training=True)` counts in `model(x)`, while `predict` overrides it.
    """
    baked = _in_batch_mode(examined, predict=True)
    x = examined.batches.first.x
    count = length(x)
    if count < 2:
        raise CannotLook("the batches of the data have one example each; expected more")
    if not examined.normalizers:
        return
    together, again = (_rows_of(examined, x) for _ in range(2))
    if not np.isfinite(together).all():
        raise CannotLook("the outputs are not finite")
    size = max(float(np.sqrt(np.mean(together**2))), 1e-12)
    allowed = max(
        ROUNDING.get(layer.compute_dtype, 0.0) for layer in examined.model._flatten_layers()
    )
    unsteady = float(np.abs(together - again).max(initial=0)) / size
    if unsteady > allowed:
        raise CannotLook(
            f"two calls on the same batch differ by {unsteady:.2g} of the outputs: something "
            "random is on in inference mode"
        )
    alone = np.concatenate([
        _rows_of(examined, rows(x, number, number + 1)) for number in range(min(ALONE, count))
    ])
    if alone.shape[1:] != together.shape[1:]:
        raise CannotLook("the first axis of the outputs is not that of the examples")
    far = float(np.abs(alone - together[:len(alone)]).max(initial=0)) / size
    total = len(examined.normalizers)
    where = named(baked, total) + " use the batch's statistics in inference mode" if baked else (
        "no batch normalization is the reason: another layer mixes the examples of a batch"
    )
    if far > allowed or not math.isfinite(far):
        yield Finding(
            f"An example alone gets other outputs than among {count}: they differ by {far:.2g} of "
            f"the outputs' size; {where}.",
            _remedy(examined, baked), tuple(baked),
            {"relative_difference": far, "allowed": allowed, "batch_mode_in_inference": baked},
            None, f"the outputs change by {far:.0%}",
        )
        return
    called = _in_batch_mode(examined, predict=False)
    if called:
        yield Finding(
            f"model(x) without `training` normalizes {named(called, total)} with the batch's "
            "statistics: the graph says training=True there. `predict` and `evaluate` override it.",
            _remedy(examined, called), tuple(called), {"batch_mode_in_model(x)": called}, None,
            "nothing is lost in predict", RISK,
        )


def _in_batch_mode(examined: Examination, predict: bool) -> list[str]:
    """Paths of layers that use the batch's statistics in `predict`, or in `model(x)`."""
    calls = examined.in_inference if predict else examined.in_a_call
    return [
        one.path for one in examined.normalizers
        if any(call.batch_mode for call in calls[one.index])
    ]


def _remedy(examined: Examination, paths: list[str]) -> str:
    """Exact statistics, for those that were never used are seldom right; then inference mode.

    Args:
        examined: the model.
        paths: of the layers that are the reason; none if another layer is.
    """
    if not paths:
        return "# in the layer that mixes examples, such as one that takes a mean over axis 0"
    chosen = [one for one in examined.normalizers if one.path in paths]
    return (
        f"{exact_statistics(examined)}; "
        f"[setattr(one, 'trainable', False) {layers_in(examined, chosen)}]"
    )


def _rows_of(examined: Examination, x: object) -> np.ndarray:
    """The outputs of a batch in inference mode, (examples, values)."""
    outputs = keras.tree.flatten(examined.passes.outputs(x))
    return np.concatenate([as_array(y).reshape(len(y), -1) for y in outputs], axis=1)
