"""Does a claim hold, over the seeds that were run? No TensorFlow.

The rule is the same for every claim and has no knob: what a claim describes must be seen in every
seed. Seen in none it does not hold; seen in some only, or in fewer than three, it is not decided.
Where it is seen, but not on the control arms that tell its cause, it holds for another reason.
"""

import dataclasses
import math

from bn_keras import stats
from bn_keras.studies import Claim

HOLDS = "holds"
OTHER_REASON = "holds, but for another reason"
FAILS = "does not hold"
UNDECIDED = "not decided"
FEWEST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found for one claim.

    Attributes:
        claim: the Claim.
        verdict: one of the four.
        seen, seeds: in how many of how many seeds the effect was seen.
        figures: what was compared, a line for each test.
    """

    claim: Claim
    verdict: str
    seen: int
    seeds: int
    figures: tuple


def judge(claim, rows):
    """The Verdict on a claim.

    Args:
        claim: Claim.
        rows: list of Row, as `Study.rows` gives them.
    """
    seen, seeds, lines = _seeds_that_pass(claim.effect, rows)
    verdict = _decide(seen, seeds)
    if verdict == HOLDS and claim.cause:
        caused, controls, more = _seeds_that_pass(claim.cause, rows)
        lines += more
        cause = _decide(caused, controls)
        verdict = {HOLDS: HOLDS, FAILS: OTHER_REASON}.get(cause, UNDECIDED)
    return Verdict(claim, verdict, seen, seeds, tuple(lines))


def _decide(seen, seeds):
    if seeds < FEWEST_SEEDS or 0 < seen < seeds:
        return UNDECIDED
    return HOLDS if seen else FAILS


def _seeds_that_pass(tests, rows):
    """(seeds in which all tests pass, seeds in which all could be made, a line for each test)."""
    values = {}
    for row in rows:
        for metric, value in row.metrics.items():
            values.setdefault((row.arm, metric), {})[row.seed] = value
    passes, lines = [], []
    for test in tests:
        mine = values.get((test.arm, test.metric), {})
        against = test.than
        others = {seed: against for seed in mine}
        shown = f"{against:g}" if not isinstance(against, str) else against
        if isinstance(against, str):
            others = values.get((against, test.metric), {})
            shown = f"{against} {stats.figure(others.values())}"
        if test.factor != 1:
            shown = f"{test.factor:g} times {shown}"
        if test.margin:
            shown = f"{shown} {'+' if test.margin > 0 else '−'} {abs(test.margin):g}"
        pairs = {
            seed: (_number(test.metric, value), _number(test.metric, others[seed]))
            for seed, value in mine.items() if seed in others
        }
        found = {
            seed: _passes(test, *pair) for seed, pair in pairs.items() if None not in pair
        }
        passes.append(found)
        lines.append(
            f"{test.metric}: {test.arm} {stats.figure(mine.values())} {test.relation} {shown}: "
            f"{sum(found.values())} of {len(found)}"
        )
    seeds = set.intersection(*(set(found) for found in passes))
    return sum(all(found[seed] for found in passes) for seed in seeds), len(seeds), lines


def _number(metric, value):
    """A metric to compare with: what a diverged or stuck run does not have is the worst there is.

    None where it is not known which end is the worst: that seed decides nothing.
    """
    if value is not None:
        return value
    if metric.startswith("steps_to_") or "loss" in metric:
        return float("inf")
    return float("-inf") if "accuracy" in metric or metric.endswith("_rate") else None


def _passes(test, value, other):
    limit = other * test.factor + test.margin
    if math.isinf(value) and value == limit:
        return False  # neither got there: nothing is shown
    return value >= limit if test.relation == "at least" else value <= limit
