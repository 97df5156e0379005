"""Honest figures over a few seeds: shares, medians, paired differences and their tests.

Accuracies at a high learning rate are bimodal: a run learns or it is stuck. Intervals that assume
a bell curve then miss far more often than they say, so nothing here assumes one. Each of these
covers what it names with at least 95 %, whatever the number of seeds:

- `share_interval`: the share of all seeds that do something, such as learn.
- `median_interval`: the median over all seeds, of any distribution, with infinite values too.
- `sign_flip_interval`: the mean difference of pairs, if the differences are symmetric around it.
  Those of two equal arms are, so it leaves out 0 no more often than promised. Those of an arm that
  always learns and one that is stuck in some seeds are not: it covered their mean in .65 to .97 of
  all simulated cases, so tell the size of such a difference by its median.
- `sign_test`: finds a difference between equal arms in at most 5 % of all comparisons.

All of this holds for a number of seeds that was fixed in advance. Whoever adds seeds one by one up
to twenty, and stops once a test decides, is wrong in 10 % of all cases instead of 5 %.
"""

import dataclasses
import math
import statistics
from typing import Callable, List, Literal, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

# SciPy and statsmodels are imported where they are used: they take a second or two, which a study
# that is only listed need not wait for.

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # p values below it count as a finding
# Looser than SIGNIFICANCE, a table of some ten stuck runs would show one that "learned" by luck.
STUCK_SIGNIFICANCE = 0.001
FEWEST_PAIRS = 6  # five unanimous pairs have a two-sided p of .0625, six of .031
MOST_PAIRS_TO_FLIP = 14  # 16,384 ways to flip the signs take a millisecond
DRAWN_SUBSETS = 9_999  # beyond them, so many are drawn

Worse = Literal["low", "high"]
WORST: Mapping[Worse, float] = {"low": -math.inf, "high": math.inf}
Interval = Tuple[float, float]


def share_interval(count: int, total: int) -> Interval:
    """Exact two-sided 95 % interval (Clopper-Pearson) of the share behind `count` of `total`.

    Args:
        count: in how many seeds something was seen.
        total: how many seeds there are, at least one.

    Returns:
        `(low, high)`, shares of 1.

    Raises:
        ValueError: the counts are impossible.
    """
    from scipy import stats

    _check_counts("share_interval", count, total)
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def lower_bound(count: int, total: int) -> float:
    """Exact one-sided bound: with 95 % confidence, the share of all seeds is at least this.

    Args:
        count: in how many seeds something was seen.
        total: how many seeds there are, at least one.

    Raises:
        ValueError: the counts are impossible.
    """
    from scipy import stats

    _check_counts("lower_bound", count, total)
    test = stats.binomtest(count, total, alternative="greater")
    return float(test.proportion_ci(CONFIDENCE, method="exact").low)


def seeds_to_decide(count: int, total: int) -> Optional[int]:
    """How many more seeds would show that the share of all seeds is above, or below, one half.

    It is shown once `lower_bound` is above 1/2 for the seeds with it or for those without.

    Args:
        count: in how many seeds something was seen.
        total: how many seeds there are, at least one.

    Returns:
        The smallest number of further seeds that decides if the rate stays as it is, rounded
        against a decision; 0 if it is decided; None at a rate of exactly one half, where no number
        does.

    Raises:
        ValueError: the counts are impossible.
    """
    from scipy import stats

    _check_counts("seeds_to_decide", count, total)
    count = max(count, total - count)
    if 2 * count == total:
        return None
    # The closest rate to 1/2 that `total` seeds can have is off by half a seed, and 4 total² seeds
    # are enough for that.
    totals = np.arange(total, 4 * total**2 + 20 * total)
    p_values = stats.binom.sf(count * totals // total - 1, totals, 0.5)
    return int(np.argmax(p_values < SIGNIFICANCE))


def is_stuck(accuracy: float, images: int, commonest: float) -> bool:
    """Whether an accuracy is no better than naming the commonest class every time.

    Exact one-sided binomial test with a level of .001: of a thousand guessers, one at most is said
    to have learned. Fewer than ten images of two classes cannot show that a net has learned.

    Args:
        accuracy: share of the evaluated images that the run got right.
        images: how many were evaluated.
        commonest: share of the commonest class among them; 1 / classes where all are equal.

    Raises:
        ValueError: a share is not between 0 and 1, or there is no image.
    """
    from scipy import stats

    _check_accuracy("is_stuck", accuracy, images)
    if not 0 < commonest <= 1:
        raise ValueError(
            f"is_stuck: received commonest={commonest}; expected the share of the commonest class "
            "among the evaluated images, above 0 and at most 1"
        )
    return bool(
        stats.binom.sf(round(accuracy * images) - 1, images, commonest) >= STUCK_SIGNIFICANCE
    )


def tie_width(first: float, second: float, images: int) -> float:
    """How far apart two accuracies may be by the choice of the evaluated images alone.

    95 % half width of their difference, as if each had been evaluated on other images (Agresti and
    Caffo 2000: one more image right and one more wrong in each, which keeps it above 0 for perfect
    nets). Nets that are evaluated on the same images often fail on the same ones; they differ by
    less, so this width is on the safe side.

    Args:
        first, second: accuracies, shares of the images.
        images: how many images each was evaluated on.

    Raises:
        ValueError: an accuracy is not between 0 and 1, or there is no image.
    """
    variance = 0.0
    for accuracy in (first, second):
        _check_accuracy("tie_width", accuracy, images)
        share = (accuracy * images + 1) / (images + 2)
        variance += share * (1 - share) / (images + 2)
    return statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance)


