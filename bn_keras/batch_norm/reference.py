"""Batch normalization in NumPy float64: the equations to read, and the oracle of the tests.

Nothing here is shared with the layer that it judges. Ioffe & Szegedy (2015), algorithm 1, for one
channel with n values x in the batch:

    mean     = (1/n) sum x
    variance = (1/n) sum (x - mean)^2
    x_hat    = (x - mean) / sqrt(variance + epsilon)
    y        = gamma * x_hat + beta

For an input of any rank, every axis but `axis` is averaged over. With a mask, n counts the values
that are kept; all values are normalized, also those that did not count.
"""

from typing import Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike


def forward(
    x: ArrayLike,
    gamma: Optional[ArrayLike] = None,
    beta: Optional[ArrayLike] = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Optional[ArrayLike] = None,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training mode: normalizes with the statistics of this batch.

    Args:
        x: array of any rank.
        gamma: scale, shape (channels,); None means ones.
        beta: offset, shape (channels,); None means zeros.
        axis: the channel axis.
        epsilon: added to the variance.
        mask: boolean, of x's shape, or that without the channel axis; True counts.

    Returns:
        `(y, mean, variance)`: y like x, mean and (biased) variance of shape (channels,).
    """
    rows, keep, channels_last = _as_rows(x, axis, mask)
    mean, variance, _ = _moments(rows, keep)
    y = _affine((rows - mean) / np.sqrt(variance + epsilon), gamma, beta)
    return _from_rows(y, channels_last, axis), mean, variance


def inference(
    x: ArrayLike,
    mean: ArrayLike,
    variance: np.ndarray,
    gamma: Optional[ArrayLike] = None,
    beta: Optional[ArrayLike] = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
) -> np.ndarray:
    """Inference mode: normalizes with population statistics (algorithm 2, step 11)."""
    rows, _, channels_last = _as_rows(x, axis, None)
    y = _affine((rows - mean) / np.sqrt(np.asarray(variance) + epsilon), gamma, beta)
    return _from_rows(y, channels_last, axis)


def fold(
    mean: ArrayLike,
    variance: np.ndarray,
    gamma: Optional[ArrayLike] = None,
    beta: Optional[ArrayLike] = None,
    *,
    epsilon: float = 1e-3,
) -> Tuple[np.ndarray, np.ndarray]:
    """Inference as one multiplication and one addition a value: y = x * factor + shift.

    Args:
        mean, variance, gamma, beta, epsilon: as given to `inference`.

    Returns:
        `(factor, shift)`, each of shape (channels,).
    """
    factor = _affine(1 / np.sqrt(np.asarray(variance, np.float64) + epsilon), gamma, None)
    return factor, _affine(-np.asarray(mean, np.float64) * factor, None, beta)


def backward(
    dy: ArrayLike,
    x: ArrayLike,
    gamma: Optional[ArrayLike] = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Optional[ArrayLike] = None,
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of a loss through `forward`, by the chain rule of section 3, step by step.

    Args:
        dy: gradient of the loss with respect to y, like x.
        x, gamma, axis, epsilon, mask: as given to `forward`.

    Returns:
        `(dx, dgamma, dbeta)`.
    """
    rows, keep, channels_last = _as_rows(x, axis, mask)
    dy_rows, _, _ = _as_rows(dy, axis, None)
    counted = keep.astype(np.float64)
    mean, variance, n = _moments(rows, keep)
    centered = rows - mean
    inverse = 1 / np.sqrt(variance + epsilon)

    dbeta = dy_rows.sum(axis=0)
    dgamma = (dy_rows * centered * inverse).sum(axis=0)
    dx_hat = dy_rows if gamma is None else dy_rows * np.asarray(gamma, np.float64)
    dvariance = (dx_hat * centered).sum(axis=0) * -0.5 * inverse**3
    dmean = -(dx_hat * inverse).sum(axis=0) + dvariance * -2 * (counted * centered).sum(axis=0) / n
    dx = dx_hat * inverse + counted * (dvariance * 2 * centered + dmean) / n
    return _from_rows(dx, channels_last, axis), dgamma, dbeta


def moving_average(moving: ArrayLike, batch_value: ArrayLike, momentum: float) -> np.ndarray:
    """One update of a population statistic: an exponential moving average, as Keras has it."""
    return momentum * np.asarray(moving, np.float64) + (1 - momentum) * np.asarray(batch_value)


def _as_rows(
    x: ArrayLike, axis: int, mask: Optional[ArrayLike]
) -> Tuple[np.ndarray, np.ndarray, Tuple[int, ...]]:
    """x as (values, channels) in float64, which of them count, and the shape to go back to."""
    moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    if mask is None:
        keep = np.ones(rows.shape, bool)
    elif np.ndim(mask) == moved.ndim:
        keep = np.moveaxis(np.asarray(mask, bool), axis, -1).reshape(rows.shape)
    else:
        keep = np.broadcast_to(np.asarray(mask, bool).reshape(-1, 1), rows.shape)
    return rows, keep, moved.shape


def _moments(rows: np.ndarray, keep: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of what counts in each channel, and how many values these are."""
    mean = rows.mean(axis=0, where=keep)
    return mean, ((rows - mean) ** 2).mean(axis=0, where=keep), keep.sum(axis=0)


def _from_rows(rows: np.ndarray, channels_last: Tuple[int, ...], axis: int) -> np.ndarray:
    return np.moveaxis(rows.reshape(channels_last), -1, axis)


def _affine(x_hat: np.ndarray, gamma: Optional[ArrayLike], beta: Optional[ArrayLike]) -> np.ndarray:
    if gamma is not None:
        x_hat = x_hat * np.asarray(gamma, np.float64)
    return x_hat if beta is None else x_hat + np.asarray(beta, np.float64)
