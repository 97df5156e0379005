"""Simulated seeds: intervals cover what they name, and equal arms are seldom told apart.

Accuracies are bimodal, as they are at a high learning rate: a share of the seeds learns, the rest
is stuck. Nominal 95 % t intervals cover the mean of those in 23 to 95 % of all cases.

A simulated rate may miss the promised one by four of its own standard errors, which happens by
chance once in 30,000 checks. Generators are seeded, so a test that passes once passes always.
"""

import gc
import math

import numpy as np
import pytest

from bn_keras.intervals import (
    CONFIDENCE,
    SIGNIFICANCE,
    compare_pairs,
    holm,
    is_stuck,
    lower_bound,
    median_interval,
    share_interval,
    sign_flip_interval,
    sign_test,
    tie_width,
)
from bn_keras.study import Claim, Comparison, Row
from bn_keras.verdicts import FAILS, HOLDS, judge

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)  # of the seeds that learn
SEEDS = range(3, 21)
REPETITIONS = 5_000
LEARNED, STUCK = (0.85, 0.05), (0.103, 0.01)  # mean and standard deviation of the accuracy
IMAGES = 5000


def bimodal(generator, share, shape):
    """Accuracies of runs of which a share learns."""
    learned = generator.random(shape) < share
    return np.where(learned, generator.normal(*LEARNED, shape), generator.normal(*STUCK, shape))


def bimodal_median(share):
    """The median over all seeds, by bisection of the distribution."""
    def below(x):
        (high, wide), (low, narrow) = (
            (mean, deviation * math.sqrt(2)) for mean, deviation in (LEARNED, STUCK)
        )
        return share * math.erfc((high - x) / wide) / 2 + (1 - share) * math.erfc(
            (low - x) / narrow) / 2

    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.5 else (low, middle)
    return low


def margin(rate, repetitions):
    """Four standard errors of a simulated rate."""
    return 4 * math.sqrt(rate * (1 - rate) / repetitions)


def at_least(promised, hits):
    return np.mean(hits) >= promised - margin(promised, len(hits))


def at_most(promised, hits):
    return np.mean(hits) <= promised + margin(promised, len(hits))


@pytest.mark.parametrize("seeds", SEEDS)
def test_share_interval_and_lower_bound_cover_the_share_of_all_seeds(seeds):
    generator = np.random.default_rng(seeds)
    low, high = np.transpose([share_interval(count, seeds) for count in range(seeds + 1)])
    lowest = np.array([lower_bound(count, seeds) for count in range(seeds + 1)])
    for share in SHARES:
        counts = (bimodal(generator, share, (REPETITIONS, seeds)) > 0.5).sum(axis=1)
        assert at_least(CONFIDENCE, (low[counts] <= share) & (share <= high[counts])), share
        assert at_least(CONFIDENCE, lowest[counts] <= share), share


@pytest.mark.parametrize("seeds", range(6, 21))
def test_the_median_interval_covers_the_median_of_all_seeds(seeds):
    """Its ends are order statistics, so that its ranks serve for all samples of as many seeds."""
    generator = np.random.default_rng(seeds)
    low, high = median_interval(range(seeds))
    for share in SHARES:
        values = np.sort(bimodal(generator, share, (REPETITIONS, seeds)), axis=1)
        assert median_interval(values[0]) == (values[0, low], values[0, high])
        median = bimodal_median(share)
        assert at_least(CONFIDENCE, (values[:, low] <= median) & (median <= values[:, high])), share


def mean_difference_is_covered(generator, share, pairs, repetitions, shift):
    """How often the mean difference of arms that differ by a shift alone is in its interval."""
    first, second = bimodal(generator, share, (2, repetitions, pairs))
    hits = []
    for differences in first - second + shift:
        low, high = sign_flip_interval(differences, generator)
        hits.append(low <= shift <= high)
    return hits


@pytest.mark.parametrize("pairs", [6, 7, 8, 10, 12])
@pytest.mark.parametrize("shift", [0.0, 0.1], ids=["equal", "shifted"])
def test_the_sign_flip_interval_covers_the_mean_of_symmetric_differences(pairs, shift):
    generator = np.random.default_rng(pairs)
    for share in (0.05, 0.5, 0.9):
        hits = mean_difference_is_covered(generator, share, pairs, 500, shift)
        assert at_least(CONFIDENCE, hits), share


@pytest.mark.slow
@pytest.mark.parametrize("pairs, repetitions, shares", [
    (6, 2000, SHARES), (9, 2000, SHARES), (16, 300, SHARES[::4]),  # of 16 the subsets are drawn
])
def test_the_sign_flip_interval_covers_that_mean_for_more_shares(pairs, repetitions, shares):
    generator = np.random.default_rng(pairs)
    for share in shares:
        hits = mean_difference_is_covered(generator, share, pairs, repetitions, 0.0)
        assert at_least(CONFIDENCE, hits), share


