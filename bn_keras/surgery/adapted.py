"""A layer that may be called the way a batch normalization is."""

from typing import Any, Optional

import keras


@keras.saving.register_keras_serializable(package="bn_keras")
class Adapted(keras.layers.Wrapper):
    """Passes on to a layer those arguments of a batch normalization's call that the layer has.

    A model's own code may say `self.norm(x, mask=mask)`. In the place of that `norm`, a
    LayerNormalization, which normalizes each position by itself and needs no mask, would raise.

    >>> layer = Adapted(keras.layers.LayerNormalization(name="norm"))
    >>> layer.name, layer(keras.ops.ones((2, 3)), training=True, mask=keras.ops.ones((2,))).shape
    ('norm', TensorShape([2, 3]))

    Args:
        layer: a layer of one tensor.
        **kwargs: as for every Keras layer; name and dtype are by default those of the layer.

    Call arguments:
        inputs: what the layer takes.
        training, mask, update_statistics: as for BatchNorm; left out where the layer has no such
            argument.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **{"name": layer.name, "dtype": layer.dtype_policy, **kwargs})
        self.supports_masking = layer.supports_masking

    def call(
        self, inputs: Any, training: Any = None, mask: Optional[Any] = None,
        update_statistics: Any = True,
    ) -> Any:
        """Calls the layer."""
        given = {"training": training, "mask": mask, "update_statistics": update_statistics}
        known = self.layer.call_signature_parameters
        return self.layer(inputs, **{name: x for name, x in given.items() if name in known})

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)
