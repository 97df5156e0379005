"""Findings on several uses of a normalizer: over several inputs, on several replicas."""

import itertools
from typing import Iterator, Sequence

import numpy as np

from bn_keras.diagnostics.evaluations import OWN
from bn_keras.diagnostics.examination import Examination
from bn_keras.diagnostics.finding import COSTS_ACCURACY, RISK, CannotLook, Cost, Finding, named
from bn_keras.diagnostics.findings.statistics import LOSS_CHANGED
from bn_keras.diagnostics.gap import difference
from bn_keras.diagnostics.passes import BATCH, Moments
from bn_keras.registry import FINDINGS

FAR_DEVIATIONS, FAR_FACTOR = 0.5, 2.0  # from which on two inputs are two domains
FEWEST_VALUES = 32  # per channel, replica and step


@FINDINGS.register(
    "shared_over_domains", title="one normalizer for inputs of different statistics",
    severity="risk", needs=("data",),
)
def shared_over_domains(examined: Examination) -> Iterator[Finding]:
    """A layer is called several times in a pass, on inputs whose means or variances differ.

    In training each call is normalized with its own batch's statistics, in inference with one
    average for all of them. Calls for single time steps are those of `inside_wrapper`.
    """
    found = {}
    for one, seen, made in zip(
        examined.normalizers, examined.observed, examined.in_fit, strict=True
    ):
        if seen is None or any(call.giver for call in made) or len(seen.calls) < 2:
            continue
        if any(call.batch_mode for call in made):
            shift, factor = _apart(seen.calls, one.epsilon)
            if shift > FAR_DEVIATIONS or factor > FAR_FACTOR:
                found[one.path] = shift, factor, len(seen.calls)
    if not found:
        return
    paths = sorted(found, key=lambda path: -found[path][0])
    shift, factor, count = found[paths[0]]
    cost, note = _cost(examined)
    yield Finding(
        f"{paths[0]} is called {count} times in a pass, on inputs whose means are {shift:.2g} "
        f"standard deviations apart and whose variances differ by a factor of {factor:.2g}: "
        "training normalizes each by itself, inference all with one average"
        + (f"; the same holds for {named(paths, len(examined.normalizers))}." if len(paths) > 1
           else "."),
        "keras.layers.BatchNormalization()  # one for each input, in place of " + paths[0],
        tuple(paths), {"means apart": {path: found[path][0] for path in paths},
                       "factor of variances": {path: found[path][1] for path in paths},
                       "calls": {path: found[path][2] for path in paths}},
        cost, note, COSTS_ACCURACY if cost else RISK,
    )


@FINDINGS.register(
    "unsynchronized", title="few values on each of several replicas", severity="risk", needs=(),
)
def unsynchronized(examined: Examination) -> Iterator[Finding]:
    """Under a distribution strategy each replica normalizes with its own part of the batch."""
    strategy = getattr(examined.model, "_distribute_strategy", None)
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas < 2:
        return
    found = {}
    for one, made in zip(examined.normalizers, examined.in_fit, strict=True):
        if one.moves and made and not getattr(one.layer, "synchronized", False):
            call = min(made, key=lambda call: call.values)
            values = call.values / call.shape[0] * (examined.batch_size / replicas)
            if values < FEWEST_VALUES and call.batch_mode:
                found[one.path] = values
    if not found:
        return
    path = min(found, key=lambda path: found[path])
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} are not synchronized over {replicas} "
        f"replicas: a batch of {examined.batch_size} leaves {path} with {found[path]:.0f} values "
        "per channel on each. The moving statistics of Keras's layer are kept by each replica, "
        "and the first one's are saved.",
        "keras.layers.BatchNormalization(synchronized=True)  # in place of " + path,
        tuple(found), {"replicas": replicas, "values": found, "batch": examined.batch_size},
        cost_note="not measured: it takes training on all replicas",
    )


def _apart(calls: Sequence[Moments], epsilon: float) -> tuple[float, float]:
    """How far the moments of a layer's calls are apart, over all pairs of calls.

    Returns:
        `(means, variances)`: root mean square over channels, in standard deviations within a call;
        and e to the root mean square of the log of the variances' factor.
    """
    shifts, factors = [], []
    for one, other in itertools.combinations(calls, 2):
        within = (one.variance + other.variance) / 2 + epsilon
        shifts.append(np.sqrt(np.mean((one.mean - other.mean) ** 2 / within)))
        ratio = np.log((one.variance + epsilon) / (other.variance + epsilon))
        factors.append(np.exp(np.sqrt(np.mean(ratio**2))))
    return float(max(shifts)), float(max(factors))


def _cost(examined: Examination) -> tuple[Cost | None, str]:
    """What one average for all calls costs: the loss against that with each batch's statistics."""
    try:
        exact, batch = examined.scored(OWN), examined.scored(BATCH)
    except CannotLook as error:
        return None, f"not measured: {error}"
    term = difference(exact, batch)
    if term.value > LOSS_CHANGED * abs(batch.loss) and term.is_clear:
        return Cost("loss", exact.loss, batch.loss), ""
    return None, f"loss changes by {term} only with statistics of each batch and call"
