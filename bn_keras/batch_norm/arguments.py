"""The settings that a batch normalization accepts: each function returns one as the layer keeps it.

All raise ValueError with the setting, the value that was received and what is expected.
"""

import numbers
from typing import Any, Optional

import numpy as np

FLOAT32_SMALLEST, FLOAT32_LARGEST = 1.1754944e-38, 3.4028235e38
ONE_VALUE = ("warn", "error", "ignore")


def number(name: str, value: Any, low: float, high: float) -> float:
    """A float from low to high."""
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not low <= found <= high:
        raise ValueError(f"BatchNorm: {name}={value!r}; expected {low:g} <= {name} <= {high:g}.")
    return found


def axis(value: Any) -> int:
    """One whole number, which may stand in a list or tuple."""
    axes = value if isinstance(value, (list, tuple)) else [value]
    try:
        if len(axes) == 1 and not isinstance(axes[0], bool) and int(axes[0]) == axes[0]:
            return int(axes[0])
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"BatchNorm: axis={value!r}; expected one whole number, or a list or tuple of one."
    )


def momentum(value: Any, debias: bool) -> Any:
    """A number from 0 to 1, None or a schedule; a debiased average takes a number only."""
    if debias and (value is None or callable(value)):
        raise ValueError(
            f"BatchNorm: debias=True with momentum={value!r}; expected a number as momentum."
        )
    if value is None or callable(value):
        return value
    return number("momentum", value, 0.0, 1.0)


def epsilon(value: Any) -> float:
    """0, or a number that float32 can hold."""
    found = number("epsilon", value, 0.0, FLOAT32_LARGEST)
    if 0 < found < FLOAT32_SMALLEST:
        raise ValueError(
            f"BatchNorm: epsilon={value!r} is 0 in float32; expected 0 or at least "
            f"{FLOAT32_SMALLEST:g}."
        )
    return found


def one_value(value: Any) -> str:
    """One of ONE_VALUE."""
    if value not in ONE_VALUE:
        raise ValueError(f"BatchNorm: one_value={value!r}; expected one of {', '.join(ONE_VALUE)}.")
    return value


def count(name: str, value: Any, of_what: str) -> Optional[int]:
    """A whole number of at least 1, or None."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1
    ):
        raise ValueError(
            f"BatchNorm: {name}={value!r}; expected a number of {of_what} of at least 1, or None."
        )
    return None if value is None else int(value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"BatchNorm: {name}={value!r}; expected True or False.")
    return bool(value)


def floating(dtype: str) -> str:
    """The name of a floating dtype."""
    if "float" not in dtype:
        raise ValueError(
            f"BatchNorm: dtype={dtype!r}; expected a floating dtype, such as 'float32' or "
            "'mixed_float16'."
        )
    return dtype
