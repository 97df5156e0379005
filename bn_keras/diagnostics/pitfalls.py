"""What a batch-normalized net scores when it is evaluated with a bug.

Each function below is one bug of published code: it takes a trained model and returns a copy of it,
images to logits, that has the bug. Training had no part in it: what differs from `correct` is the
bug alone.
"""

import keras
import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel, ModeCopy, ModelCopy
from bn_keras.diagnostics.probe import Probe
from bn_keras.registry import PROBES
from bn_keras.surgery import statistics

IMAGES = 480  # whole batches of 16; more take their time one by one
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


@PROBES.register("pitfalls", metrics={
    "pitfall/{}/whole": ("accuracy of one batch, evaluated {}", "", "low"),
    "pitfall/{}/16": ("accuracy in batches of 16, evaluated {}", "", "low"),
    "pitfall/{}/2": ("accuracy in batches of 2, evaluated {}", "", "low"),
    "pitfall/{}/1": ("accuracy one by one, evaluated {}", "", "low"),
    "pitfall/{}/loss": ("loss of one batch, evaluated {}", "", "high"),
    "pitfall/{}/spread": ("spread of single images' logits, evaluated {}", "", None),
    "pitfall/images": ("images behind the evaluations", "images", None),
})
class Pitfalls(Probe):
    """Evaluates the trained nets correctly and with bugs, in batches of all sizes.

    Args:
        nets: Nets.
        argument: a name of EVALUATIONS; None for all that mean something for the nets. One that
            means nothing for them gives nothing.

    Metrics are `pitfall/NAME/WHAT`. WHAT is a key of BATCH_SIZES, for the accuracy in batches of
    that size; `loss`, the mean over the whole batch; or `spread`, the largest difference that two
    images, predicted one at a time, make in any logit: 0 for a net that predicts the same of every
    image. `pitfall/images` is how many test images stand behind them.
    """

    def __init__(self, nets, argument=None):
        super().__init__(nets)
        if argument is not None:
            evaluation(argument)
        self._names = [
            name for name in evaluations(nets.net) if argument is None or name == argument
        ]

        self._copies = {}

    def at_end(self):
        nets, split = self.nets, self.nets.splits.test.first(IMAGES)
        found = {"pitfall/images": np.full(nets.runs, float(len(split)))}
        for name in self._names:
            copy, forward, singly = self._copy(name)
            copy.refresh()
            for key, size in BATCH_SIZES.items():
                loss, accuracy = nets.evaluate(split, forward, size or len(split))
                found[f"pitfall/{name}/{key}"] = accuracy
                if size is None:
                    found[f"pitfall/{name}/loss"] = loss
            logits = nets.predict(split.images, singly, batch_size=1)
            found[f"pitfall/{name}/spread"] = np.ptp(logits, axis=0).max(-1)
        return found

    def _copy(self, name):
        if name not in self._copies:
            copy = EVALUATIONS[name](self.nets.net)
            forward = self.nets.as_stack(copy)
            images = self.nets.splits.test.images
            # An open batch size: of one image alone the layer would warn, and that is the bug.
            signature = tf.TensorSpec([None, self.nets.runs, *images.shape[1:]], images.dtype)
            singly = tf.function(forward, input_signature=[signature])
            self._copies[name] = copy, forward, singly
        return self._copies[name]


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
