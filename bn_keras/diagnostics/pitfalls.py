"""What a batch-normalized net scores when it is evaluated with a bug.

Each function below is one bug of published code: it takes a trained model and returns a copy of it,
images to logits, that has the bug. Training had no part in it: what differs from `correct` is the
bug alone.
"""

import keras
import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel, ModeCopy, ModelCopy
from bn_keras.surgery import statistics

BATCH_SIZES = {"whole": None, "16": 16, "2": 2, "1": 1}  # None: all images in one batch


def correct(model):
    """Inference as it should be: population statistics, no dropout."""
    return ModeCopy(model, ())


def never_updated(model):
    """Inference with population statistics that still are what they started as, 0 and 1.

    The update was never run: TensorFlow 1's update ops, or a hand-written layer's assignments that
    no session call reached.
    """
    return _FreshStatistics(model, ())


def conv_never_updated(model):
    """`never_updated` behind convolutions only; dense layers have proper population statistics."""
    names = {layer.name for layer in statistics.batch_normalizers(model)}
    return _FreshStatistics(model, (), names - _behind_dense(model))


def batch_statistics(model):
    """Batch statistics in every batch normalization: the training flag was left on."""
    return BatchStatisticsModel(model)


def dense_batch_statistics(model):
    """Batch statistics behind dense layers only, whose flag was left out; convolutions infer."""
    return ModeCopy(model, _behind_dense(model))


def as_written(model):
    """`conv_never_updated` and `dense_batch_statistics` at once: the second hides the first."""
    return _FreshStatistics(model, _behind_dense(model))


def dropout_active(model):
    """Inference, but dropout goes on dropping."""
    return ModeCopy(model, _dropouts(model))


def without_bn(model):
    """An evaluation graph that was built a second time, without its batch normalization."""
    normalizers = {layer.name for layer in statistics.batch_normalizers(model)}

    def call(layer, inputs, *args, **kwargs):
        if layer.name in normalizers:
            return inputs
        return layer(inputs, *args, **{**kwargs, "training": False})

    return ModelCopy(model, call)


EVALUATIONS = {
    maker.__name__: maker
    for maker in (correct, never_updated, conv_never_updated, batch_statistics, without_bn,
                  dense_batch_statistics, as_written, dropout_active)
}


def evaluation(name):
    """The function of EVALUATIONS.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"unknown evaluation {name!r}; known: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[name]


def evaluations(model):
    """The evaluations that mean something for a model.

    Args:
        model: a functional keras.Model, built and trained.

    Returns:
        list of names of EVALUATIONS; `correct` comes first.
    """
    names = ["correct"]
    normalizers = statistics.batch_normalizers(model)
    if normalizers:
        names += ["never_updated", "batch_statistics", "without_bn"]
    if 0 < len(_behind_dense(model)) < len(normalizers):
        names += ["conv_never_updated", "dense_batch_statistics", "as_written"]
    if _dropouts(model):
        names.append("dropout_active")
    return names


def measure(model, images, labels, loss, names=None):
    """Evaluates a model correctly and with bugs, in batches of all sizes.

    Args:
        model: as for `evaluations`.
        images: array (n, ...).
        labels: integer array (n,).
        loss: `(labels, logits) -> (n,)`.
        names: of EVALUATIONS; None for all that mean something for the model. What means nothing
            for it is left out.

    Raises:
        ValueError: a name is unknown.

    Returns:
        dict of `pitfall/NAME/WHAT` to float. WHAT is a key of BATCH_SIZES, for the accuracy in
        batches of that size; `loss`, the mean over the whole batch; or `spread`, the largest
        difference that two images, predicted one at a time, make in any logit: 0 for a net that
        says the same of every image. `pitfall/images` is n.
    """
    makers = [evaluation(name) for name in names or EVALUATIONS]
    found = {"pitfall/images": float(len(images))}
    for name in evaluations(model):
        if EVALUATIONS[name] not in makers:
            continue
        forward = EVALUATIONS[name](model)
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


class _FreshStatistics(ModeCopy):
    """A ModeCopy some of whose population statistics are always the initial ones.

    Args:
        model: a functional keras.Model.
        training: names of the layers in training mode.
        fresh: names of the layers with initial statistics; None for all that have any.
    """

    def __init__(self, model, training, fresh=None):
        self._fresh = fresh
        super().__init__(model, training)

    def refresh(self):
        super().refresh()
        for layer in statistics.batch_normalizers(self._copy):
            if self._fresh is None or layer.name in self._fresh:
                statistics.reset(layer)


def _behind_dense(model):
    """Names of normalizers of rows, (batch, features), whose statistics have one value an image."""
    normalizers = statistics.batch_normalizers(model)
    return {layer.name for layer in normalizers if layer.input_spec.ndim == 2}


def _dropouts(model):
    return {layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)}
