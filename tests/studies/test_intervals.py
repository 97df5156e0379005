"""Intervals and tests over a few seeds against published figures and slow derivations."""

import functools
import itertools
import math

import numpy as np
import pytest

from bn_keras import intervals
from bn_keras.intervals import (
    compare_pairs,
    holm,
    is_stuck,
    lower_bound,
    median_interval,
    seeds_to_decide,
    share_interval,
    sign_flip_interval,
    sign_test,
    tie_width,
)

# Darwin's 15 pairs of maize plants, in eighths of an inch. Fisher (1935, section 21) counted the
# flips of signs whose sum is as large as the observed 314: 863 of 32,768.
DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def generator(seed=0):
    return np.random.default_rng(seed)


def by_seed(*values):
    return dict(enumerate(values))


def at_least(count, total, share=0.5):
    """Probability of `count` or more of `total`, term by term."""
    return math.fsum(
        math.comb(total, k) * share**k * (1 - share) ** (total - k)
        for k in range(count, total + 1)
    )


@pytest.mark.parametrize(
    "count, total, low, high",
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 5
        (81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0, 0.1684),
        (1, 29, 0.0009, 0.1776), (29, 29, 0.8806, 1),
    ],
)
def test_the_share_interval_matches_published_ones(count, total, low, high):
    assert share_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count, total", [(1, 3), (3, 8), (7, 8), (24, 25)])
def test_the_bounds_are_the_shares_that_the_count_just_contradicts(count, total):
    low, high = share_interval(count, total)
    assert at_least(count, total, low) == pytest.approx(0.025)
    assert 1 - at_least(count + 1, total, high) == pytest.approx(0.025)
    assert at_least(count, total, lower_bound(count, total)) == pytest.approx(0.05)


@pytest.mark.parametrize("total, bound", [(3, 0.368), (5, 0.549), (59, 0.950)])
def test_unanimous_seeds_show_a_share_of_the_nth_root_of_5_percent(total, bound):
    assert lower_bound(total, total) == pytest.approx(0.05 ** (1 / total))
    assert lower_bound(total, total) == pytest.approx(bound, abs=5e-4)
    assert lower_bound(0, total) == 0


def test_the_seeds_to_decide_are_the_first_number_that_decides():
    for total in range(1, 13):
        for count in range(total + 1):
            expected = None
            if 2 * count != total:
                most = max(count, total - count)
                expected = next(
                    more for more in itertools.count()
                    if at_least(most * (total + more) // total, total + more) < 0.05
                )
            assert seeds_to_decide(count, total) == expected, (count, total)
    assert seeds_to_decide(3, 3) == 2 and seeds_to_decide(8, 10) == 3
    assert seeds_to_decide(51, 101) > 20_000  # hardly more than half


@pytest.mark.parametrize(
    "accuracy, images, commonest, stuck",
    [
        (1.0, 200, 0.5, False),  # twice chance, and no more can be had with two classes
        (0.52, 200, 0.5, True),
        (0.1135, 10_000, 0.1135, True),  # MNIST's test set, every image called a 1
        (0.12, 10_000, 0.1135, True), (0.125, 10_000, 0.1135, False),
        (0.0, 10_000, 0.1, True),
        (0.35, 20, 0.1, True), (0.4, 20, 0.1, False),  # p = .0024 and .0004
        (1.0, 50, 1.0, True),  # one class only: nothing can be learned
    ],
)
def test_a_run_is_stuck_if_it_is_no_better_than_naming_the_commonest_class(
    accuracy, images, commonest, stuck
):
    oracle = at_least(round(accuracy * images), images, commonest) if images <= 200 else None
    assert is_stuck(accuracy, images, commonest) == stuck
    assert oracle is None or stuck == (oracle >= 0.001)


def test_a_tie_is_as_wide_as_two_evaluations_differ_by_their_images():
    # ± .5 points at .97 and 5,000 images, √2 times that for two
    one = 1.96 * math.sqrt(0.97 * 0.03 / 5000)
    assert one == pytest.approx(0.0047, abs=5e-5)
    assert tie_width(0.97, 0.97, 5000) == pytest.approx(one * math.sqrt(2), rel=0.01)
    # Agresti & Caffo by hand: 11 of 12 in each
    by_hand = 1.959964 * math.sqrt(2 * (11 / 12) * (1 / 12) / 12)
    assert tie_width(1.0, 1.0, 10) == pytest.approx(by_hand, rel=1e-6)
    assert tie_width(0.9, 0.5, 100) == tie_width(0.5, 0.9, 100) > tie_width(0.9, 0.9, 100)


@pytest.mark.parametrize(
    "total, low, high",  # as in the usual tables of confidence intervals for the median
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)],
)
def test_the_median_interval_lies_between_the_tabled_ranks(total, low, high):
    ranks = list(range(1, total + 1))
    generator().shuffle(ranks)
    assert median_interval(ranks) == (low, high)
    values = [float("inf") if rank > total - 2 else rank for rank in ranks]
    assert median_interval(values) == (low, high if high <= total - 2 else math.inf)


