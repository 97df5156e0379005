"""What every registered plug-in promises, whoever adds it."""

import dataclasses
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import normal

from bn_keras import BatchNorm, runner
from bn_keras.config import ConfigError, RunConfig
from bn_keras.data.splits import Split, Splits
from bn_keras.models.blocks import NORMALIZER_SUFFIX, normalizers
from bn_keras.nets import build
from bn_keras.optimizers import exclude_from_weight_decay
from bn_keras.registry import DATASETS, LOSSES, MODELS, NORMALIZERS, OPTIMIZERS
from bn_keras.results import Store


def splits(size=28, channels=1):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, size, size, channels)).astype(np.uint8)
    part = Split(images, rng.integers(0, 10, 40).astype(np.int32))
    return Splits(part, part, part, classes=10)


def config(**changes):
    return RunConfig(batch_size=8, validation_size=10, steps=3, **changes)


def test_the_known_parts_are_all_there():
    assert set(NORMALIZERS.names()) >= {
        "none", "batch", "keras_batch", "layer", "group", "ghost", "renorm", "activated",
        "conditional", "frozen_statistics", "frozen_affine", "rms", "instance", "filter_response",
        "dyt", "weight_standardized_group", "skipinit",
    }
    assert set(MODELS.names()) >= {
        "mnist_cnn", "conv_bn_relu", "plain_cnn", "resnet", "cnn1d", "denoiser",
    }
    assert set(DATASETS.names()) >= {"mnist", "tfds", "idx", "csv", "notmnist"}
    assert set(OPTIMIZERS.names()) >= {"adam", "sgd", "momentum", "rmsprop"}
    assert set(LOSSES.names()) >= {"sigmoid", "softmax", "clipped_softmax", "squared"}


@pytest.mark.parametrize(
    "registry", [NORMALIZERS, MODELS, DATASETS, OPTIMIZERS, LOSSES], ids=lambda r: r.kind
)
def test_every_part_has_a_docstring(registry):
    for name in registry.names():
        assert registry.get(name).__doc__, name


# Normalizers whose outputs are not of mean 0 and deviation 1 in training: by their definition.
OTHERWISE = {
    "none", "activated", "frozen_statistics", "rms", "filter_response", "dyt", "skipinit",
}


@pytest.mark.parametrize("normalizer", NORMALIZERS.names())
@pytest.mark.parametrize("shape", [(4, 10), (3, 6, 6, 12)], ids=["dense", "conv"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_normalizer_keeps_the_shape_and_takes_its_name_and_dtype(normalizer, shape, dtype):
    layer = NORMALIZERS.get(normalizer)("place", momentum=0.9, epsilon=1e-3, dtype=dtype)
    x = np.random.default_rng(0).normal(3.0, 2.0, shape).astype("float32")
    y = layer(x, training=True)
    assert y.shape == shape and layer.name == "place"
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    if normalizer not in OTHERWISE:
        values = np.asarray(keras.ops.cast(y, "float32"))
        assert abs(values.mean()) < 0.1 and values.std() == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", NORMALIZERS.names())
def test_a_normalizer_compiled_by_xla_computes_what_it_does_eagerly(normalizer):
    x = normal((6, 10), mean=3.0, deviation=2.0)
    found = []
    for jit_compile in (False, True):
        layer = NORMALIZERS.get(normalizer)("place", momentum=0.9, epsilon=1e-3, dtype="float32")
        layer.build(x.shape)

        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y ** 3)
            return y, tape.gradient(loss, x)

        run = tf.function(step, jit_compile=True) if jit_compile else step
        found.append([*run(tf.constant(x)), *layer.weights])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_without_branches_refuses_a_normalizer_that_scales_them():
    models = [name for name in MODELS.names() if not MODELS.properties(name).get("branches")]
    assert len(models) == len(MODELS.names()) - 1
    for model in models:
        with pytest.raises(ConfigError, match=f"skipinit: {model} has no residual branches"):
            build(config(model=model, normalizer="skipinit"), splits(size=16))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.names())
def test_a_model_takes_other_image_sizes_and_names_no_normalizer_itself(model):
    built = build(config(model=model), splits(size=32, channels=3))
    shape = (2, 32, 32, 10) if MODELS.properties(model).get("images_out") else (2, 10)
    assert built(np.zeros((2, 32, 32, 3), np.uint8)).shape == shape
    assert normalizers(built), f"no layer is named …{NORMALIZER_SUFFIX}"


def of_numbers(model):
    properties = MODELS.properties(model)
    return properties["loss"] == "squared" and not properties.get("images_out")


CLASSIFIERS = [name for name in MODELS.names() if MODELS.properties(name)["loss"] != "squared"]
# Each normalizer in one net and each net with one normalizer; test_nets.py has further pairs.
ARMS = dict.fromkeys([
    *((model, "batch") for model in CLASSIFIERS),
    *(("resnet" if NORMALIZERS.properties(name).get("scales_branches") else "conv_bn_relu", name)
      for name in NORMALIZERS.names()),
])
SMALLEST = {"plain_cnn": 3, "resnet": 8, "deep_mlp": 1, "deep_mlp_logits": 1}


