"""What a batch-normalized net scores when it is evaluated with a bug.

Each function below is one bug of published code: it takes a trained model and returns a copy of it,
images to logits, that has the bug. Training had no part in it: what differs from `correct` is the
bug alone.
"""

from typing import Any, Callable, Optional

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bn_keras.diagnostics.batch_statistics import BatchStatisticsModel, ModeCopy, ModelCopy
from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.loop import Forward
from bn_keras.registry import PROBES
from bn_keras.surgery import calls, statistics
from bn_keras.surgery.statistics import is_batch_normalizer

DROPOUTS = (keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout)
IMAGES = 480  # whole batches of 16; more take their time one by one
BATCH_SIZES = {"whole": None, "16": 16, "2": 2, "1": 1}  # None: all images in one batch


def correct(model: keras.Model) -> ModelCopy:
    """Inference as it should be: population statistics, no dropout."""
    return ModeCopy(model, _never)


def never_updated(model: keras.Model) -> ModelCopy:
    """Inference with population statistics that still are what they started as, 0 and 1.

    The update was never run: TensorFlow 1's update ops, or a hand-written layer's assignments that
    no session call reached.
    """
    return _FreshStatistics(model, _never, is_batch_normalizer)


def conv_never_updated(model: keras.Model) -> ModelCopy:
    """`never_updated` behind convolutions only; dense layers have proper population statistics."""
    return _FreshStatistics(model, _never, _is_behind_conv)


def batch_statistics(model: keras.Model) -> ModelCopy:
    """Batch statistics in every batch normalization: the training flag was left on."""
    return BatchStatisticsModel(model)


def dense_batch_statistics(model: keras.Model) -> ModelCopy:
    """Batch statistics behind dense layers only, whose flag was left out; convolutions infer."""
    return ModeCopy(model, _is_behind_dense)


def as_written(model: keras.Model) -> ModelCopy:
    """`conv_never_updated` and `dense_batch_statistics` at once: the second hides the first."""
    return _FreshStatistics(model, _is_behind_dense, is_batch_normalizer)


def dropout_active(model: keras.Model) -> ModelCopy:
    """Inference, but dropout goes on dropping."""
    return ModeCopy(model, _drops)


def without_bn(model: keras.Model) -> ModelCopy:
    """An evaluation graph that was built a second time, without its batch normalization."""

    def instead(
        layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        if is_batch_normalizer(layer):
            return layer._call_signature.bind(*args, **kwargs).args[0]
        return calls.in_mode(False, layer, call, *args, **kwargs)

    return ModelCopy(model, instead)


EVALUATIONS = {
    maker.__name__: maker
    for maker in (correct, never_updated, conv_never_updated, batch_statistics, without_bn,
                  dense_batch_statistics, as_written, dropout_active)
}


def evaluation(name: Optional[str]) -> Callable[[keras.Model], ModelCopy]:
    """The function of EVALUATIONS.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"unknown evaluation {name!r}; known: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[name]


def evaluations(model: keras.Model) -> list[str]:
    """The evaluations that mean something for a model.

    Args:
        model: a built keras.Model of any kind, trained.

    Returns:
        list of names of EVALUATIONS; `correct` comes first.
    """
    names = ["correct"]
    layers = model._flatten_layers()
    normalizers = [layer for layer in layers if is_batch_normalizer(layer)]
    if normalizers:
        names += ["never_updated", "batch_statistics", "without_bn"]
    if 0 < sum(map(_is_behind_dense, normalizers)) < len(normalizers):
        names += ["conv_never_updated", "dense_batch_statistics", "as_written"]
    if any(map(_drops, layers)):
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
}, arguments=(
    "", "correct", "never_updated", "conv_never_updated", "batch_statistics", "without_bn",
    "dense_batch_statistics", "as_written", "dropout_active",
))
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

    def __init__(self, nets: Nets, argument: Optional[str] = None) -> None:
        super().__init__(nets)
        if argument is not None:
            evaluation(argument)
        self._names = [
            name for name in evaluations(nets.net) if argument is None or name == argument
        ]
        self._copies: dict[str, tuple[ModelCopy, Forward]] = {}
        correct(nets.net)  # of a net that cannot be copied this is told before it is trained

    def at_end(self) -> Values:
        nets, split = self.nets, self.nets.splits.test.first(IMAGES)
        found: dict[str, NDArray[Any]] = {
            "pitfall/images": np.full(nets.runs, float(len(split)))
        }
        for name in self._names:
            copy, forward = self._copy(name)
            copy.refresh()
            for key, size in BATCH_SIZES.items():
                logits = nets.predict(split.images, forward, size or len(split))
                loss, found[f"pitfall/{name}/{key}"] = nets.judge(split.labels, logits)
                if size is None:
                    found[f"pitfall/{name}/loss"] = loss
                if size == 1:
                    found[f"pitfall/{name}/spread"] = np.ptp(logits, axis=0).max(-1)
        return found

    def _copy(self, name: str) -> tuple[ModelCopy, Forward]:
        """The copy, and its forward pass as a graph for stacks of any batch size."""
        if name not in self._copies:
            copy = EVALUATIONS[name](self.nets.net)
            # An open batch size: of one image alone the layer would warn, and that is the bug.
            signature = keras.tree.map_structure(
                lambda of: tf.TensorSpec([None, self.nets.runs, *of.shape[1:]], of.dtype),
                self.nets.splits.test.images,
            )
            forward = tf.function(self.nets.as_stack(copy), input_signature=[signature])
            self._copies[name] = copy, forward
        return self._copies[name]


class _FreshStatistics(ModeCopy):
    """A ModeCopy some of whose population statistics are always the initial ones.

    Args:
        model: as for ModeCopy.
        trains: as for ModeCopy.
        fresh: `(layer) -> bool`, whether a layer has initial statistics.
    """

    def __init__(
        self, model: keras.Model, trains: Callable[[keras.Layer], bool],
        fresh: Callable[[keras.Layer], bool],
    ) -> None:
        self._fresh: list[tuple[keras.Variable, NDArray[Any]]] = []
        super().__init__(model, trains)
        for layer in self._layers:
            if is_batch_normalizer(layer) and fresh(layer):
                statistics.reset(layer)
                self._fresh += [(variable, variable.numpy()) for variable in layer.variables
                                if variable.name in statistics.STATISTICS]

    def refresh(self) -> None:
        super().refresh()
        for variable, initial in self._fresh:
            variable.assign(initial)


def _never(layer: keras.Layer) -> bool:
    return False


def _is_behind_dense(layer: keras.Layer) -> bool:
    """Whether a normalizer takes rows, whose statistics have one value an image."""
    if not is_batch_normalizer(layer):
        return False
    if layer.input_spec is not None and layer.input_spec.ndim is not None:
        return layer.input_spec.ndim == 2
    return len((layer.get_build_config() or {}).get("input_shape", ())) == 2


def _is_behind_conv(layer: keras.Layer) -> bool:
    return is_batch_normalizer(layer) and not _is_behind_dense(layer)


def _drops(layer: keras.Layer) -> bool:
    """Whether a layer drops units in training, be it for that alone or with a rate of its own."""
    if isinstance(layer, DROPOUTS):
        return True
    rates = (getattr(layer, name, None) for name in ("dropout", "recurrent_dropout"))
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)
