"""Evaluation with batch statistics: what a net gives when only its population statistics are off.

A large gap between this and plain inference says that the moving averages lag behind or were never
updated; the weights may be fine.
"""

from typing import Any, Callable, Optional

import keras

from bn_keras.diagnostics.probe import Nets, Probe, Values
from bn_keras.registry import PROBES
from bn_keras.surgery import calls, copies
from bn_keras.surgery.statistics import batch_normalizers, is_batch_normalizer


class ModelCopy:
    """A copy of a model whose layers are called in another way; the model stays as it is.

    The copy has weights of its own: `refresh` takes over the model's. It can be called in a
    `tf.function`, with XLA, too; what is traced there sees every later `refresh`.

    Args:
        model: a built keras.Model of any kind. Layers in nested and subclassed models, in wrappers
            and in layers of one's own are reached as well.
        instead: `(layer, call, *args, **kwargs) -> outputs`, what is done in place of
            `call(*args, **kwargs)`, the layer's own.

    Raises:
        TypeError: a layer cannot be copied, or runs code that no Keras layer runs; it is named.
        ValueError: the model is not built.
    """

    def __init__(self, model: keras.Model, instead: calls.Instead) -> None:
        copies.check_model(model, type(self).__name__)
        for layer in model._flatten_layers():
            if isinstance(layer, copies.OPAQUE):
                raise TypeError(
                    f"{type(self).__name__}: {layer.name!r} of {model.name!r} is a "
                    f"{type(layer).__name__}, whose insides cannot be called in another way; "
                    "expected Keras layers only."
                )
        self._copy, parts = copies.copy_with_parts(model)
        self._variables = [pair for pair in parts if isinstance(pair[0], keras.Variable)]
        self._layers = [its for _, its in parts if isinstance(its, keras.Layer)]
        for layer in self._layers:
            calls.redirect(layer, instead)

    def refresh(self) -> None:
        """Takes over the model's present weights and statistics."""
        for theirs, ours in self._variables:
            ours.assign(theirs.value)

    def __call__(self, inputs: Any) -> Any:
        """The model's outputs for a batch, in the structure that the model gives."""
        return self._copy(inputs)


class ModeCopy(ModelCopy):
    """A copy of a model some of whose layers are always in training mode, and all others never.

    No call moves the statistics of the copy. A frozen normalizer infers in training mode, too.

    Args:
        model: as for ModelCopy.
        trains: `(layer) -> bool`, whether a layer of the copy is in training mode.
    """

    def __init__(self, model: keras.Model, trains: Callable[[keras.Layer], bool]) -> None:
        def instead(
            layer: keras.Layer, call: Callable[..., Any], /, *args: Any, **kwargs: Any
        ) -> Any:
            return calls.in_mode(trains(layer), layer, call, *args, **kwargs)

        super().__init__(model, instead)


class BatchStatisticsModel(ModeCopy):
    """A copy of a model whose batch-normalizing layers always use the statistics of their batch.

    Dropout and all else stay in inference mode, and neither the copy's use nor its making changes
    the model: the copy has weights of its own, taken over by `refresh`.

    Args:
        model: as for ModelCopy.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model, is_batch_normalizer)


@PROBES.register("batch_statistics", metrics={
    "validation_accuracy_batch_statistics": ("validation accuracy, batch statistics", "", "low"),
})
class BatchStatistics(Probe):
    """Accuracy over the images of the validation curve with statistics of batches of 200.

    Nothing for nets without batch normalization.
    """

    def __init__(self, nets: Nets, argument: Optional[str] = None) -> None:
        super().__init__(nets, argument)
        self._copy: Optional[BatchStatisticsModel] = None
        if batch_normalizers(nets.net):
            self._copy = BatchStatisticsModel(nets.net)
            self._forward = nets.as_stack(self._copy)

    def at_end(self) -> Values:
        if self._copy is None:
            return {}
        self._copy.refresh()
        split = self.nets.curve_set
        _, accuracy = self.nets.evaluate(split, self._forward)
        return {"validation_accuracy_batch_statistics": accuracy}
