"""The oracle itself, against finite differences and by hand."""

import numpy as np
import pytest

from bn_keras.batch_norm import reference


def test_a_batch_computed_by_hand():
    y, mean, variance = reference.forward(np.array([[1.0], [3.0]]), [2.0], [10.0], epsilon=0.0)
    assert mean.tolist() == [2.0] and variance.tolist() == [1.0]
    assert y.ravel().tolist() == [8.0, 12.0]


def test_moving_average_by_hand():
    assert reference.moving_average(4.0, 8.0, momentum=0.75) == 5.0


def test_masked_positions_do_not_count_but_are_normalized():
    x = np.array([[1.0], [3.0], [100.0]])
    y, mean, variance = reference.forward(x, epsilon=0.0, mask=[True, True, False])
    assert (mean[0], variance[0]) == (2.0, 1.0)
    assert y[2, 0] == 98.0


@pytest.mark.parametrize("axis", [1, 0])
def test_a_mask_may_tell_channels_apart(axis):
    x = np.array([[1.0, 5.0], [3.0, 7.0], [100.0, 9.0]])
    mask = np.array([[True, False], [True, True], [False, True]])
    if axis == 0:
        x, mask = x.T, mask.T
    _, mean, variance = reference.forward(x, mask=mask, axis=axis)
    assert mean.tolist() == [2.0, 8.0] and variance.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", ["whole", "masked alike", "masked apart"])
def test_backward_matches_finite_differences(axis, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (4, 3, 5))
    channels = x.shape[axis]
    gamma, beta = rng.normal(size=channels), rng.normal(size=channels)
    dy = rng.normal(size=x.shape)
    shapes = {"masked alike": np.delete(x.shape, axis), "masked apart": x.shape}
    mask = rng.random(shapes[masked]) < 0.7 if masked in shapes else None
    arguments = {"x": x, "gamma": gamma, "beta": beta}

    def loss(**changed):
        y, _, _ = reference.forward(**{**arguments, **changed}, axis=axis, mask=mask)
        return (dy * y).sum()

    gradients = dict(
        zip(("x", "gamma", "beta"), reference.backward(dy, x, gamma, axis=axis, mask=mask))
    )
    step = 1e-6
    for name, value in arguments.items():
        numeric = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            high, low = value.copy(), value.copy()
            high[index] += step
            low[index] -= step
            numeric[index] = (loss(**{name: high}) - loss(**{name: low})) / (2 * step)
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-6, atol=1e-7)