@pytest.mark.parametrize("total", range(6))
def test_fewer_than_six_seeds_carry_no_interval(total):
    assert median_interval([0.5] * total) is None
    assert sign_flip_interval([0.5] * total, generator()) is None


def flip_p_value(differences, mean):
    """Two-sided p value of a mean, by all flips of the signs around it."""
    centred = np.asarray(differences, float) - mean
    sums = np.array([
        math.fsum(sign * value for sign, value in zip(signs, centred))
        for signs in itertools.product((1, -1), repeat=len(centred))
    ])
    total, slack = math.fsum(centred), 1e-9
    return 2 * min(np.mean(sums >= total - slack), np.mean(sums <= total + slack))


@pytest.mark.parametrize("pairs", [6, 7, 9])
def test_the_sign_flip_interval_holds_the_means_that_the_flips_do_not_reject(pairs):
    differences = generator(pairs).normal(1, 2, pairs)
    low, high = sign_flip_interval(differences, generator())
    for inside in (low + 1e-6, np.mean(differences), high - 1e-6):
        assert flip_p_value(differences, inside) > 0.05
    for outside in (low - 1e-6, high + 1e-6):
        assert flip_p_value(differences, outside) <= 0.05


def test_the_sign_flip_interval_agrees_with_fisher_on_darwins_maize(monkeypatch):
    drawn = sign_flip_interval(DARWIN, generator())
    monkeypatch.setattr(intervals, "MOST_PAIRS_TO_FLIP", 15)
    exact = low, high = sign_flip_interval(DARWIN, generator())
    # p = 2 * 863 / 32,768 = .0527: a mean of 0 is just not rejected. Student's t has (.03, 41.8).
    assert low <= 0 and low == pytest.approx(0, abs=0.5) and high == pytest.approx(41, abs=1)
    assert drawn == pytest.approx(exact, abs=1.5)


def test_the_generator_fixes_the_drawn_subsets():
    values = generator(1).normal(size=20)
    first = sign_flip_interval(values, generator(5))
    assert first == sign_flip_interval(values, generator(5)) != sign_flip_interval(
        values, generator(6)
    )
    few = values[:14]  # all subsets: nothing is drawn
    assert sign_flip_interval(few, generator(5)) == sign_flip_interval(few, generator(6))


@pytest.mark.parametrize(
    "won, lost, p_value",
    [(5, 0, 0.0625), (6, 0, 0.03125), (8, 0, 0.0078125), (0, 6, 0.03125), (9, 1, 22 / 1024),
     (1, 9, 22 / 1024), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_sign_test_matches_counting_by_hand(won, lost, p_value):
    assert sign_test(won, lost) == pytest.approx(p_value)


def test_holm_matches_the_textbook():
    # R: p.adjust(c(.04, .01, .03), "holm"), p.adjust(c(.01, .02, .03, .04, .05), "holm")
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.04]) == [0.04] and holm([]) == []


def test_pairs_are_won_tied_and_lost():
    first, second = by_seed(0.9, 0.8, 0.7, 0.5), by_seed(0.8, 0.8001, 0.9, 0.5)
    found = compare_pairs(first, second, 0.01, generator())
    assert (found.won, found.tied, found.lost, found.count) == (1, 2, 1, 4)
    assert found.mean == pytest.approx((0.1 - 0.0001 - 0.2) / 4)
    assert found.median == pytest.approx(-0.00005) and found.tie == 0.01
    high = compare_pairs(first, second, 0.01, generator(), worse="high")
    assert (high.won, high.tied, high.lost, high.mean) == (1, 2, 1, found.mean)
    better = compare_pairs(by_seed(1, 2, 3), by_seed(2, 3, 4), 0, generator(), worse="high")
    assert (better.won, better.tied, better.lost) == (3, 0, 0)


def test_a_tie_may_depend_on_the_pair():
    width = functools.partial(tie_width, images=100)  # ± .14 at .5, ± .06 at .97
    found = compare_pairs(by_seed(0.5, 0.87), by_seed(0.6, 0.97), width, generator())
    assert (found.won, found.tied, found.lost) == (0, 1, 1)
    assert found.tie == tie_width(0.5, 0.6, 100)


@pytest.mark.parametrize("worse, sign", [("low", 1), ("high", -1)])
def test_a_run_that_diverged_loses_its_pair_and_is_in_no_mean(worse, sign):
    first = by_seed(None, 0.5, None, *[0.5] * 5)
    second = by_seed(0.1, None, None, *[0.5 - 0.2 * sign] * 5)
    found = compare_pairs(first, second, 0.01, generator(), worse=worse)
    assert (found.won, found.tied, found.lost) == (6, 1, 1)
    assert found.mean is None and found.mean_interval is None
    assert found.median == pytest.approx(0.2 * sign)
    assert found.median_interval == (-math.inf, math.inf)  # the lowest and highest of eight
    pair = compare_pairs(by_seed(None, 1), by_seed(1, None), 0, generator(), worse=worse)
    assert pair.median is None and (pair.won, pair.tied, pair.lost) == (1, 0, 1)


