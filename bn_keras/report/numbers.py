"""Numbers as text: one way for shares, one for everything else, one for several of them."""

import math
import re
from typing import Iterable, Optional

import numpy as np


def share(value: float, digits: int = 3) -> str:
    """A share of 1 without its leading zero: .977; exactly 0 and 1 are written so."""
    if value in (0, 1):
        return f"{value:g}"
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def number(value: float) -> str:
    """A number in three digits, as tables show it: .953, 2.4, 836, 12,750; 5e-5 if tiny."""
    if value in (0, 1, -1):
        return f"{value:g}".replace("-", "−")
    if abs(value) < 0.0005:
        text = _short_exponent(f"{value:.0e}")
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) < 1:
        text = f"{value:.3f}".replace("0.", ".", 1)
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−", 1) if value < 0 else text


def chosen(value: float) -> str:
    """A number that somebody chose, in the digits that it was written with: .1, −.02, 15,001."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,g}"
    text = _short_exponent(re.sub(r"^(-?)0\.", r"\1.", text))
    return text.replace("-", "−", 1) if value < 0 else text


def _short_exponent(text: str) -> str:
    """5e-5 in place of 5e-05."""
    return re.sub(r"e([+-])0+", r"e\1", text)


def difference(value: float) -> str:
    """A number with its sign: +.853, −.002, 0."""
    return ("+" if value > 0 else "") + number(value)


def spread(
    values: Iterable[Optional[float]], missing: float = math.nan, absent: str = "no value"
) -> str:
    """`median [lowest, highest]` of a number a seed; one number alone where all are equal.

    Args:
        values: None for a run that never got the number: it diverged, or did not reach the target.
        missing: what a None counts as in the median, such as infinity for steps to a target; by
            default it is left out. Either way the text ends with how many have the number.
        absent: the word for a median that is infinite, and for nothing but None.

    Returns:
        The text; "–" where there is no value and no None either.
    """
    found = list(values)
    known = sorted(value for value in found if value is not None)
    if not known:
        return absent if found else "–"
    counted = known if math.isnan(missing) else known + [missing] * (len(found) - len(known))
    low, high = number(known[0]), number(known[-1])
    median = float(np.median(counted))
    middle = number(median) if math.isfinite(median) else absent
    text = low if low == high == middle else f"{middle} [{low}, {high}]"
    return text if len(known) == len(found) else f"{text} ({len(known)} of {len(found)})"


def p_value(value: float) -> str:
    """A probability for the end of a sentence: = .031, < .001."""
    return "< .001" if value < 0.001 else f"= {share(value)}"


def count(total: int, noun: str) -> str:
    """A number with its noun: 1 seed, 6 seeds."""
    return f"{total} {noun}" if total == 1 else f"{total} {noun}s"
