"""Ghost batch normalization: statistics over small parts of a large batch.

Hoffer, Hubara & Soudry (2017), "Train longer, generalize better", algorithm 1. A large batch loses
the noise that small batches' statistics bring; ghosts keep it.
"""

from typing import Any, Optional, Sequence

import keras
from keras import ops

from bn_keras.batch_norm import functional
from bn_keras.batch_norm.functional import Count, Tensor
from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.registry import NORMALIZERS


@keras.saving.register_keras_serializable(package="bn_keras")
class GhostBatchNorm(BatchNorm):
    """BatchNorm that in training normalizes each `virtual_batch_size` examples by themselves.

    >>> import numpy as np
    >>> layer = GhostBatchNorm(virtual_batch_size=2)
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]], "float32")
    >>> np.round(layer(x, training=True).numpy().ravel(), 2).tolist()
    [-1.0, 1.0, -1.0, 1.0]

    The moving statistics take the mean over all examples, and the variance around each ghost's own
    mean. Inference is BatchNorm's.

    Args:
        virtual_batch_size: consecutive examples in a ghost; the last ghost also takes what is left
            over. None makes one ghost of the whole batch. Each replica of `tf.distribute` has
            ghosts of its own.
        *args, **kwargs: as for BatchNorm; no `renorm`, no `synchronized`.

    Raises:
        ValueError: a size below 1, axis 0, or settings that ghosts do not go with.
    """

    def __init__(
        self, *args: Any, virtual_batch_size: Optional[int] = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if virtual_batch_size is not None and virtual_batch_size < 1:
            raise ValueError(
                f"GhostBatchNorm: virtual_batch_size={virtual_batch_size}; expected a number of "
                "examples of at least 1, or None."
            )
        if virtual_batch_size is not None and (self.renorm or self.synchronized):
            raise ValueError(
                f"GhostBatchNorm: renorm={self.renorm}, synchronized={self.synchronized} with "
                f"virtual_batch_size={virtual_batch_size}; expected neither of them."
            )
        self.virtual_batch_size = virtual_batch_size

    def build(self, input_shape: Sequence[Optional[int]]) -> None:
        super().build(input_shape)
        if self.virtual_batch_size is not None and self.axis % len(input_shape) == 0:
            raise ValueError(
                f"GhostBatchNorm: axis={self.axis} of input shape {input_shape}; expected another "
                "axis than 0, along which the ghosts lie."
            )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "virtual_batch_size": self.virtual_batch_size}

    def _freedom(self, x: Tensor, count: Count) -> Count:
        # Each ghost has a mean of its own.
        if self.virtual_batch_size is None:
            return super()._freedom(x, count)
        return count - _ghosts(x, self.virtual_batch_size)

    def _normalize_batch(
        self, x: Tensor, mask: Optional[Tensor], count: Count
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = self.virtual_batch_size
        if size is None:
            return super()._normalize_batch(x, mask, count)
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        sums = _GhostSums(wide, self.axis, mask, size, _ghosts(x, size))
        n = sums.total(sums.kept(ops.ones_like(wide)))
        centered, mean, variance = functional.standardize(wide, sums, n)
        outputs = functional.affine(
            centered, ops.rsqrt(variance + self.epsilon), self.gamma, self.beta, sums
        )
        share = n / ops.maximum(ops.sum(n, 0), 1)
        moments = (ops.stop_gradient(ops.sum(share * value, 0)) for value in (mean, variance))
        return ops.cast(outputs, x.dtype), *moments


def _ghosts(x: Tensor, size: int) -> Count:
    """How many ghosts there are: an int where the shape tells, as JAX needs it."""
    rows = ops.shape(x)[0]
    if isinstance(rows, int):
        return max(rows // size, 1)
    return ops.maximum(rows // size, 1)


class _GhostSums(functional.Sums):
    """Sums over each ghost by itself, of shape (ghosts, channels)."""

    def __init__(
        self, x: Tensor, axis: int, mask: Optional[Tensor], size: int, ghosts: Count
    ) -> None:
        super().__init__(x, axis, mask=mask)
        self._ghosts = ghosts
        self._positions = [a for a in self.others if a]
        rows = ops.arange(ops.shape(x)[0])
        self._ghost_of_row = ops.minimum(rows // size, ghosts - 1)

    def total(self, values: Tensor) -> Tensor:
        sums = ops.sum(values, self._positions)
        return ops.segment_sum(sums, self._ghost_of_row, self._ghosts)

    def spread(self, per_channel: Tensor) -> Tensor:
        shape = [-1] + [1] * (len(self.x.shape) - 1)
        shape[self.axis] = self.x.shape[self.axis]
        return ops.reshape(ops.take(per_channel, self._ghost_of_row, axis=0), shape)


@NORMALIZERS.register("ghost")
def ghost(name: str, *, momentum: float, epsilon: float, dtype: str) -> keras.Layer:
    """Ghosts of 16 examples: four in the default batch of 64."""
    return GhostBatchNorm(
        virtual_batch_size=16, momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )
