"""Points on a noisy parabola: a regression that a net with a bad initialization cannot learn.

Not a dataset of images, so no `--dataset`: a study calls `quadratic` itself.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Points:
    """Points to train on and to test on.

    Attributes:
        x_train, y_train: float32, shape (train_size, 1).
        x_test, y_test: float32, shape (test_size, 1).
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def quadratic(seed, train_size=2000, test_size=200):
    """Draws x uniformly from [-7, 10) and y = x² - 5 + noise, the noise normal with deviation 2.

    Args:
        seed: whole number, or a numpy.random.Generator to go on with; either fixes the draw.
        train_size, test_size: how many points.

    Returns:
        `Points`.
    """
    rng = np.random.default_rng(seed)

    def draw(size):
        x = rng.uniform(-7, 10, (size, 1))
        y = x**2 - 5 + rng.normal(0, 2, (size, 1))
        return x.astype(np.float32), y.astype(np.float32)

    return Points(*draw(train_size), *draw(test_size))
