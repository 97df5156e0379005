"""Batch renormalization: training that uses the moving statistics, too.

Ioffe (2017), "Batch Renormalization: Towards Reducing Minibatch Dependence", algorithm 1:

    r = clip(sigma_batch / sigma_moving)        d = clip((mean_batch - mean_moving) / sigma_moving)
    y = (x_hat * r + d) * gamma + beta

with r and d held constant in the backward pass.
"""

from typing import Any, Dict, List, Mapping, Optional, Tuple

from keras import ops

from bn_keras.batch_norm import functional
from bn_keras.batch_norm.functional import Tensor
from bn_keras.batch_norm.population import Population

CLIPPING_KEYS = ("rmax", "rmin", "dmax")


def check_clipping(clipping: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """Returns the clipping values as a dict.

    Raises:
        ValueError: an unknown key, a value that is no number, rmax below rmin, or a negative dmax.
            The texts begin as Keras's do.
    """
    clipping = dict(clipping or {})
    if set(clipping) - set(CLIPPING_KEYS):
        raise ValueError(
            f"Received invalid keys for `renorm_clipping` argument: {clipping}. Supported values: "
            f"{list(CLIPPING_KEYS)}."
        )
    for key, value in clipping.items():
        if value is not None and (isinstance(value, str) or not value == value):
            raise ValueError(f"BatchNorm: renorm_clipping has {key}={value!r}; expected a number.")
    rmax, rmin, dmax = (clipping.get(key) for key in CLIPPING_KEYS)
    if rmax is not None and rmin is not None and rmax < rmin:
        raise ValueError(
            "rmax should be greater than rmin in the `renorm_clipping` argument. Received: "
            f"rmax={rmax}, rmin={rmin}."
        )
    if dmax is not None and dmax < 0:
        raise ValueError(
            f"dmax should be non-negative in the `renorm_clipping` argument. Received: dmax={dmax}."
        )
    return clipping


class RenormPopulation(Population):
    """The moving statistics of batch renormalization, as Keras's layer keeps them.

    Training uses `renorm_mean` and `renorm_stddev`, with a momentum of their own. For inference,
    the standard deviation is averaged, and the moving variance derived from it.

    Args:
        *args, **kwargs: as for Population.
        epsilon: added to the variance.
        renorm_momentum: weight of the old statistics that training uses.
    """

    def __init__(self, *args: Any, epsilon: float, renorm_momentum: float, **kwargs: Any) -> None:
        self._epsilon, self._renorm_momentum = epsilon, renorm_momentum
        super().__init__(*args, **kwargs)

    def _statistics(self) -> List[Any]:
        def variance_root(shape: Any, dtype: Any = None) -> Tensor:
            # A clone: a seeded initializer object may not be drawn from twice.
            return ops.sqrt(self._variance_initializer.clone()(shape, dtype=dtype))

        statistics = super()._statistics()
        self.stddev = self._statistic("moving_stddev", variance_root)
        self.renorm_mean = self._statistic("renorm_mean", self._mean_initializer.clone())
        self.renorm_stddev = self._statistic("renorm_stddev", variance_root)
        return [*statistics, self.stddev, self.renorm_mean, self.renorm_stddev]

    def correct(
        self,
        x_hat: Tensor,
        mean: Tensor,
        variance: Tensor,
        gamma: Optional[Tensor],
        beta: Optional[Tensor],
        axis: int,
        clipping: Mapping[str, Any],
    ) -> Tensor:
        """Algorithm 1 behind x_hat: (x_hat * r + d) * gamma + beta.

        Args:
            x_hat: the batch, normalized.
            mean, variance: of the batch, shape (channels,).
            gamma, beta: shape (channels,); None means ones and zeros.
            axis: the channel axis.
            clipping: dict of rmax, rmin and dmax, numbers or scalar tensors; None means no bound.
        """
        r, d = self._correction(mean, ops.sqrt(variance + self._epsilon), clipping)
        gamma = ops.ones_like(r) if gamma is None else ops.cast(gamma, r.dtype)
        beta = 0 if beta is None else ops.cast(beta, r.dtype)
        scale = functional.broadcast(r * gamma, x_hat, axis)
        return x_hat * scale + functional.broadcast(d * gamma + beta, x_hat, axis)

    def _correction(
        self, mean: Tensor, stddev: Tensor, clipping: Mapping[str, Any]
    ) -> Tuple[Tensor, Tensor]:
        """r and d, each of shape (channels,), without a gradient."""
        floor = ops.sqrt(ops.cast(self._epsilon, stddev.dtype))
        moving_stddev = ops.maximum(ops.cast(self.renorm_stddev, stddev.dtype), floor)
        r = stddev / moving_stddev
        d = (mean - ops.cast(self.renorm_mean, mean.dtype)) / moving_stddev
        rmax, rmin, dmax = (
            None if clipping.get(key) is None else ops.cast(clipping[key], r.dtype)
            for key in CLIPPING_KEYS
        )
        if rmin is not None:
            r = ops.maximum(r, rmin)
        if rmax is not None:
            r = ops.minimum(r, rmax)
        if dmax is not None:
            d = ops.clip(d, -dmax, dmax)
        return ops.stop_gradient(r), ops.stop_gradient(d)

    def _move(self, mean: Tensor, variance: Tensor, momentum: Any, accepted: Any) -> None:
        rate = self._rate(momentum, accepted)
        stddev = ops.sqrt(variance + self._epsilon)
        renorm_rate = self._rate(self._renorm_momentum, accepted)
        functional.move(self.renorm_mean, mean, renorm_rate)
        functional.move(self.renorm_stddev, stddev, renorm_rate)
        functional.move(self.mean, mean, rate)
        functional.move(self.stddev, stddev, rate)
        squared = ops.square(ops.stop_gradient(self.stddev))
        functional.move(
            self.variance, ops.relu(squared - self._epsilon), ops.cast(accepted, rate.dtype)
        )