@pytest.mark.slow
@pytest.mark.parametrize("model, normalizer", ARMS)
def test_every_normalizer_and_every_model_learns_in_a_graph(model, normalizer):
    run = config(
        model=model, normalizer=normalizer, depth=SMALLEST.get(model), learning_rate=1e-4,
    )
    graph = runner._Graph([run], splits(size=16))
    graph.reset([run])
    batches = np.arange(40).reshape(5, 8, 1)
    losses = np.concatenate([graph.trainer.train(batches).loss for _ in range(6)])
    assert np.isfinite(losses).all() and losses[-5:].mean() < losses[:5].mean()


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS.names() if of_numbers(name)])
def test_every_model_of_numbers_trains_and_evaluates(model, tmp_path):
    part = splits(size=4).train
    part = dataclasses.replace(part, labels=part.images.mean((1, 2, 3), dtype="float32") / 255)
    run = config(
        model=model, normalizer="batch", learning_rate=0.01, eval_interval=3, log_interval=3
    )
    numbers = Splits(part, part, part, classes=1)
    train = runner.Runner(lambda config: numbers, Store(tmp_path))
    found, = train([dataclasses.replace(run, steps=60)])
    losses = [loss for _, loss in found.curves["loss/train"]]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert np.isfinite(found.metrics["test_loss"]) and "accuracy/train" not in found.curves


def test_the_squared_loss_is_that_of_numbers():
    outputs = keras.ops.convert_to_tensor(np.array([[3.0], [-1.0]], "float32"))
    values = LOSSES.get("squared")(keras.ops.convert_to_tensor([1.0, -1.5]), outputs)
    assert np.asarray(values).tolist() == [4.0, 0.25]
    values = LOSSES.get("squared")(keras.ops.convert_to_tensor([[1.0], [-1.5]]), outputs[:, 0])
    assert np.asarray(values).tolist() == [4.0, 0.25]
    flat = keras.ops.convert_to_tensor([3.0, 5.0])
    assert np.asarray(LOSSES.get("squared")(flat, flat - 1)).tolist() == [1.0, 1.0]


def test_the_squared_loss_of_images_is_the_mean_over_their_pixels():
    targets, outputs = (normal((3, 4, 5, 2), seed=seed) for seed in (0, 1))
    values = LOSSES.get("squared")(*map(keras.ops.convert_to_tensor, (targets, outputs)))
    expected = [np.mean(np.square(one - other)) for one, other in zip(targets, outputs)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("targets, outputs", [
    ((4,), (4, 3)), ((4, 2, 2, 1), (4, 2, 3, 1)), ((4, 2, 2), (4, 2, 2, 1)), ((4, 3), (4,)),
])
def test_the_squared_loss_refuses_shapes_that_would_only_broadcast(targets, outputs):
    message = re.escape(f"targets of shape {targets}, outputs of shape {outputs}; expected")
    with pytest.raises(ValueError, match=message):
        LOSSES.get("squared")(keras.ops.zeros(targets), keras.ops.zeros(outputs))


@pytest.mark.parametrize("name", sorted({*LOSSES.names()} - {"squared"}))
def test_a_loss_gives_one_finite_number_an_example(name):
    logits = keras.ops.convert_to_tensor(np.array([[30.0, -30.0], [-30.0, 30.0]], "float32"))
    values = np.asarray(LOSSES.get(name)(keras.ops.convert_to_tensor([0, 0]), logits))
    assert values.shape == (2,)
    assert values[0] == pytest.approx(0, abs=1e-6) and 20 < values[1] < 100


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_follows_its_learning_rate(name):
    moved = []
    for rate in (0.01, 0.02):
        optimizer = OPTIMIZERS.get(name)(learning_rate=rate)
        weight = keras.Variable([1.0])
        optimizer.build([weight])
        optimizer.apply([keras.ops.convert_to_tensor([0.5])])
        moved.append(1.0 - float(weight.numpy()[0]))
    assert moved[0] > 0 and moved[1] == pytest.approx(2 * moved[0], rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fused_adam_takes_the_same_steps_as_keras(dtype):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(20, 7))
    ends = []
    for make in (OPTIMIZERS.get("adam"), functools.partial(keras.optimizers.Adam)):
        optimizer = make(learning_rate=0.05)
        weight = keras.Variable(np.ones(7), dtype=dtype)
        optimizer.build([weight])
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype)])
        ends.append(weight.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-5)


@pytest.mark.slow
def test_weight_decay_spares_gamma_and_beta_once_excluded():
    """AdamW decays gamma by default; the kernel is to be decayed and the normalizer not."""
    for layer_class in (BatchNorm, keras.layers.BatchNormalization):
        ends = []
        for exclude in (False, True):
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer_class()])
            optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
            if exclude:
                exclude_from_weight_decay(optimizer, model)
            optimizer.build(model.trainable_variables)
            kernel = np.abs(model.layers[0].kernel.numpy()).sum()
            optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])
            assert np.abs(model.layers[0].kernel.numpy()).sum() < kernel
            ends.append(float(model.layers[1].gamma.numpy()[0]))
        assert ends[0] < 1 and ends[1] == 1
