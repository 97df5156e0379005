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
from bn_keras.study import Row, Study, largest_workable_rate, net_of

LEARNED, STUCK, FINISHED = "learned", "stuck", "finished"
ACCURACY = "validation_accuracy"
WORKABLE = 0.9  # of the best median accuracy, for a learning rate to count as workable
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
class Best:
    """The best setting of one net in a sweep.

    Attributes:
        arm: the arm of that setting.
        settings: of the axes, setting to value.
        median: over seeds, of the validation metric that it was chosen by.
    """

    arm: str
    settings: Mapping[str, object]
    median: float


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
    """Every arm against the baseline in the study's compared metric, adjusted for their number.

    In a sweep every net against the baseline, each at its best setting.
    """
    metric, base = study.compared, study.baseline
    chosen = {best.arm: net for net, best in best_settings(study, rows).items()}
    values: dict[str, dict[int, Optional[float]]] = {}
    for row in rows:
        name = chosen.get(row.arm) if study.axes else row.arm
        if name is not None and (metric in row.metrics or row.status == DIVERGED):
            values.setdefault(name, {})[row.seed] = row.metrics.get(metric)
    if base not in values:
        return []
    runs = {
        (chosen.get(run.config.arm_name, run.config.arm_name), run.config.seed):
        (run.start, run.data) for run in results
    }
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


def best_settings(study: Study, rows: Sequence[Row]) -> dict[str, Best]:
    """Each net of a sweep at the setting whose median over seeds is best in validation.

    Of equal ones the first. What is chosen on validation is to be reported on test.
    """
    if not study.axes:
        return {}
    metric = describe(study.compared.replace("test_", "validation_"))
    sign = -1 if metric.worse == "high" else 1
    found: dict[str, Best] = {}
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == arm]
        values = [row.metrics.get(metric.name) for row in mine]
        median = float(np.median([metric.worst if v is None else v for v in values]))
        net = net_of(arm)
        if net not in found or sign * median > sign * found[net].median:
            found[net] = Best(arm, mine[0].settings, median)
    return found


def workable_rates(study: Study, rows: Sequence[Row]) -> dict[str, list[Optional[float]]]:
    """Net to its largest workable learning rate in each seed, None where none is.

    For sweeps over the learning rate alone, and accuracies. A rate is workable if it ends with at
    least WORKABLE of the best median that any net reaches at any rate, and has learned; as in
    `largest_workable_rate`, none below it may fail but for those that are too low. Where nothing
    has learned there is nothing to tell.
    """
    if list(study.axes) != ["learning_rate"] or "accuracy" not in study.compared:
        return {}
    if not any(outcome(row) == LEARNED for row in rows):
        return {}
    best = max((best.median for best in best_settings(study, rows).values()), default=-math.inf)
    metric = study.compared.replace("test_", "validation_")
    found: dict[str, dict[int, dict[float, Optional[float]]]] = {}
    for row in rows:
        by_rate = found.setdefault(net_of(row.arm), {}).setdefault(row.seed, {})
        learned = outcome(row) == LEARNED
        by_rate[row.settings["learning_rate"]] = row.metrics.get(metric) if learned else None
    complete = set(study.axes["learning_rate"])
    return {
        net: [largest_workable_rate(by_rate, WORKABLE * best) for by_rate in by_seed.values()
              if complete <= set(by_rate)]
        for net, by_seed in found.items()
    }


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
