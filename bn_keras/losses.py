"""Losses over logits: `(labels, logits) -> one loss an example`."""

from typing import Any

import keras
from keras import ops

from bn_keras.registry import LOSSES


@LOSSES.register("sigmoid")
def sigmoid(labels: Any, logits: Any) -> Any:
    """Sigmoid cross entropy against one-hot labels, the mean over the classes.

    Args:
        labels: class numbers, shape (batch,), integers.
        logits: shape (batch, classes).
    """
    one_hot = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return keras.losses.binary_crossentropy(one_hot, logits, from_logits=True)


@LOSSES.register("softmax")
def softmax(labels: Any, logits: Any) -> Any:
    """Softmax cross entropy; arguments as for `sigmoid`."""
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


@LOSSES.register("clipped_softmax")
def clipped_softmax(labels: Any, logits: Any) -> Any:
    """Softmax, then the logarithm of what is left after clipping at 1e-10; arguments as above.

    Where the right class gets less than that, the gradient is 0: the example teaches nothing.
    """
    probabilities = ops.clip(ops.softmax(logits), 1e-10, 1.0)
    one_hot = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -ops.sum(one_hot * ops.log(probabilities), -1)


@LOSSES.register("squared", numbers=True)
def squared(targets: Any, outputs: Any) -> Any:
    """Squared error, the mean over all but the batch axis.

    Args:
        targets: numbers, shape (batch, ...).
        outputs: of the same shape; (batch, 1) and (batch,) go together, too.

    Raises:
        ValueError: other shapes.
    """
    t, o = (x if len(x.shape) > 1 else ops.expand_dims(x, -1) for x in (targets, outputs))
    same = len(t.shape) == len(o.shape) and all(
        one == other or None in (one, other) for one, other in zip(t.shape, o.shape)
    )
    if not same:
        raise ValueError(
            f"squared: targets of shape {tuple(targets.shape)}, outputs of shape "
            f"{tuple(outputs.shape)}; expected equal shapes, or (batch,) and (batch, 1)"
        )
    errors = ops.square(o - ops.cast(t, o.dtype))
    return ops.mean(errors, list(range(1, len(errors.shape))))
