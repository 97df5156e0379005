"""Findings on settings: statistics in half precision, and numbers of another library."""

import math
from typing import Iterator

import keras
import numpy as np

from bn_keras.diagnostics.examination import Examination, Normalizer, relative_change
from bn_keras.diagnostics.finding import CannotLook, Finding, named
from bn_keras.diagnostics.findings.inputs import CONVERT
from bn_keras.diagnostics.findings.statistics import (
    OUTPUTS_CHANGED,
    cost_of_averages,
    layers_in,
)
from bn_keras.registry import FINDINGS

LEAST = 0.5  # momentum; the averages reach back over 2 steps. Nobody wants fewer
DEFAULT = 0.99  # Keras's momentum
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
    stalls = None
    told = "small updates are rounded away"
    if one.window is not None and math.isfinite(one.window):
        stalls = DIGITS[dtype] / 2 * one.window
        told = (
            f"at a momentum of {one.momentum} their updates are rounded away once they are within "
            f"{stalls:.0%} of their aim"
        )
    most = ", and float16 ends at 65504" if dtype == "float16" else ""
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} keep their statistics in {dtype}: "
        f"{told}{most}. A policy such as mixed_float16 keeps them in float32.",
        CONVERT,
        tuple(found), {"dtype": {path: dtype for path, (_, dtype) in found.items()},
                       "updates stall within": stalls},
        *cost_of_averages(examined, [one for one, _ in found.values()])[:2],
    )


# Distance of two neighbouring numbers, relative to them.
DIGITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@FINDINGS.register(
    "foreign_momentum", title="momentum by another library's convention", severity="risk",
    needs=(),
)
def foreign_momentum(examined: Examination) -> Iterator[Finding]:
    """A momentum below .5: PyTorch's .1 is the weight of the new batch, and Keras's .9."""
    about = [
        one for one in examined.normalizers
        if one.moves and one.momentum is not None and one.momentum < LEAST
    ]
    if not about:
        return
    found = {one.path: one.momentum for one in about}
    momentum = about[0].momentum or 0.0
    lines = []
    # At a momentum of 0 nothing is averaged; one minus it would never move.
    for right, chosen in (
        ("1 - one.momentum", [one for one in about if one.momentum]),
        (str(DEFAULT), [one for one in about if not one.momentum]),
    ):
        if chosen:
            lines.append(f"[setattr(one, 'momentum', {right}) {layers_in(examined, chosen)}]")
    library = f" PyTorch's {momentum:g} is {1 - momentum:g} in Keras." if momentum else ""
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} have a momentum of {momentum:g}: the "
        f"moving averages reach back over {1 / (1 - momentum):.2g} steps, so that inference hangs "
        f"on the last batches.{library}",
        f"import bn_keras; {'; '.join(lines)}  # and compile again, and recalibrate",
        tuple(found), {"momentum": found}, *cost_of_averages(examined, about)[:2],
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
    lines = [
        f"[setattr(one, 'epsilon', {epsilon:g}) {layers_in(examined, chosen)}]"
        for epsilon in sorted({other for _, _, other in found})
        for chosen in [[one for one, _, other in found if other == epsilon]]
    ]
    one, library, other = found[0]
    yield Finding(
        f"Epsilon decides in {named([one.path for one, _, _ in found], len(examined.normalizers))}"
        f": {one.path} has variances around {np.median(one.variance):.1e} and an epsilon of "
        f"{one.epsilon:g}. With {library}'s {other:g} the outputs of the model change by "
        f"{changed:.0%}; right is the one that it was trained with.",
        f"import bn_keras; {'; '.join(lines)}  # if it was trained with {library}'s",
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
    x = examined.batches.first.x
    before = examined.passes.outputs(x)
    layers = [(examined.passes.layers[one.index], one.epsilon, other) for one, _, other in found]
    try:
        for layer, _, other in layers:
            layer.epsilon = other
        after = examined.passes.outputs(x)
    finally:
        for layer, own, _ in layers:
            layer.epsilon = own
    changed = relative_change(after, before)
    if not math.isfinite(changed):
        raise CannotLook("the outputs are not finite")
    return changed
