"""Evaluation with batch statistics: what a net gives when only its population statistics are off.

A large gap between this and plain inference says that the moving averages lag behind or were never
updated; the weights may be fine.
"""

import keras

from bn_keras.norms.statistics import batch_normalizers


class BatchStatisticsModel:
    """A copy of a model whose batch-normalizing layers always use the statistics of their batch.

    Dropout and all else stay in inference mode, and neither the copy's use nor its making changes
    the model: the copy has weights of its own, taken over by `refresh`.

    Args:
        model: a functional keras.Model.
    """

    def __init__(self, model):
        # By name: a layer of the copy has no statistics yet when it is called for the first time.
        names = {layer.name for layer in batch_normalizers(model)}

        def call(layer, *args, **kwargs):
            # All are told: Keras hands a layer's mode on to the layers that are called after it.
            kwargs["training"] = layer.name in names
            return layer(*args, **kwargs)

        self._model = model
        self._copy = keras.models.clone_model(model, call_function=call)

    def refresh(self):
        """Takes over the model's present weights and statistics."""
        self._copy.set_weights(self._model.get_weights())

    def __call__(self, inputs):
        """Logits of a batch, normalized with that batch's statistics."""
        # Not training=False, which would overrule what the copy's layers are called with; without
        # a word on it, all other layers infer.
        return self._copy(inputs)
