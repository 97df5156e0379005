"""Ghost batch normalization: statistics over small parts of a large batch.

Hoffer, Hubara & Soudry (2017), "Train longer, generalize better", algorithm 1. A large batch loses
the noise that small batches' statistics bring; ghosts keep it.
"""

import keras
from keras import ops

from bn_keras.batch_norm import functional
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

    def __init__(self, *args, virtual_batch_size=None, **kwargs):
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

    def build(self, input_shape):
        super().build(input_shape)
        if self.virtual_batch_size is not None and self.axis % len(input_shape) == 0:
            raise ValueError(
                f"GhostBatchNorm: axis={self.axis} of input shape {input_shape}; expected another "
                "axis than 0, along which the ghosts lie."
            )

    def get_config(self):
        return {**super().get_config(), "virtual_batch_size": self.virtual_batch_size}

    def _count(self, inputs, mask):
        count = super()._count(inputs, mask)
        if self.virtual_batch_size is None or mask is not None:
            return count
        if isinstance(count, int):
            rows = inputs.shape[0]
            return count // max(rows, 1) * min(rows, self.virtual_batch_size)
        rows = ops.shape(inputs)[0]
        return count // ops.maximum(rows, 1) * ops.minimum(rows, self.virtual_batch_size)

    def _normalize_batch(self, inputs, mask, count):
        if self.virtual_batch_size is None:
            return super()._normalize_batch(inputs, mask, count)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        axis = self.axis % len(x.shape)
        positions = [a for a in range(1, len(x.shape)) if a != axis]
        rows = ops.shape(x)[0]
        ghosts = ops.maximum(rows // self.virtual_batch_size, 1)
        if isinstance(rows, int):  # a number of segments that JAX can compile
            ghosts = max(rows // self.virtual_batch_size, 1)
        ghost_of_row = ops.minimum(ops.arange(rows) // self.virtual_batch_size, ghosts - 1)
        keep = ops.ones_like(x, "bool")
        if mask is not None:
            keep = ops.logical_and(keep, ops.expand_dims(ops.cast(mask, "bool"), axis))

        def sums(values):
            """(rows, …, channels, …) to (ghosts, channels)."""
            kept = ops.where(keep, values, ops.zeros_like(values))
            return ops.segment_sum(ops.sum(kept, positions), ghost_of_row, ghosts)

        def at_rows(per_ghost):
            """(ghosts, channels) to what broadcasts over the inputs."""
            shape = [-1] + [1] * (len(x.shape) - 1)
            shape[axis] = x.shape[axis]
            return ops.reshape(ops.take(per_ghost, ghost_of_row, axis=0), shape)

        n = sums(ops.ones_like(x))
        mean = sums(x) / ops.maximum(n, 1)
        centered = x - at_rows(mean)
        squares = sums(ops.square(centered))
        scale = ops.rsqrt(squares / ops.maximum(n, 1) + self.epsilon)
        if self.gamma is not None:
            scale = scale * ops.cast(self.gamma, x.dtype)
        outputs = centered * at_rows(scale)
        if self.beta is not None:
            outputs = outputs + functional.broadcast(ops.cast(self.beta, x.dtype), x, axis)
        total = ops.sum(n, 0)
        whole = ops.maximum(total, 1)
        freedom = total - ops.cast(ghosts, x.dtype)  # each ghost has a mean of its own
        variance = self._estimate(ops.sum(squares, 0) / whole, total, freedom)
        return (
            ops.cast(outputs, inputs.dtype),
            ops.stop_gradient(ops.sum(mean * n, 0) / whole),
            ops.stop_gradient(variance),
        )


@NORMALIZERS.register("ghost")
def ghost(channels, name, *, momentum, epsilon, dtype):
    """Ghosts of 16 examples: four in the default batch of 64."""
    return GhostBatchNorm(
        virtual_batch_size=16, momentum=momentum, epsilon=epsilon, name=name, dtype=dtype
    )
