"""Honest figures over a few seeds: intervals, paired differences, steps to a target."""

import numpy as np

CONFIDENCE = 0.95


def mean_interval(values):
    """Mean and its 95 % interval by Student's t, over independent runs.

    Args:
        values: one number a seed.

    Returns:
        `(mean, low, high)`; low and high are None for fewer than two values, where nothing is
        known of the spread.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    from scipy import stats  # half a second, which a study that is only listed need not wait

    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return mean, float(mean - half), float(mean + half)


def paired_difference(first, second):
    """Mean and 95 % interval of first - second over pairs that share a seed.

    Args:
        first, second: dict of seed to number; seeds in only one of them are left out.

    Returns:
        `(mean, low, high, pairs, wins)`: `wins` counts the pairs in which first is larger.
    """
    seeds = sorted(set(first) & set(second))
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if not len(differences):
        raise ValueError(f"no seed in common: {sorted(first)} and {sorted(second)}")
    return (*mean_interval(differences), len(differences), int((differences > 0).sum()))


def steps_to_target(curve, target):
    """First step at which a curve of `[step, value]` reaches the target, or None."""
    return next((step for step, value in curve if value is not None and value >= target), None)


def short(value):
    """A number in three digits, as tables show it: .953, 2.4, 836, 12,750; 5e-05 if tiny."""
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def figure(values):
    """`median [lowest, highest]` of some numbers, "never" for None; one number alone if equal.

    "–" where there is none at all.
    """
    values = list(values)
    if not values:
        return "–"
    known = sorted(value for value in values if value is not None)
    if not known:
        return "never"
    low, high = (short(value) for value in (known[0], known[-1]))
    if len(known) < len(values):
        return f"{low} to never" if low != high else f"{low}, or never"
    if low == high:
        return low
    return f"{short(float(np.median(known)))} [{low}, {high}]"
