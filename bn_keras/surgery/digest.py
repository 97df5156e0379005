"""A digest of a model's kernels, by which nets prove that they started from equal weights."""

import hashlib

import keras
import numpy as np

# Scale and offset of a normalizer have two axes and more in some layers.
NO_KERNELS = ("gamma", "beta", "bias")


def kernel_digest(model: keras.Model) -> str:
    """Twelve hexadecimal digits over the kernels of a model.

    Kernels are the floating-point weights of two axes and more that are no scale, offset or bias:
    of dense layers, convolutions, embeddings and recurrent cells. Names do not count, nor what
    normalizes the model, so that nets which differ in that alone have equal digests. Two nets that
    have equal kernels in another order differ.

    Args:
        model: a built model of one run. A stack of runs has its runs' kernels in other shapes, and
            no digest that could be compared with theirs: take those of its runs alone.

    Raises:
        ValueError: the model is not built.
    """
    if not model.built:
        raise ValueError(
            f"kernel_digest: {model.name!r} is not built and has no weights yet; expected a model "
            "that was called once on data, or built."
        )
    digest = hashlib.sha256()
    for weight in model.weights:
        is_kernel = len(weight.shape) > 1 and weight.name not in NO_KERNELS
        if is_kernel and "float" in weight.dtype and not weight.name.startswith("moving_"):
            digest.update(f"{tuple(weight.shape)} {weight.dtype} ".encode())
            values = np.asarray(keras.ops.convert_to_numpy(weight))
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:12]
