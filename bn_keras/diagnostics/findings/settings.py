"""Findings on settings: statistics in half precision, and numbers of another library."""

import math
from typing import Any, Iterator

import keras
import numpy as np

from bn_keras.diagnostics.examination import Examination, Normalizer
from bn_keras.diagnostics.finding import CannotLook, Finding, named
from bn_keras.diagnostics.findings.statistics import OUTPUTS_CHANGED, cost_of_averages
from bn_keras.diagnostics.passes import Array, as_array
from bn_keras.registry import FINDINGS

LEAST = 0.5  # momentum; the averages reach back over 2 steps. Nobody wants fewer
KERAS, PYTORCH = ("Keras", 1e-3), ("PyTorch", 1e-5)  # defaults of epsilon
BETWEEN = 1e-4  # an epsilon above it is of Keras's kind: ResNet50 has 1.001e-5


@FINDINGS.register(
    "half_precision_statistics", title="moving statistics in half precision", severity="risk",
    needs=(),
)
def half_precision_statistics(examined: Examination) -> Iterator[Finding]:
    """Moving statistics in float16 or bfloat16: an update smaller than half a digit is lost."""
    found = {}
    for one in examined.normalizers:
        dtype = keras.backend.standardize_dtype(one.layer.moving_variance.dtype)
        if dtype in DIGITS:
            found[one.path] = one, dtype
    if not found:
        return
    path = next(iter(found))
    one, dtype = found[path]
    # An update of distance / window is rounded away below half the distance of two numbers.
    stalls = math.nan if one.window is None else DIGITS[dtype] / 2 * one.window
    most = ", and float16 ends at 65504" if dtype == "float16" else ""
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} keep their statistics in {dtype}: at a "
        f"momentum of {one.momentum} their updates are rounded away once they are within "
        f"{stalls:.0%} of their aim{most}. A policy such as mixed_float16 keeps them in float32.",
        "import bn_keras; model, _ = bn_keras.convert(model)",
        tuple(found), {"dtype": {path: dtype for path, (_, dtype) in found.items()},
                       "updates stall within": stalls},
        *cost_of_averages(examined)[:2],
    )


# Distance of two neighbouring numbers, relative to them.
DIGITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@FINDINGS.register(
    "foreign_momentum", title="momentum by another library's convention", severity="risk",
    needs=(),
)
def foreign_momentum(examined: Examination) -> Iterator[Finding]:
    """A momentum below .5: PyTorch's .1 is the weight of the new batch, and Keras's .9."""
    found = {
        one.path: one.momentum for one in examined.normalizers
        if one.moves and one.momentum is not None and one.momentum < LEAST
    }
    if not found:
        return
    momentum = next(iter(found.values()))
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} have a momentum of {momentum:g}: the "
        f"moving averages reach back over {1 / (1 - momentum):.2g} steps, so that inference hangs "
        f"on the last batches. PyTorch's {momentum:g} is {1 - momentum:g} in Keras.",
        "from bn_keras.surgery.statistics import batch_normalizers; "
        "[setattr(one, 'momentum', 1 - one.momentum) for one in batch_normalizers(model) "
        "if one.momentum < 0.5]  # and compile again, and recalibrate",
        tuple(found), {"momentum": found}, *cost_of_averages(examined)[:2],
    )


@FINDINGS.register(
    "foreign_epsilon", title="epsilon decides, as the variances are small", severity="note",
    needs=("data",),
)
def foreign_epsilon(examined: Examination) -> Iterator[Finding]:
    """With the other library's epsilon the model's outputs would be others.

    Keras has 1e-3, PyTorch 1e-5. It does not matter where variances are far above both.
    """
    found: list[tuple[Normalizer, str, float]] = []
    for one in examined.normalizers:
        library, other = PYTORCH if one.epsilon > BETWEEN else KERAS
        if one.finite:
            ratio = np.sqrt((one.variance + one.epsilon) / (one.variance + other))
            if math.sqrt(np.mean((ratio - 1) ** 2)) > OUTPUTS_CHANGED:
                found.append((one, library, other))
    if not found:
        return
    changed = _outputs_changed(examined, found)
    if changed < OUTPUTS_CHANGED:
        return
    one, library, other = found[0]
    yield Finding(
        f"Epsilon decides in {named([one.path for one, _, _ in found], len(examined.normalizers))}"
        f": {one.path} has variances around {np.median(one.variance):.1e} and an epsilon of "
        f"{one.epsilon:g}. With {library}'s {other:g} the outputs of the model change by "
        f"{changed:.0%}; right is the one that it was trained with.",
        "from bn_keras.surgery.statistics import batch_normalizers; "
        f"[setattr(one, 'epsilon', {other:g}) for one in batch_normalizers(model)]"
        f"  # if it was trained with {library}'s",
        tuple(one.path for one, _, _ in found),
        {"epsilon": {one.path: one.epsilon for one, _, _ in found},
         "median variance": {one.path: float(np.median(one.variance)) for one, _, _ in found},
         "outputs_changed": changed},
        cost_note="not measured: which epsilon it was trained with is not known",
    )


def _outputs_changed(
    examined: Examination, found: list[tuple[Normalizer, str, float]]
) -> float:
    """The root mean square change of the outputs with other epsilons, relative to the outputs."""
    x = examined.batches.batches[0].x
    before = _flat(examined.passes.outputs(x))
    layers = [(examined.passes.layers[one.index], one.epsilon, other) for one, _, other in found]
    try:
        for layer, _, other in layers:
            layer.epsilon = other
        after = _flat(examined.passes.outputs(x))
    finally:
        for layer, own, _ in layers:
            layer.epsilon = own
    if not np.isfinite(before).all():
        raise CannotLook("the outputs are not finite")
    size = max(float(np.mean(before**2)), 1e-24)
    return math.sqrt(float(np.mean((after - before) ** 2)) / size)


def _flat(outputs: Any) -> Array:
    return np.concatenate([as_array(y).ravel() for y in keras.tree.flatten(outputs)])
