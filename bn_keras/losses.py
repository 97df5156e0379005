"""Losses over logits: `(labels, logits) -> one loss an example`."""

import keras
from keras import ops

from bn_keras.registry import LOSSES


@LOSSES.register("sigmoid")
def sigmoid(labels, logits):
    """Sigmoid cross entropy against one-hot labels, the mean over the classes.

    Args:
        labels: class numbers, shape (batch,), integers.
        logits: shape (batch, classes).
    """
    one_hot = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return keras.losses.binary_crossentropy(one_hot, logits, from_logits=True)


@LOSSES.register("softmax")
def softmax(labels, logits):
    """Softmax cross entropy; arguments as for `sigmoid`."""
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