def median_interval(values: Sequence[float]) -> Optional[Interval]:
    """Exact 95 % interval of the median over all seeds, between two of the values themselves.

    It assumes no distribution, so that runs which never got there may be in it as infinity.

    Args:
        values: one number a seed; `WORST` has the number for a run without a value.

    Returns:
        `(low, high)`; None for fewer than six values, which cannot carry an interval.

    Raises:
        ValueError: a value is NaN.
    """
    from scipy import stats

    ordered = sorted(values)
    if any(math.isnan(value) for value in ordered):
        raise ValueError(
            f"median_interval: received {list(values)}; expected numbers, and for a run without "
            "one the infinity at the worse end"
        )
    # At most this many values lie below the median with a probability of at least 2.5 %.
    below = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5)) if ordered else 0
    if below == 0:
        return None
    return ordered[below - 1], ordered[-below]


def sign_flip_interval(
    differences: Sequence[float], generator: np.random.Generator
) -> Optional[Interval]:
    """Exact 95 % interval of a mean difference, by flipping signs.

    It holds the differences d for which flipping the signs of `differences - d` gives no mean as
    extreme as theirs more often than in 5 % of all ways to flip. Its ends are means of subsets of
    the differences (Hartigan 1969): the true mean is equally likely in each gap between the sorted
    means of all subsets. That is exact where the differences are symmetric around their mean.

    Args:
        differences: one number a pair.
        generator: draws the subsets where there are too many: beyond 14 pairs.

    Returns:
        `(low, high)`; None for fewer than six pairs, which cannot carry an interval.

    Raises:
        ValueError: a difference is not finite.
    """
    numbers = np.asarray(differences, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"sign_flip_interval: received {list(differences)}; expected finite differences, "
            "without the pairs in which a run diverged"
        )
    pairs = len(numbers)
    if pairs < FEWEST_PAIRS:
        return None
    if pairs <= MOST_PAIRS_TO_FLIP:
        subsets = np.arange(1, 2**pairs)[:, None] >> np.arange(pairs) & 1
    else:
        subsets = generator.integers(0, 2, (DRAWN_SUBSETS, pairs))
        subsets = subsets[subsets.any(axis=1)]  # the empty one has no mean
    means = np.sort(subsets @ numbers / subsets.sum(axis=1))
    outside = int((1 - CONFIDENCE) / 2 * (len(means) + 1))
    return float(means[outside - 1]), float(means[-outside])


def sign_test(won: int, lost: int) -> float:
    """Exact two-sided p value: how often one of two equal arms wins so many pairs, or more.

    Args:
        won, lost: how many pairs either arm won; ties are left out.
    """
    from scipy import stats

    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def fewest_pairs(comparisons: int = 1) -> int:
    """The fewest pairs with which the sign test can decide, if one arm wins all of them.

    Six for one comparison, seven for two or three, eight for four to six: every comparison of a
    table is counted, as Holm multiplies the smallest p value by their number.

    Args:
        comparisons: how many the table has.

    Raises:
        ValueError: no comparison.
    """
    if comparisons < 1:
        raise ValueError(
            f"fewest_pairs: received {comparisons} comparisons; expected at least one"
        )
    pairs = FEWEST_PAIRS
    while comparisons * 2 / 2**pairs >= SIGNIFICANCE:
        pairs += 1
    return pairs


def holm(p_values: Sequence[float]) -> List[float]:
    """P values adjusted for the number of comparisons (Holm), to compare with SIGNIFICANCE.

    Args:
        p_values: those of all comparisons of one table, such as all arms against one.

    Returns:
        As many, in the same order. The chance of any finding among equal arms is at most 5 %.
    """
    from statsmodels.stats.multitest import multipletests

    values = list(p_values)
    return multipletests(values, method="holm")[1].tolist() if values else []