def p_values(generator, share, arms, pairs, noise=0.0):
    """P values of equal arms against one baseline, shape (REPETITIONS, arms)."""
    table = np.array([
        [sign_test(won, lost) if won + lost <= pairs else math.nan for lost in range(pairs + 1)]
        for won in range(pairs + 1)
    ])
    accuracies = bimodal(generator, share, (REPETITIONS, arms + 1, pairs))
    difference = accuracies[:, 1:] - accuracies[:, :1]
    return table[(difference > noise).sum(axis=2), (difference < -noise).sum(axis=2)]


@pytest.mark.parametrize("pairs", [3, 5, 6, 9, 14])
@pytest.mark.parametrize("noise", [0.0, 0.02], ids=["no ties", "ties"])
def test_two_equal_arms_are_told_apart_no_more_often_than_promised(pairs, noise):
    generator = np.random.default_rng(pairs)
    for share in SHARES:
        found = p_values(generator, share, 1, pairs, noise)[:, 0] < SIGNIFICANCE
        assert at_most(SIGNIFICANCE, found), share
        assert pairs > 5 or not found.any()


@pytest.mark.parametrize("pairs", [9, 12, 20])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_five_equal_arms_are_told_from_one_baseline_no_more_often_than_promised(
    pairs, share, monkeypatch
):
    # statsmodels collects garbage in every call, some .05 s each
    monkeypatch.setattr(gc, "collect", int)
    raw = p_values(np.random.default_rng(pairs), share, 5, pairs)[:2000]
    assert at_most(SIGNIFICANCE, [min(holm(values)) < SIGNIFICANCE for values in raw])


def test_without_holm_five_equal_arms_would_be_told_apart_too_often():
    raw = p_values(np.random.default_rng(0), 0.5, 5, 9)
    assert (raw.min(axis=1) < SIGNIFICANCE).mean() > 2 * SIGNIFICANCE


@pytest.mark.slow
def test_whole_comparisons_of_equal_arms_find_a_difference_seldom():
    """With ties by the evaluation's error, and runs that diverged."""
    generator = np.random.default_rng(0)
    found, left_out = [], []
    for _ in range(400):
        arms = bimodal(generator, 0.8, (2, 9)).clip(0, 1)
        gone = generator.random((2, 9)) < 0.1
        first, second = (
            {seed: None if lost else float(value) for seed, (value, lost) in enumerate(zip(*runs))}
            for runs in zip(arms, gone)
        )
        pairs = compare_pairs(first, second, lambda a, b: tie_width(a, b, IMAGES), generator)
        found.append(pairs.p_value < SIGNIFICANCE)
        left_out.append(not pairs.median_interval[0] <= 0 <= pairs.median_interval[1])
        assert (pairs.mean is None) == gone.any()
    assert at_most(SIGNIFICANCE, found) and at_most(SIGNIFICANCE, left_out)


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.97, 0.999])
@pytest.mark.parametrize("images", [100, 5000])
def test_two_evaluations_of_equally_good_nets_are_mostly_tied(accuracy, images):
    counts = np.random.default_rng(images).binomial(images, accuracy, (4000, 2)) / images
    ties = [abs(first - second) <= tie_width(first, second, images) for first, second in counts]
    assert at_least(CONFIDENCE, ties)


def test_guessers_are_stuck_and_nets_that_learned_are_not():
    generator = np.random.default_rng(0)
    guesses = generator.binomial(IMAGES, 0.1135, 1000) / IMAGES
    assert at_most(0.001, [not is_stuck(share, IMAGES, 0.1135) for share in guesses])
    learned = generator.normal(*LEARNED, 100)
    assert not any(is_stuck(share, IMAGES, 0.1135) for share in learned.clip(0, 1))


def decisions(seeds):
    """The verdict on a claim for every number of seeds in which it is seen."""
    claim = Claim("", "", effect=(Comparison("accuracy", "batch", "at least", 0.5),))
    return np.array([
        judge(claim, [Row("batch", seed, "ok", {"accuracy": float(seed < count)})
                      for seed in range(seeds)]).verdict
        for count in range(seeds + 1)
    ])


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_claim_that_is_true_in_half_of_all_seeds_is_seldom_decided(seeds):
    seen = (bimodal(np.random.default_rng(seeds), 0.5, (REPETITIONS, seeds)) > 0.5).sum(axis=1)
    found = decisions(seeds)[seen]
    assert at_most(SIGNIFICANCE, found == HOLDS) and at_most(SIGNIFICANCE, found == FAILS)
    assert seeds > 4 or not np.isin(found, (HOLDS, FAILS)).any()


def test_evidence_makes_a_true_claim_stronger():
    """True in 95 % of all seeds: "seen in every seed" held with .77, .60, .36 at 5, 10, 20."""
    generator = np.random.default_rng(0)
    held = []
    for seeds in (5, 10, 20):
        seen = generator.binomial(seeds, 0.95, REPETITIONS)
        held.append((decisions(seeds)[seen] == HOLDS).mean())
    assert held == pytest.approx([0.774, 0.914, 1.0], abs=0.02)
