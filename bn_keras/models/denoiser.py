"""`denoiser`: a net from images to images."""

import keras

from bn_keras.models.blocks import Blocks, ModelSpec
from bn_keras.registry import MODELS


@MODELS.register("denoiser", loss="squared", images_out=True)
def denoiser(spec: ModelSpec) -> keras.Model:
    """6 convolutions 3x3 of 32 filters, whose last one predicts the noise: 37,601 weights.

    DnCNN of Zhang, Zuo, Chen, Meng & Zhang (2017), "Beyond a Gaussian Denoiser", which has 17 and
    64. `depth` counts the convolutions. The output is the input, as `pixels` scales it, minus what
    the last convolution gives; that alone where the labels have other channels than the images.
    Labels are numbers of the shape (height, width, spec.classes). Neither the first convolution nor
    the last one is normalized. Expected on 5,000 MNIST images with Gaussian noise of deviation
    50/255, a squared error of .0202: after two epochs of Adam at .003 it is .0064 with `batch` and
    .0032 with `none` (one seed).
    """
    blocks = Blocks(spec, lambda seed: keras.initializers.HeNormal(seed=seed))
    depth = blocks.depth(6, least=3)
    inputs, pixels = blocks.inputs()
    x = blocks.conv(pixels, 32, 3, "conv1", normalize=False)
    for number in range(2, depth):
        x = blocks.conv(x, 32, 3, f"conv{number}")
    x = blocks.conv(x, spec.classes, 3, f"conv{depth}", normalize=False, activate=False)
    if spec.classes == spec.input_shape[-1]:
        x = keras.layers.Subtract(name="denoised", dtype=spec.dtype)([pixels, x])
    return blocks.model(inputs, x, "denoiser")
