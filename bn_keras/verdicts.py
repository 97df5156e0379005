"""Does a claim hold, over the seeds that were run? No TensorFlow.

One rule for every claim, without a knob: it holds if what it describes happens in most seeds. Of
the seeds that were run, k of n show it. It holds if the exact one-sided 95 % lower bound on the
share of all seeds is above one half (5 of 5, 7 of 8, 9 of 10), it does not hold if the upper bound
is below one half (0 of 5, 1 of 8), and otherwise it is not decided. A claim that is true in half of
all seeds is said to hold in at most 5 % of all studies, whatever the number of seeds.

A diverged run lost its figures. In place of one stands the worst that the metric can be, but only
against the claim or against the arm that the claim's is compared with: a run that was not measured
never shows what a claim says of it.

The cause that a claim names is judged on control arms by the same rule. Where the effect holds and
its cause does not, the claim holds for another reason.
"""

import dataclasses
import math
from typing import AbstractSet, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from bn_keras import intervals
from bn_keras.metrics import describe
from bn_keras.report.numbers import chosen, spread
from bn_keras.results import DIVERGED
from bn_keras.study import Claim, Comparison, Row

HOLDS = "holds"
OTHER_REASON = "holds, but for another reason"
FAILS = "does not hold"
UNDECIDED = "not decided"

