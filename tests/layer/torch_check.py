"""PyTorch's kernels against the float64 reference and against Keras's arithmetic.

Run by `test_torch_kernels.py` in a process with KERAS_BACKEND=torch; prints how many checks it
made.
"""

import itertools

import keras
import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from bn_keras.batch_norm import reference, torch_kernels

SHAPES = [(6, 3), (4, 5, 3), (3, 4, 5, 3), (2, 3, 2, 4, 3)]
LONG = [((5000, 2), 1), ((4, 37, 41, 3), 3), ((3, 2, 50, 40), 1)]  # the first two go in blocks
OFFSETS = [(0, 1), (30, 0.1), (1013, 1), (1e4, 1)]
# Of the largest value. The reference computes in float64 too: at 1e4 it has 11 digits left.
DTYPES = {"float64": 1e-9, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
EPSILON = 1e-3


def data(shape, offset=0.0, deviation=1.0, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(offset, deviation, shape)
    return torch.tensor(values).to(getattr(torch, dtype))


def affine(channels, dtype="float32"):
    wide = torch.float64 if dtype == "float64" else torch.float32
    gamma = torch.linspace(0.5, 1.5, channels, dtype=wide).requires_grad_()
    return gamma, torch.linspace(-1, 1, channels, dtype=wide).requires_grad_()


def array(tensor):
    return tensor.detach().double().numpy()


def error(value, expected):
    """The largest error, relative to the largest value."""
    assert value.shape == expected.shape
    return np.abs(array(value) - expected).max() / max(np.abs(expected).max(), 1e-2)


def errors(function, x, axis):
    """Errors of outputs, variance and the three gradients; the mean's is in deviations."""
    dtype = str(x.dtype).removeprefix("torch.")
    x = x.detach().requires_grad_()
    gamma, beta = affine(x.shape[axis], dtype)
    dy = data(x.shape, dtype=dtype, seed=1)
    outputs, mean, variance = function(x, gamma, beta, axis, EPSILON)
    gradients = torch.autograd.grad(outputs, [x, gamma, beta], dy)
    assert outputs.dtype == x.dtype and mean.dtype == variance.dtype == gamma.dtype
    assert not mean.requires_grad and not variance.requires_grad
    expected, true_mean, true_variance = reference.forward(
        array(x), array(gamma), array(beta), axis=axis, epsilon=EPSILON
    )
    slopes = reference.backward(array(dy), array(x), array(gamma), axis=axis, epsilon=EPSILON)
    # The result of a float32 mean far from zero is the nearest float32.
    last_digit = np.abs(true_mean) * torch.finfo(mean.dtype).eps
    off = np.maximum(np.abs(array(mean) - true_mean) - last_digit, 0) / np.sqrt(true_variance)
    return [
        error(outputs, expected), off.max(), error(variance, true_variance),
        *(error(one, other) for one, other in zip(gradients, slopes, strict=True)),
    ]


def of_keras(x, gamma, beta, axis, epsilon):
    """What Keras's layer computes on PyTorch."""
    wide = keras.ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    mean, variance = keras.ops.moments(wide, axes=[a for a in range(x.dim()) if a != axis])
    outputs = keras.ops.batch_normalization(
        wide, mean, variance, axis, offset=beta, scale=gamma, epsilon=epsilon
    )
    return outputs.to(x.dtype), mean.detach(), variance.detach()


def check_against_the_reference():
    """Every rank, axis, dtype and distance from zero."""
    checks = 0
    cases = [(shape, axis) for shape in SHAPES for axis in range(1, len(shape))] + LONG
    for (shape, axis), (dtype, tolerance) in itertools.product(cases, DTYPES.items()):
        for offset, deviation in OFFSETS:
            if dtype in ("float16", "bfloat16") and offset > 30:
                continue  # these dtypes have no digits left for the deviation
            x = data(shape, offset, deviation, dtype)
            found = errors(torch_kernels.batch_norm, x, axis)
            assert max(found) < tolerance, (shape, axis, dtype, offset, found)
            checks += 1
    return checks


def check_far_from_zero_against_keras():
    """Never further from float64 than Keras's arithmetic."""
    checks = 0
    for (shape, axis), (offset, deviation) in itertools.product(
        [*LONG, ((64, 10), 1), ((16, 8, 8, 4), 3)], [*OFFSETS[1:], (1e6, 1)]
    ):
        x = data(shape, offset, deviation)
        ours, theirs = (errors(f, x, axis) for f in (torch_kernels.batch_norm, of_keras))
        for one, other in zip(ours, theirs, strict=True):
            assert one <= other + 2e-6 or np.isnan(other), (shape, offset, ours, theirs)
        assert max(ours) < 3e-6, (shape, offset, ours)
        checks += 1
    return checks


def check_long_sums():
    """200,000 values a channel: in one block, the variance would be off by 1e-4 of itself."""
    found = errors(torch_kernels.batch_norm, data((200_000, 2), 3), 1)
    assert max(found) < 2e-6, found
    return 1


def check_few_values():
    """Empty batches and one value per channel: beta, variance 0, gradients 0 (beta's: dy)."""
    for shape, axis in [((0, 3), 1), ((1, 3), 1), ((0, 4, 3), 2), ((1, 3, 1), 1), ((2, 0, 3), 2)]:
        for dtype in DTYPES:
            x = data(shape, 5, dtype=dtype).requires_grad_()
            gamma, beta = affine(3, dtype)
            outputs, mean, variance = torch_kernels.batch_norm(x, gamma, beta, axis, EPSILON)
            expected = torch_kernels._along(beta, x, axis).expand(shape).to(x.dtype)
            assert outputs.dtype == x.dtype and torch.equal(outputs, expected)
            first = array(x).reshape(-1) if x.numel() else np.zeros(3)
            assert np.array_equal(array(mean), first) and not array(variance).any()
            dx, dgamma, dbeta = torch.autograd.grad(outputs.sum(), [x, gamma, beta])
            assert not array(dx).any() and not array(dgamma).any()
            assert array(dbeta).tolist() == [x.numel() / 3] * 3
            evaluated = torch_kernels.normalize(x, mean, variance, gamma, beta, axis, EPSILON)
            assert evaluated.shape == shape
            torch.autograd.grad(evaluated.sum(), [x, gamma, beta])
    for value in (np.nan, np.inf):
        x = torch.tensor([[1.0, value]])
        _, _, variance = torch_kernels.batch_norm(x, *affine(2), 1, EPSILON)
        assert np.isfinite(array(variance)).tolist() == [True, False]
    return 22


def check_memory_layouts():
    """Outputs lie in memory as the inputs do, and views are normalized as their copies are."""
    x = data((4, 5, 6, 3), 2)
    views = [
        x.permute(0, 3, 1, 2), x.movedim(1, 3), x[:, ::2], x[:, :1].expand(4, 5, 6, 3),
        x.to(memory_format=torch.channels_last), x[:, :, :1],
    ]
    for view in views:
        for axis in range(4):
            assert max(errors(torch_kernels.batch_norm, view, axis)) < 3e-6, (view.shape, axis)
        outputs, *_ = torch_kernels.batch_norm(view, *affine(view.shape[3]), 3, EPSILON)
        if view.numel() == x.numel() and 0 not in view.stride():
            assert outputs.stride() == view.stride()
    return len(views)


def check_second_derivatives():
    """Backward through backward, against central differences; blocks and PyTorch's own."""
    for dtype, shape, axis in [("float64", (5, 3, 2), 1), ("float64", (5, 3), 1)]:
        x = data(shape, 3, dtype=dtype).requires_grad_()
        gamma, beta = affine(3, dtype)
        assert torch.autograd.gradgradcheck(
            lambda *given: torch_kernels.batch_norm(*given, axis, EPSILON)[0], (x, gamma, beta)
        )
    inputs = (data((12, 3), 1, dtype="float64").requires_grad_(), *affine(3, "float64"))
    blocks = torch_kernels._Blocks.apply
    assert torch.autograd.gradcheck(lambda *given: blocks(*given, EPSILON)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda *given: blocks(*given, EPSILON)[0], inputs)
    mean, variance = torch.tensor([[1.0, 2, 3], [1, 2, 4]], dtype=torch.float64)
    for statistics_learn in (False, True):
        given = (*inputs, mean, variance.requires_grad_(statistics_learn))

        def evaluate(x, gamma, beta, mean, variance):
            return torch_kernels.normalize(x, mean, variance, gamma, beta, 1, EPSILON)

        assert torch.autograd.gradcheck(evaluate, given)
        assert torch.autograd.gradgradcheck(evaluate, given)
    return 6


def check_transforms():
    """Forward mode, torch.func and torch.compile give what autograd gives, blocks or not."""
    for shape in [(12, 3), (5000, 3)]:
        x, tangent, weight = data(shape), data(shape, seed=1), data(shape, seed=2)
        gamma, beta = (tensor.detach() for tensor in affine(3))

        def loss(x):
            outputs, *_ = torch_kernels.batch_norm(x, gamma, beta, 1, EPSILON)
            return (outputs * weight).sum()

        def evaluated(x):
            outputs = torch_kernels.normalize(x, beta, gamma, gamma, beta, 1, EPSILON)
            return (outputs * weight).sum()

        def slope(function):
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(function(leaf), leaf)[0]

        expected = slope(loss)
        torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(slope(compiled), expected, rtol=1e-4, atol=1e-5)
        _, forward = torch.func.jvp(loss, (x,), (tangent,))
        torch.testing.assert_close(forward, (expected * tangent).sum(), rtol=1e-3, atol=1e-3)
        batch = torch.stack([x, 2 * x])
        torch.testing.assert_close(
            torch.vmap(loss)(batch), torch.stack([loss(one) for one in batch]),
            rtol=1e-4, atol=1e-3,
        )
        with torch.no_grad():
            _, forward = torch.func.jvp(evaluated, (x,), (tangent,))
            torch.vmap(evaluated)(batch)
        torch.testing.assert_close(
            forward, (slope(evaluated) * tangent).sum(), rtol=1e-3, atol=1e-3
        )
    return 10


def check_inference():
    """`normalize` with and without gradients, near zero and far from it."""
    checks = 0
    for shape in SHAPES:
        for axis, (offset, deviation) in itertools.product(range(1, len(shape)), OFFSETS):
            x = data(shape, offset, deviation).requires_grad_()
            gamma, beta = affine(shape[axis])
            mean = torch.full((shape[axis],), float(offset))
            variance = torch.full((shape[axis],), float(deviation) ** 2)
            given = (x, mean, variance, gamma, beta, axis, EPSILON)
            expected = reference.inference(
                array(x), *map(array, (mean, variance, gamma, beta)), axis=axis, epsilon=EPSILON
            )
            assert error(torch_kernels.normalize(*given), expected) < 1e-6
            with torch.no_grad():
                assert error(torch_kernels.normalize(*given), expected) < 1e-6
            checks += 1
    for dtype in ("float16", "bfloat16", "float64"):
        x = data((4, 3), dtype=dtype)
        gamma, beta = affine(3, dtype)
        statistics = torch.zeros_like(beta), torch.ones_like(beta)
        outputs = torch_kernels.normalize(x, *statistics, gamma, beta, 1, EPSILON)
        assert outputs.dtype == x.dtype
        expected = reference.inference(
            array(x), *map(array, (*statistics, gamma, beta)), epsilon=EPSILON
        )
        assert error(outputs, expected) < DTYPES[dtype]
        checks += 1
    return checks


def check_recomputing():
    """True in the second of two forward passes under a checkpoint, False in all others."""
    seen = []

    def watched(x):
        seen.append(torch_kernels.recomputing())
        return x.sin()

    class Watched(keras.layers.Layer):
        def call(self, inputs):
            return watched(inputs)

    with keras.RematScope(mode="full"):
        layer = Watched()
    x = torch.ones(3, requires_grad=True)
    for run, expected in (
        (watched, [False]),
        (layer, [False, True]),
        (lambda x: checkpoint(watched, x, use_reentrant=True), [False, True]),
        (lambda x: checkpoint(watched, x, use_reentrant=False), [False, True]),
    ):
        seen.clear()
        run(x).sum().backward()
        assert seen == expected, seen
    seen.clear()
    with torch.no_grad():
        watched(x)
    assert seen == [False]
    return 5


if __name__ == "__main__":
    total = (
        check_against_the_reference() + check_far_from_zero_against_keras() + check_long_sums()
        + check_few_values() + check_memory_layouts() + check_second_derivatives()
        + check_transforms() + check_inference() + check_recomputing()
    )
    print(keras.backend.backend(), total)
