"""What a batch-normalized net scores when it is evaluated with a bug.

Each function below is one bug of published code: it takes a trained model and returns a forward
pass, images to logits, that has the bug. The model keeps its weights and statistics: every forward
pass runs a copy. Training had no part in it, so what differs from `correct` is the bug alone.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel
from bn_keras.norms import statistics

BATCH_SIZES = {"whole": None, "16": 16, "2": 2, "1": 1}  # None: all images in one batch


def correct(model):
    """Inference as it should be: population statistics, no dropout."""
    return functools.partial(model, training=False)


def never_updated(model):
    """Inference with population statistics that still are what they started as, 0 and 1.

    The update was never run: TensorFlow 1's update ops, or a hand-written layer's assignments that
    no session call reached.
    """
    copy = _copy(model)
    statistics.reset(copy)
    return copy


def batch_statistics(model):
    """Batch statistics in every batch normalization: the training flag was left on."""
    copy = BatchStatisticsModel(model)
    copy.refresh()
    return copy


def dense_batch_statistics(model):
    """Batch statistics behind dense layers only, whose flag was left out; convolutions infer."""
    return _with_dense_batch_statistics(model)


def as_written(model):
    """`never_updated` and `dense_batch_statistics` in one program: the second hides the first."""
    copy = _with_dense_batch_statistics(model)
    statistics.reset(copy)
    return copy


def dropout_active(model):
    """Inference, but dropout goes on dropping."""
    return _copy(model, {layer.name for layer in _dropouts(model)})


def without_bn(model):
    """An evaluation graph that was built a second time, without its batch normalization."""
    normalizers = {layer.name for layer in statistics.batch_normalizers(model)}

    def call(layer, inputs, *args, **kwargs):
        return inputs if layer.name in normalizers else layer(inputs, *args, **kwargs)

    return functools.partial(_clone(model, call), training=False)


def evaluations(model):
    """The forward passes that mean something for a model.

    Args:
        model: a functional keras.Model, built and trained.

    Returns:
        dict of name to `(images) -> logits`; `correct` comes first.
    """
    makers = [correct]
    normalizers = statistics.batch_normalizers(model)
    if normalizers:
        makers += [never_updated, batch_statistics, without_bn]
    if 0 < len(_behind_dense(model)) < len(normalizers):
        makers += [dense_batch_statistics, as_written]
    if _dropouts(model):
        makers.append(dropout_active)
    return {maker.__name__: maker(model) for maker in makers}


def measure(model, images, labels, loss):
    """Evaluates a model correctly and with every bug, in batches of all sizes.

    Args:
        model: as for `evaluations`.
        images: array (n, ...).
        labels: integer array (n,).
        loss: `(labels, logits) -> (n,)`.

    Returns:
        dict of `pitfall/NAME/WHAT` to float. WHAT is a key of BATCH_SIZES, for the accuracy in
        batches of that size; `loss`, the mean over the whole batch; or `spread`, the largest
        difference that two images, predicted one at a time, make in any logit: 0 for a net that
        says the same of every image. `pitfall/images` is n.
    """
    found = {"pitfall/images": float(len(images))}
    for name, forward in evaluations(model).items():
        signature = [tf.TensorSpec([None, *images.shape[1:]], images.dtype)]
        predict = tf.function(forward, input_signature=signature)
        for key, size in BATCH_SIZES.items():
            starts = range(0, len(images), size or len(images))
            logits = np.concatenate(
                [predict(images[start:start + (size or len(images))]) for start in starts]
            )
            right = (logits.argmax(-1) == labels) & np.isfinite(logits).all(-1)
            found[f"pitfall/{name}/{key}"] = float(right.mean())
            if size is None:
                found[f"pitfall/{name}/loss"] = float(np.mean(loss(labels, logits)))
            if size == 1:
                found[f"pitfall/{name}/spread"] = float(np.ptp(logits, axis=0).max())
    return found


def _with_dense_batch_statistics(model):
    return _copy(model, {layer.name for layer in _behind_dense(model)})


def _behind_dense(model):
    """Normalizers of rows, (batch, features), whose statistics have one value an image."""
    return [layer for layer in statistics.batch_normalizers(model) if layer.input_spec.ndim == 2]


def _dropouts(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def _copy(model, training=()):
    """A copy with the same weights; its layers of the names in `training` are in training mode."""

    def call(layer, *args, **kwargs):
        # All are told: Keras hands a layer's mode on to the layers that are called after it.
        kwargs["training"] = layer.name in training
        return layer(*args, **kwargs)

    return _clone(model, call)


def _clone(model, call):
    clone = keras.models.clone_model(model, call_function=call)
    for layer in clone.layers:
        if layer.weights:  # an input layer without a name of its own gets a new one
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return clone
