"""`quadratic`: a noisy parabola, a regression that a badly initialized net cannot learn."""

import dataclasses
from typing import Optional, Union

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS


@DATASETS.register("quadratic")
def quadratic_points(argument: str, data_dir: Optional[str]) -> Source:
    """2,000 points to train on, 200 to validate on and 200 to test on, the same in every run.

    An example's "image" is x, of shape (1,), and its "label" the number y.
    """
    if argument:
        raise DataError(f"dataset 'quadratic:{argument}': expected 'quadratic' alone.")
    # A draw whose test points have the variance of the distribution, 685, within some percent.
    points = quadratic(3, train_size=2200)
    return Source(
        Split(points.x_train, points.y_train[:, 0]), Split(points.x_test, points.y_test[:, 0]),
        classes=1, ordered=False,
    )


@dataclasses.dataclass(frozen=True)
class Points:
    """Points to train on and to test on.

    Attributes:
        x_train, y_train: float32, shape (train_size, 1).
        x_test, y_test: float32, shape (test_size, 1).
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.float32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.float32]


def quadratic(
    seed: Union[int, np.random.Generator], train_size: int = 2000, test_size: int = 200
) -> Points:
    """Draws x uniformly from [-7, 10) and y = x² - 5 + noise, the noise normal with deviation 2.

    Args:
        seed: whole number, or a numpy.random.Generator to go on with; either fixes the draw.
        train_size, test_size: how many points.

    Returns:
        `Points`.
    """
    rng = np.random.default_rng(seed)

    def draw(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = rng.uniform(-7, 10, (size, 1))
        y = x**2 - 5 + rng.normal(0, 2, (size, 1))
        return x.astype(np.float32), y.astype(np.float32)

    return Points(*draw(train_size), *draw(test_size))