# (arm, metric) to the values by seed; None where a run has none.
Values = Mapping[Tuple[str, str], Mapping[int, Optional[float]]]
# Arm and seed of every run that diverged.
Diverged = AbstractSet[Tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """In how many seeds one half of a claim is seen: its effect, or its cause.

    Attributes:
        seen: seeds in which all comparisons pass.
        refuted: seeds in which at least one does not.
        seeds: seeds in which all comparisons could be made. In those that are neither seen nor
            refuted a comparison shows nothing, such as that of two runs that never got there.
        missing: arms that were not run, or `METRIC of ARM` where the arm was.
        figures: a line of text for each comparison.
    """

    seen: int
    refuted: int
    seeds: int
    missing: Tuple[str, ...]
    figures: Tuple[str, ...]

    @property
    def outcome(self) -> str:
        """HOLDS, FAILS or UNDECIDED; a seed that shows nothing speaks against either decision."""
        if self.seeds and intervals.lower_bound(self.seen, self.seeds) > 0.5:
            return HOLDS
        if self.seeds and intervals.lower_bound(self.refuted, self.seeds) > 0.5:
            return FAILS
        return UNDECIDED

    @property
    def more_seeds(self) -> Optional[int]:
        """How many more seeds at the same rate would decide; 0 if decided, None if none would."""
        most = max(self.seen, self.refuted)
        return intervals.seeds_to_decide(most, self.seeds) if 2 * most > self.seeds else None

    def told(self, half: str) -> str:
        """The evidence in words; `half` is the word for what it is on, effect or cause."""
        if not self.seeds:
            missing = f": {', '.join(self.missing)} missing" if self.missing else ""
            return f"not measured{missing}; the claim cannot be decided without it"
        text = f"seen in {self.seen} of {self.seeds} seed{'s' if self.seeds > 1 else ''}"
        neither = self.seeds - self.seen - self.refuted
        if neither:
            text += f", {neither} without a result"
        if self.outcome == UNDECIDED:
            more = self.more_seeds
            if more is None:
                text += f"; more seeds at the same rate would not decide the {half}"
            else:
                text += f"; {more} more at the same rate would decide the {half}"
        return text


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, and the evidence.

    Attributes:
        claim: the Claim.
        verdict: HOLDS, OTHER_REASON, FAILS or UNDECIDED.
        effect: the Evidence on the claimed effect.
        cause: the Evidence on the claimed cause; None where the claim names none, or where there is
            no effect to explain.
    """

    claim: Claim
    verdict: str
    effect: Evidence
    cause: Optional[Evidence]

    @property
    def reason(self) -> str:
        """Why the verdict is as it is: how often effect and cause are seen, what would decide."""
        if self.cause is None:
            return f"effect {self.effect.told('effect')}"
        return f"effect {self.effect.told('effect')}. Cause {self.cause.told('cause')}"

    @property
    def figures(self) -> Tuple[str, ...]:
        """A line of text for each comparison."""
        return self.effect.figures + (self.cause.figures if self.cause else ())


def judge(claim: Claim, rows: Iterable[Row]) -> Verdict:
    """The Verdict on a claim.

    Args:
        claim: Claim.
        rows: the Rows, as `study.rows` gives them.
    """
    values: Dict[Tuple[str, str], Dict[int, Optional[float]]] = {}
    arms, diverged = set(), set()
    for row in rows:
        arms.add(row.arm)
        if row.status == DIVERGED:
            diverged.add((row.arm, row.seed))
        for metric, value in row.metrics.items():
            values.setdefault((row.arm, metric), {})[row.seed] = value
    effect = _gather(claim.effect, values, arms, diverged)
    cause, verdict = None, effect.outcome
    if claim.cause and verdict != FAILS:
        cause = _gather(claim.cause, values, arms, diverged)
        if verdict == HOLDS:
            verdict = OTHER_REASON if cause.outcome == FAILS else cause.outcome
    return Verdict(claim, verdict, effect, cause)


def _gather(
    tests: Sequence[Comparison], values: Values, arms: AbstractSet[str], diverged: Diverged
) -> Evidence:
    results, figures = [], []
    missing: Dict[str, None] = {}
    for test in tests:
        for arm in (test.arm, test.than):
            if isinstance(arm, str) and (arm, test.metric) not in values:
                missing[f"{test.metric} of {arm}" if arm in arms else arm] = None
        found = _by_seed(test, values, diverged)
        results.append(found)
        passed = sum(bool(result) for result in found.values())
        figures.append(f"{_text(test, values)}: {passed} of {len(found)}")
    seeds = set.intersection(*(set(found) for found in results))
    by_seed = [[found[seed] for found in results] for seed in seeds]
    return Evidence(
        seen=sum(all(one) for one in by_seed),
        refuted=sum(False in one for one in by_seed),
        seeds=len(seeds),
        missing=tuple(missing),
        figures=tuple(figures),
    )


def _by_seed(
    test: Comparison, values: Values, diverged: Diverged
) -> Dict[int, Optional[bool]]:
    """Whether a comparison passes, by seed; None where it shows nothing."""
    mine = values.get((test.arm, test.metric), {})
    others: Mapping[int, Optional[float]] = (
        values.get((test.than, test.metric), {}) if isinstance(test.than, str)
        else dict.fromkeys(mine, test.than)
    )
    found: Dict[int, Optional[bool]] = {}
    for seed, value in mine.items():
        if seed in others:
            found[seed] = _passes(test, value, others[seed])
            if found[seed] and value is None and (test.arm, seed) in diverged:
                found[seed] = None  # it was never measured: that shows nothing of this arm
    return found


def _passes(test: Comparison, value: Optional[float], other: Optional[float]) -> Optional[bool]:
    if value is None or other is None:
        worst = describe(test.metric).worst
        if math.isnan(worst):
            return None  # nobody knows on which side a run without a value stands
        value, other = (worst if one is None else one for one in (value, other))
    limit = other * test.factor + test.margin
    if math.isinf(value) and value == limit:
        return None  # neither got there
    return value >= limit if test.relation == "at least" else value <= limit


def _text(test: Comparison, values: Values) -> str:
    """The comparison with its figures, such as `accuracy: batch .9 [.8, .9] at least none .5`."""
    def of(arm: str) -> str:
        found: List[Optional[float]] = list(values.get((arm, test.metric), {}).values())
        return f"{arm} {spread(found, describe(test.metric).worst)}"

    against = of(test.than) if isinstance(test.than, str) else chosen(test.than)
    if test.factor != 1:
        against = f"{chosen(test.factor)} times {against}"
    if test.margin:
        against = f"{against} {'+' if test.margin > 0 else '−'} {chosen(abs(test.margin))}"
    return f"{test.metric}: {of(test.arm)} {test.relation} {against}"
