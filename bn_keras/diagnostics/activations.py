"""What goes into every normalizer and what comes out, and the statistics in between."""

import keras

from bn_keras.models.blocks import normalizers

MAX_VALUES = 20_000  # a histogram shows no more of a million values, and costs 50 times as much
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


class NormalizerProbe:
    """Values at every normalizer of a model, in inference mode, for histograms.

    Args:
        model: built from `models.blocks`; it is only read.
    """

    def __init__(self, model):
        self._layers = normalizers(model)
        ends = [end for layer in self._layers for end in (layer.input, layer.output)]
        self._ends = keras.Model(model.input, ends) if ends else None

    def __call__(self, images):
        """Values for a batch of images, with the model's present weights.

        Returns:
            dict of `PLACE/WHAT` to a tensor, such as `conv2_norm/input`; WHAT is input or output
            (evenly spaced values of it, some 20,000), and gamma, beta, moving_mean and
            moving_variance where the normalizer has them.
        """
        if not self._layers:
            return {}
        ends = iter(self._ends(images, training=False))
        values = {}
        for layer in self._layers:
            values[f"{layer.name}/input"] = _thinned(next(ends))
            values[f"{layer.name}/output"] = _thinned(next(ends))
            for name in STATISTICS:
                weight = getattr(layer, name, None)
                if weight is not None:
                    values[f"{layer.name}/{name}"] = keras.ops.convert_to_tensor(weight)
        return values


def _thinned(values):
    flat = keras.ops.reshape(values, (-1,))
    # An odd stride meets every channel where their number is a power of two.
    return flat[:: (flat.shape[0] // MAX_VALUES) | 1]
