"""Exchanging Keras's BatchNormalization for BatchNorm in a whole model, and back."""

import keras

from bn_keras.batch_norm.layer import EXTRAS, BatchNorm


def convert(model, to=BatchNorm):
    """A copy of a model in which every batch normalization is of the other kind.

    Args:
        model: a functional or Sequential keras.Model, nested models included. What it was compiled
            with is not copied.
        to: `BatchNorm`, or `keras.layers.BatchNormalization` for the way back.

    Returns:
        A new model with the same weights, statistics and names (but for the input, which Keras's
        clone names anew).

    Raises:
        ValueError: a BatchNorm has settings that Keras's layer does not know, or the model is
            neither functional nor Sequential.
    """
    kinds = {BatchNorm, keras.layers.BatchNormalization}
    if to not in kinds:
        raise ValueError(
            f"convert: to={to!r}; expected BatchNorm or keras.layers.BatchNormalization."
        )

    def exchange(layer):
        kind = to if type(layer) in kinds else type(layer)
        config = layer.get_config()
        extras = sorted(set(EXTRAS) & set(config))
        if kind is not BatchNorm and type(layer) is BatchNorm and extras:
            raise ValueError(
                f"convert: {layer.name!r} has the settings {extras}, which Keras's layer does not "
                "know; expected a BatchNorm without them."
            )
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=exchange, recursive=True)
    copy.set_weights(model.get_weights())
    return copy