@pytest.mark.parametrize(
    "won, lost, tied, more, decided",
    [(1, 0, 0, 5, None), (5, 0, 0, 1, None), (3, 1, 1, 5, None), (0, 0, 3, 6, None),
     (6, 0, 0, 0, True), (5, 0, 3, 1, False), (2, 7, 0, 3, False)],
)
def test_few_pairs_claim_nothing_and_say_how_many_more_would(won, lost, tied, more, decided):
    first = by_seed(*[1.0] * won, *[-1.0] * lost, *[0.0] * tied)
    found = compare_pairs(first, dict.fromkeys(first, 0.0), 0.5, generator())
    assert found.more_pairs == more
    given = (found.p_value, found.median_interval, found.mean_interval)
    if decided is None:
        assert given == (None, None, None)
    else:
        assert None not in given and (found.p_value < 0.05) == decided
    ahead, behind = max(won, lost) + more, min(won, lost)
    assert 2 * at_least(ahead, ahead + behind) < 0.05
    assert more == 0 or 2 * at_least(ahead - 1, ahead - 1 + behind) >= 0.05


@pytest.mark.slow
def test_the_fewest_pairs_that_can_decide_grow_with_the_number_of_comparisons():
    found = [intervals.fewest_pairs(comparisons) for comparisons in range(1, 9)]
    assert found == [6, 7, 7, 8, 8, 8, 9, 9]
    # Not all: statsmodels collects garbage in every call, .4 s among TensorFlow's objects.
    for comparisons, pairs in [(1, 6), (3, 7), (8, 9)]:
        assert holm([sign_test(pairs, 0)] * comparisons)[0] < 0.05
        assert holm([sign_test(pairs - 1, 0)] * comparisons)[0] >= 0.05
    with pytest.raises(ValueError, match="fewest_pairs: received 0 comparisons; expected"):
        intervals.fewest_pairs(0)


@pytest.mark.parametrize("won, lost", [(6, 0), (7, 0), (7, 1), (3, 2)])
def test_more_pairs_are_counted_with_all_comparisons_of_the_table(won, lost):
    first = by_seed(*[1.0] * won, *[-1.0] * lost)
    found = compare_pairs(first, dict.fromkeys(first, 0.0), 0.5, generator(), comparisons=3)
    decided = [3 * sign_test(won + more, lost) < 0.05 for more in range(20)]
    assert found.more_pairs == decided.index(True)
    assert (found.p_value is None) == (won + lost < 7)


def test_six_pairs_have_intervals_from_the_lowest_to_the_highest():
    found = compare_pairs(by_seed(1, 2, 3, 4, 5, 6), dict.fromkeys(range(9), 0), 0, generator())
    assert found.count == 6 and found.p_value == 0.03125
    assert found.median_interval == found.mean_interval == (1, 6)
    assert found.median == found.mean == 3.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: share_interval(4, 3), "share_interval: received 4 of 3; expected a count from 0"),
        (lambda: lower_bound(0, 0), "lower_bound: received 0 of 0; expected"),
        (lambda: lower_bound(5, 3), "lower_bound: received 5 of 3; expected"),
        (lambda: seeds_to_decide(-1, 3), "seeds_to_decide: received -1 of 3; expected"),
        (lambda: is_stuck(1.2, 10, 0.5), "is_stuck: received an accuracy of 1.2 on 10 images; exp"),
        (lambda: is_stuck(math.nan, 10, 0.5), "is_stuck: received an accuracy of nan on 10"),
        (lambda: is_stuck(0.5, 10, 0.0), r"is_stuck: received commonest=0.0; expected the share"),
        (lambda: tie_width(0.5, 0.5, 0), "tie_width: received an accuracy of 0.5 on 0 images"),
        (lambda: median_interval([1, math.nan]), r"median_interval: received \[1, nan\]; expec"),
        (lambda: sign_flip_interval([1, math.inf], generator()), r"received \[1, inf\]; expected"),
        (lambda: compare_pairs({0: 1}, {1: 1}, 0, generator()),
         r"compare_pairs: received the seeds \[0\] and \[1\]; expected at least one in common"),
        (lambda: compare_pairs({0: math.inf}, {0: 1}, 0, generator()), "received inf for seed 0"),
        (lambda: compare_pairs({0: 1}, {0: 1}, -0.1, generator()), "received a tie of -0.1; exp"),
        (lambda: compare_pairs({0: 1}, {0: 1}, 0, generator(), "up"), "received worse='up'; exp"),
    ],
)
def test_impossible_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
