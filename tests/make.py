"""Factories that several test files share: numbers, ways to run a function, where things are."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent

# How a function of tensors is run.
MODES: dict[str, Callable[..., Any]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def normal(
    shape: Sequence[int], mean: float = 0.0, deviation: float = 1.0, seed: int = 0,
    dtype: str = "float32",
) -> np.ndarray:
    """Normally distributed numbers, the same for the same arguments.

    Args:
        shape: of the array.
        mean, deviation: of the distribution.
        seed: other seeds give other numbers.
        dtype: of the array.
    """
    return np.random.default_rng(seed).normal(mean, deviation, shape).astype(dtype)
