"""Findings over rows: how runs ended, arms in numbers, arms against a baseline."""

import dataclasses
import functools
import math
import statistics
from typing import Mapping, Optional, Sequence

import numpy as np

from bn_keras import intervals
from bn_keras.metrics import describe
from bn_keras.results import DIVERGED, RunResult
from bn_keras.study import Row, Study

LEARNED, STUCK, FINISHED = "learned", "stuck", "finished"
ACCURACY = "validation_accuracy"
INEXACT = 0.01  # values without a known sampling error tie if they differ by less than this share


@dataclasses.dataclass(frozen=True)
class Arm:
    """All seeds of one arm, or of one net of a ladder.

    Attributes:
        name: the arm's.
        normalizer: its runs'.
        seeds: how many rows.
        learned, stuck: how many did; None where no accuracy was measured to tell. A run is stuck if
            it does no better than naming the commonest class; see `intervals.is_stuck`.
        diverged: how many did.
        learned_interval: exact 95 % interval of the share of all seeds that learn, or None.
        seconds: median of a run, or None.
        metrics: metric to `{"median", "lowest", "highest", "known"}`: of all runs, those without a
            value being at the metric's worse end, and how many have a value.
    """

    name: str
    normalizer: str
    seeds: int
    learned: Optional[int]
    stuck: Optional[int]
    diverged: int
    learned_interval: Optional[intervals.Interval]
    seconds: Optional[float]
    metrics: Mapping[str, Mapping[str, Optional[float]]]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One arm against the baseline, seed by seed.

    Attributes:
        arm, baseline: their names.
        metric: what is compared.
        pairs: intervals.Pairs, as the arm sees them; None if no seed is finished in both.
        adjusted_p: the sign test's p value, adjusted for all comparisons of this report (Holm).
        alike: whether both runs of each pair started from the same weights.
        same_data: whether they were trained on the same examples.
    """

    arm: str
    baseline: str
    metric: str
    pairs: Optional[intervals.Pairs]
    adjusted_p: Optional[float]
    alike: bool
    same_data: bool


def outcome(row: Row) -> str:
    """How a run ended: learned, stuck or diverged; finished where no accuracy can tell."""
    if row.status == DIVERGED:
        return DIVERGED
    accuracy, images, commonest = (
        row.metrics.get(name) for name in (ACCURACY, "validation_images", "validation_commonest")
    )
    if accuracy is None or images is None or commonest is None:
        return FINISHED
    return STUCK if intervals.is_stuck(accuracy, int(images), commonest) else LEARNED


def summarize(name: str, rows: Sequence[Row], results: Sequence[RunResult]) -> Arm:
    """All seeds of one arm in numbers."""
    mine = [row for row in rows if row.arm == name]
    ends = [outcome(row) for row in mine]
    told = FINISHED not in ends and any(ACCURACY in row.metrics for row in mine)
    learned = ends.count(LEARNED)
    seconds = [result.seconds for result in results if result.config.arm_name == name]
    found: dict[str, dict[str, Optional[float]]] = {}
    for metric in dict.fromkeys(metric for row in mine for metric in row.metrics):
        values = [row.metrics[metric] for row in mine if metric in row.metrics]
        known = [value for value in values if value is not None]
        worst = describe(metric).worst
        counted = known if math.isnan(worst) else known + [worst] * (len(values) - len(known))
        found[metric] = {
            "median": float(np.median(counted)) if counted else None,
            "lowest": min(known, default=None), "highest": max(known, default=None),
            "known": len(known),
        }
    return Arm(
        name=name,
        normalizer=mine[0].normalizer,
        seeds=len(mine),
        learned=learned if told else None,
        stuck=ends.count(STUCK) if told else None,
        diverged=ends.count(DIVERGED),
        learned_interval=intervals.share_interval(learned, len(mine)) if told else None,
        seconds=statistics.median(seconds) if seconds else None,
        metrics=found,
    )


def compare(
    study: Study, rows: Sequence[Row], results: Sequence[RunResult]
) -> list[Compared]:
    """Every arm against the baseline in the study's compared metric, adjusted for their number."""
    metric, base = study.compared, study.baseline
    values: dict[str, dict[int, Optional[float]]] = {}
    for row in rows:
        if metric in row.metrics or row.status == DIVERGED:
            values.setdefault(row.arm, {})[row.seed] = row.metrics.get(metric)
    if base not in values:
        return []
    runs = {(run.config.arm_name, run.config.seed): (run.start, run.data) for run in results}
    worse = describe(metric).worse
    found = []
    others = [arm for arm in values if arm != base]
    for arm in others:
        mine = values[arm]
        common = sorted(set(mine) & set(values[base]))
        pairs = intervals.compare_pairs(
            mine, values[base], functools.partial(_tie, images=_images(metric, rows)),
            np.random.default_rng(0), "high" if worse == "high" else "low",
            comparisons=len(others),
        ) if common else None
        both = [(runs.get((arm, seed)), runs.get((base, seed))) for seed in common]
        alike, same_data = (
            all(one is None or other is None or one[part] == other[part] for one, other in both)
            for part in (0, 1)
        )
        found.append(Compared(arm, base, metric, pairs, None, alike, same_data))
    tested = [compared.pairs.p_value for compared in found
              if compared.pairs and compared.pairs.p_value is not None]
    # One comparison needs no adjustment, and its report no second's import.
    adjusted = iter(intervals.holm(tested) if len(tested) > 1 else tested)
    return [
        dataclasses.replace(compared, adjusted_p=next(adjusted))
        if compared.pairs and compared.pairs.p_value is not None else compared
        for compared in found
    ]


def _images(metric: str, rows: Sequence[Row]) -> Optional[int]:
    """How many images are behind an accuracy, or None."""
    name = {ACCURACY: "validation_images", "test_accuracy": "test_images"}.get(metric, "")
    found = [row.metrics[name] for row in rows if row.metrics.get(name)]
    return int(min(value for value in found if value is not None)) if found else None


def _tie(first: float, second: float, images: Optional[int]) -> float:
    """The smallest difference that counts: the evaluations' own sampling error, if it is known."""
    if images is None:
        return INEXACT * max(abs(first), abs(second))
    return intervals.tie_width(first, second, images)
