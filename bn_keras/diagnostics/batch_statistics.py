"""Evaluation with batch statistics: what a net gives when only its population statistics are off.

A large gap between this and plain inference says that the moving averages lag behind or were never
updated; the weights may be fine.
"""

import keras

from bn_keras.diagnostics.probe import Probe
from bn_keras.registry import PROBES
from bn_keras.surgery.statistics import batch_normalizers


class ModelCopy:
    """A copy of a model whose layers are called in another way; the model stays as it is.

    The copy has weights of its own: `refresh` takes over the model's.

    Args:
        model: a functional keras.Model.
        call: `(layer, *args, **kwargs) -> outputs`, what is done in place of `layer(*args,
            **kwargs)`.
    """

    def __init__(self, model, call):
        self._model = model
        self._copy = keras.models.clone_model(model, call_function=call)
        self.refresh()

    def refresh(self):
        """Takes over the model's present weights and statistics."""
        for layer in self._copy.layers:
            if layer.weights:  # an input layer without a name of its own gets a new one
                layer.set_weights(self._model.get_layer(layer.name).get_weights())

    def __call__(self, inputs):
        """Logits of a batch."""
        # Not training=False, which would overrule what the copy's layers are called with.
        return self._copy(inputs)


class ModeCopy(ModelCopy):
    """A copy of a model some of whose layers are always in training mode, and all others never.

    Args:
        model: a functional keras.Model.
        training: names of those layers.
    """

    def __init__(self, model, training):
        def call(layer, *args, **kwargs):
            # All are told: Keras hands a layer's mode on to the layers that are called after it.
            kwargs["training"] = layer.name in training
            return layer(*args, **kwargs)

        super().__init__(model, call)


class BatchStatisticsModel(ModeCopy):
    """A copy of a model whose batch-normalizing layers always use the statistics of their batch.

    Dropout and all else stay in inference mode, and neither the copy's use nor its making changes
    the model: the copy has weights of its own, taken over by `refresh`.

    Args:
        model: a functional keras.Model.
    """

    def __init__(self, model):
        # By name: a layer of the copy has no statistics yet when it is called for the first time.
        super().__init__(model, {layer.name for layer in batch_normalizers(model)})


@PROBES.register("batch_statistics", metrics={
    "validation_accuracy_batch_statistics": ("validation accuracy, batch statistics", "", "low"),
})
class BatchStatistics(Probe):
    """Accuracy over the images of the validation curve with statistics of batches of 200.

    Nothing for nets without batch normalization.
    """

    def __init__(self, nets, argument=None):
        super().__init__(nets)
        self._copy = None
        if batch_normalizers(nets.net):
            self._copy = BatchStatisticsModel(nets.net)
            self._forward = nets.as_stack(self._copy)

    def at_end(self):
        if self._copy is None:
            return {}
        self._copy.refresh()
        split = self.nets.splits.validation.first(self.nets.configs[0].curve_size)
        _, accuracy = self.nets.evaluate(split, self._forward)
        return {"validation_accuracy_batch_statistics": accuracy}
