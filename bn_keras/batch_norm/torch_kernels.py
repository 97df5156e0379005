"""PyTorch's kernels for batch normalization, behind the contract of `functional`.

The only file with raw PyTorch. PyTorch's own batch normalization does the work wherever it can: it
is 1.5 to 2.8 times as fast as the same arithmetic in keras.ops (CPU, forward and backward). Two
things are done to x first; neither changes the result or any gradient:

- One of its own values is subtracted from each channel. PyTorch computes x * scale + shift and, for
  channels last, sums in float32 one value after the other: for 50,000 values of mean 1e6 and
  deviation 1 its mean is off by 45. After the subtraction only rounding is left.
- Whatever its rank and strides, it is viewed as (values, channels) or (batch, channels, values), in
  the order in which it lies in memory, so that nothing is copied.
"""

import math
from typing import Any, Callable, Tuple

import torch
from torch.autograd import forward_ad

# Up to this many values a channel, plain float32 sums over rows are good to 1e-6 of their size; at
# 800,000 values the variance is off by 1.5e-4. Longer sums are taken in blocks.
ONE_BLOCK = 2**12


def batch_norm(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, axis: int, epsilon: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training-mode batch normalization; derivatives of any order, backward and forward.

    Args:
        x: floating tensor of rank 2 or more, in any memory layout.
        gamma, beta: shape (channels,), float32 (float64 for float64 x).
        axis: the channel axis, not negative.
        epsilon: added to the variance.

    Returns:
        `(outputs, mean, variance)`: outputs in the shape, dtype and memory layout of x; mean and
        biased variance of shape (channels,) in gamma's dtype, without a gradient. An empty batch
        has mean and variance 0; where a channel has one value, the outputs are beta.
    """
    channels = x.shape[axis]
    n = x.numel() // max(channels, 1)
    if n < 2:
        return _too_few(x, gamma, beta, axis)
    # Any value near the others will do, and the first is at hand. Autograd takes it as a constant,
    # which is exact: batch normalization gives the same for x and for x - constant.
    first = [slice(None) if a == axis else slice(0, 1) for a in range(x.dim())]
    origin = x.detach()[tuple(first)].to(gamma.dtype)
    rows, restore = _as_rows(x - origin, axis)
    normalized = _Blocks.apply if _needs_blocks(rows, n, gamma, beta) else _native
    outputs, mean, variance = normalized(rows, gamma, beta, epsilon)
    return restore(outputs).to(x.dtype), mean.detach() + origin.reshape(-1), variance.detach()


def normalize(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    axis: int,
    epsilon: float,
) -> torch.Tensor:
    """Inference: gamma * (x - mean) / sqrt(variance + epsilon) + beta, in x's shape and dtype.

    Args:
        x, gamma, beta, axis, epsilon: as for `batch_norm`.
        mean, variance: shape (channels,), in gamma's dtype.
    """
    centered = x - _along(mean, x, axis)
    learned = torch.is_grad_enabled() and _requires_grad(x, gamma, beta, mean, variance)
    if learned and not _requires_grad(mean, variance):
        # Twice as fast with its backward pass as the ops below; alone it is slower than they are.
        rows, restore = _as_rows(centered, axis)
        zeros = torch.zeros_like(mean)
        outputs = restore(_kernel(rows, gamma, beta, zeros, variance, False, epsilon))
        return outputs.to(x.dtype)
    scale = gamma * torch.rsqrt(variance + epsilon)
    if axis == x.dim() - 1 and not learned and _only_backward(x, gamma, beta):
        # One pass through memory instead of two; on other axes it is slower than they are.
        with torch.no_grad():
            outputs = torch.addcmul(beta, centered, scale, out=centered)
    else:
        outputs = centered.mul_(_along(scale, x, axis)).add_(_along(beta, x, axis))
    return outputs.to(x.dtype)


def recomputing() -> bool:
    """Whether this call re-runs a forward pass for its activations (torch.utils.checkpoint).

    The evidence is that autograd is in a backward pass, which is when a checkpoint, and with it
    `keras.RematScope`, re-runs what it covers. A layer that is called afresh in a gradient hook
    looks the same. A compiled graph is traced once and never re-runs its Python code.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _too_few(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, axis: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batches with at most one value per channel, for which PyTorch has no variance."""
    # 0, or NaN where the value is not finite.
    nothing = x.to(gamma.dtype) - x
    outputs = nothing * _along(gamma, x, axis) + _along(beta, x, axis)
    others = [a for a in range(x.dim()) if a != axis]
    mean = x.detach().to(gamma.dtype).sum(others)
    return outputs.to(x.dtype), mean, nothing.detach().sum(others)


def _as_rows(
    x: torch.Tensor, axis: int
) -> Tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """A dense tensor as (values, channels) or (batch, channels, values), and the way back."""
    order = sorted(range(x.dim()), key=lambda a: -x.stride(a))
    moved = x.permute(order)
    channels = x.shape[axis]
    after = math.prod(moved.shape[order.index(axis) + 1:])
    rows = moved.reshape((-1, channels, after) if after > 1 else (-1, channels))

    def restore(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(moved.shape).permute([order.index(a) for a in range(x.dim())])

    return rows, restore


def _native(
    rows: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PyTorch's batch normalization."""
    channels = rows.shape[1]
    # The variance is to be had from moving statistics only: a momentum of 1 forgets the zeros.
    mean, variance = rows.new_zeros(channels), rows.new_zeros(channels)
    outputs = _kernel(rows, gamma, beta, mean, variance, True, epsilon)
    n = rows.numel() // channels
    return outputs, mean, variance * ((n - 1) / n)  # it comes Bessel-corrected


def _kernel(
    rows: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    training: bool,
    epsilon: float,
) -> torch.Tensor:
    cudnn = torch.backends.cudnn.enabled
    return torch.batch_norm(rows, gamma, beta, mean, variance, training, 1.0, epsilon, cudnn)


def _needs_blocks(rows: torch.Tensor, n: int, gamma: torch.Tensor, beta: torch.Tensor) -> bool:
    if rows.dim() > 2 or n <= ONE_BLOCK or rows.dtype != torch.float32:
        return False  # these kernels add up in float64
    if rows.device.type != "cpu":
        return False  # many threads, each with a short sum
    return _only_backward(rows, gamma, beta)


def _only_backward(*tensors: torch.Tensor) -> bool:
    """Whether no compiler, no transform of torch.func and no forward mode is at work.

    The fastest ways have no rules for these. Compiled kernels need no fastest way.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors)


class _Blocks(torch.autograd.Function):
    """Channels last, many values: PyTorch's sums over blocks of rows, everything else in two ops.

    (values, channels) is viewed as (values / blocks, blocks * channels): block b holds the rows
    b, b + blocks, b + 2 * blocks and so on, and has sums of its own, which are then added up.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float
    ) -> Any:
        n, channels = rows.shape
        blocks = _number_of_blocks(n, channels)
        means, variances = torch.batch_norm_update_stats(
            rows.reshape(-1, blocks * channels), None, None, 0.0
        )
        means, variances = means.reshape(blocks, channels), variances.reshape(blocks, channels)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(rows, gamma, mean, variance)
        scale = gamma * torch.rsqrt(variance + epsilon)
        return torch.addcmul(beta - mean * scale, rows, scale), mean, variance

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, *_: Any) -> Any:
        rows, gamma, mean, variance = ctx.saved_tensors
        n, channels = rows.shape
        if torch.is_grad_enabled():  # a second derivative: all that depends on x must show it
            centered = rows - rows.mean(0)
            inverse = torch.rsqrt(centered.square().mean(0) + ctx.epsilon)
            dbeta, dgamma = dy.sum(0), (dy * centered).sum(0) * inverse
            drows = gamma * inverse * (dy - (centered * (inverse * dgamma) + dbeta) / n)
            return drows, dgamma, dbeta, None
        inverse = torch.rsqrt(variance + ctx.epsilon)
        blocks = _number_of_blocks(n, channels)
        _, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy.reshape(-1, blocks * channels), rows.reshape(-1, blocks * channels),
            None, None, None, mean.repeat(blocks), inverse.repeat(blocks),
            True, ctx.epsilon, [False, True, True],
        )
        dgamma = dgamma.reshape(blocks, channels).sum(0)
        dbeta = dbeta.reshape(blocks, channels).sum(0)
        scale = gamma * inverse
        slope = scale * inverse * dgamma / -n
        drows = torch.addcmul(scale * dbeta / -n - slope * mean, rows, slope)
        return drows.addcmul_(dy, scale), dgamma, dbeta, None


def _number_of_blocks(n: int, channels: int) -> int:
    """A divisor of n: blocks of equal size. More sums than a first-level cache holds are slow."""
    most = max(1, min(256, 4096 // channels))
    return next(blocks for blocks in range(most, 0, -1) if n % blocks == 0)


def _requires_grad(*tensors: torch.Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _along(per_channel: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A (channels,) tensor reshaped so that it broadcasts along `axis` of x."""
    return per_channel.reshape([-1 if a == axis else 1 for a in range(x.dim())])
