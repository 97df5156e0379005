"""Nets that start from equal kernels have equal digests, and others have not."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from bn_keras import BatchNorm
from bn_keras.models.blocks import ModelSpec
from bn_keras.registry import MODELS, NORMALIZERS
from bn_keras.surgery.digest import kernel_digest


def net(normalizer=layers.Identity, shift=0.0, dtype="float32", swap=False):
    """Two dense layers, the second one in a nested model."""
    one, other = layers.Dense(3, dtype=dtype), layers.Dense(3, dtype=dtype)
    inner = keras.Sequential([keras.Input((3,)), other, normalizer()])
    model = keras.Sequential([keras.Input((3,)), one, normalizer(), inner])
    values = list(np.arange(18.0).reshape(2, 3, 3))
    one.kernel.assign(values[swap] + shift)
    other.kernel.assign(values[not swap])
    return model


NORMALIZED = {
    "batch": BatchNorm, "group": functools.partial(layers.GroupNormalization, 3),
    "layer": layers.LayerNormalization, "keras": layers.BatchNormalization,
}


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZED.values(), ids=NORMALIZED)
def test_names_and_normalizers_do_not_count(normalizer):
    keras.backend.clear_session()
    digest = kernel_digest(net())
    assert len(digest) == 12 and int(digest, 16) >= 0
    assert kernel_digest(net(normalizer)) == digest  # with other names: the session goes on


@pytest.mark.parametrize("change", [
    {"shift": 1e-3}, {"dtype": "float64"}, {"swap": True},
], ids=lambda change: next(iter(change)))
def test_values_dtypes_and_order_count(change):
    assert kernel_digest(net(**change)) != kernel_digest(net())


def test_a_kernel_of_the_same_bytes_in_another_shape_is_another_one():
    one, other = (keras.Sequential([keras.Input((n,)), layers.Dense(6 // n)]) for n in (2, 3))
    for model in (one, other):
        kernel = model.layers[0].kernel
        kernel.assign(np.arange(6.0).reshape(kernel.shape))
    assert kernel_digest(one) != kernel_digest(other)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist_cnn", "bad_init_mlp"])
def test_the_arms_of_a_comparison_start_alike_and_seeds_do_not(model):
    def digest(normalizer, seed=0):
        factory = functools.partial(
            NORMALIZERS.get(normalizer), momentum=0.9, epsilon=1e-3, dtype="float32"
        )
        spec = ModelSpec((8, 8, 1), 10, factory, seed=seed)
        return kernel_digest(MODELS.get(model)(spec))

    assert len({digest(name) for name in ("none", "batch", "activated", "layer", "renorm")}) == 1
    assert digest("none") != digest("none", seed=1)


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="'plain' is not built"):
        kernel_digest(keras.Sequential([layers.Dense(2)], name="plain"))