@dataclasses.dataclass(frozen=True)
class Pairs:
    """How one arm did against another, seed by seed.

    Attributes:
        won, tied, lost: pairs, as the first arm sees them.
        tie: pairs no further apart than this are tied; the widest tie if they differ.
        p_value: of the sign test; None for fewer than `fewest_pairs`.
        more_pairs: how many more pairs, all won by the arm that is ahead, would bring the sign
            test below SIGNIFICANCE, adjusted for the number of comparisons; 0 if it is there.
        median: median of first - second over all pairs. A pair with one run that diverged is
            infinitely far apart, one with two counts as 0. None where the middle lies between
            -infinity and infinity.
        median_interval: its 95 % interval; see `median_interval`.
        mean: mean of first - second; None where a run diverged, as the mean of the others would
            hide it.
        mean_interval: its 95 % interval; see `sign_flip_interval`.
    """

    won: int
    tied: int
    lost: int
    tie: float
    p_value: Optional[float]
    more_pairs: int
    median: Optional[float]
    median_interval: Optional[Interval]
    mean: Optional[float]
    mean_interval: Optional[Interval]

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return self.won + self.tied + self.lost


def compare_pairs(
    first: Mapping[int, Optional[float]],
    second: Mapping[int, Optional[float]],
    tie: Union[float, Callable[[float, float], float]],
    generator: np.random.Generator,
    worse: Worse = "low",
    comparisons: int = 1,
) -> Pairs:
    """Compares two arms over the seeds that both have.

    A run without a value (diverged, or a target never reached) loses its pair; if neither has one,
    the pair is tied. So steps to a target are compared with the runs that never got there. (The
    log-rank test is no better for that: being asymptotic, it found a difference between equal arms
    of 3 to 10 simulated runs in 6 % of all cases.)

    Args:
        first, second: seed to value; None for a run without one.
        tie: pairs no further apart than this are tied: a number, or a function of the pair's two
            values, such as `functools.partial(tie_width, images=5000)`. 0 fits exact values only,
            such as numbers of steps.
        generator: draws the subsets for the mean's interval beyond 14 pairs.
        worse: the worse end of the values: "low" for an accuracy, "high" for a loss or for steps.
        comparisons: how many comparisons the table has that this one is part of.

    Raises:
        ValueError: no seed in common, a value that is not finite, or a tie below 0.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        raise ValueError(
            f"compare_pairs: received the seeds {sorted(first)} and {sorted(second)}; expected at "
            "least one in common"
        )
    if worse not in WORST:
        raise ValueError(f"compare_pairs: received worse={worse!r}; expected 'low' or 'high'")
    differences, outcomes, ties = [], [], [0.0 if callable(tie) else tie]
    for seed in seeds:
        mine, other = first[seed], second[seed]
        for value in (mine, other):
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"compare_pairs: received {value} for seed {seed}; expected a finite number, "
                    "or None for a run without one"
                )
        width = 0.0
        if mine is not None and other is not None:
            difference = mine - other
            width = tie(mine, other) if callable(tie) else tie
        elif mine is other:
            difference = 0.0
        else:
            difference = WORST[worse] if mine is None else -WORST[worse]
        ties.append(width)
        better = difference > 0 if worse == "low" else difference < 0
        outcomes.append(0 if abs(difference) <= width else 1 if better else -1)
        differences.append(difference)
    if not min(ties) >= 0:
        raise ValueError(f"compare_pairs: received a tie of {min(ties)}; expected 0 or more")
    won, lost = outcomes.count(1), outcomes.count(-1)
    middle = statistics.median(differences)
    whole = all(None not in (first[seed], second[seed]) for seed in seeds)
    return Pairs(
        won=won,
        tied=outcomes.count(0),
        lost=lost,
        tie=max(ties),
        p_value=sign_test(won, lost) if len(seeds) >= fewest_pairs(comparisons) else None,
        more_pairs=_pairs_to_decide(won, lost, comparisons),
        median=None if math.isnan(middle) else middle,
        median_interval=median_interval(differences),
        mean=statistics.fmean(differences) if whole else None,
        mean_interval=sign_flip_interval(differences, generator) if whole else None,
    )


def _pairs_to_decide(won: int, lost: int, comparisons: int) -> int:
    """As `Pairs.more_pairs`; Holm multiplies a p value by the number of comparisons at most."""
    ahead, behind = max(won, lost), min(won, lost)
    more = 0
    while comparisons * sign_test(ahead + more, behind) >= SIGNIFICANCE:
        more += 1
    return more


def _check_counts(caller: str, count: int, total: int) -> None:
    if not 0 <= count <= total or total < 1:
        raise ValueError(
            f"{caller}: received {count} of {total}; expected a count from 0 to the total, and a "
            "total of at least 1"
        )


def _check_accuracy(caller: str, accuracy: float, images: int) -> None:
    if not 0 <= accuracy <= 1 or images < 1:
        raise ValueError(
            f"{caller}: received an accuracy of {accuracy} on {images} images; expected a share "
            "between 0 and 1, and at least one image"
        )
