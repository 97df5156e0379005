"""Runs side by side in one graph end up where each would have ended alone."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from bn_keras import stack
from bn_keras.config import ConfigError, RunConfig
from bn_keras.data import Split, Splits
from bn_keras.models.blocks import ModelSpec
from bn_keras.registry import MODELS, NORMALIZERS
from bn_keras.results import DIVERGED, OK, Store
from bn_keras.runner import Runner
from bn_keras.stack import Dispatcher, StackRunner, build_stack, groups, stacks

STACKABLE = [name for name in MODELS.names() if getattr(MODELS.get(name), "stacks", False)]


def splits(examples=60):
    """Images whose mean brightness tells their class."""
    rng = np.random.default_rng(0)
    labels = (np.arange(examples) % 3).astype(np.int32)
    images = rng.integers(0, 80, (examples, 4, 4, 1)) + 60 * labels[:, None, None, None]
    part = Split(images.astype(np.uint8), labels)
    return Splits(part, part, part, classes=3)


def config(**changes):
    settings = {
        "model": "ioffe_mlp", "optimizer": "sgd", "learning_rate": 0.1, "batch_size": 12,
        "steps": 20, "validation_size": 10, "log_interval": 5, "eval_interval": 10,
        "curve_size": 60, "dtype_policy": "float64",
    }
    return RunConfig(**{**settings, **changes})


@pytest.mark.parametrize("normalizer", ["none", "batch", "keras_batch"])
@pytest.mark.parametrize(
    "model, optimizer, rates, others",
    [("ioffe_mlp", "sgd", (0.1, 0.4), {}), ("not_mnist_mlp", "sgd", (0.01, 0.05), {}),
     ("deep_mlp_logits", "adam", (0.003, 0.003), {}),
     ("deep_mlp", "sgd", (0.1, 0.2),
      {"batch_size": 17, "last_batch": "keep", "log_interval": 4, "eval_interval": 7})],
)
def test_a_run_of_a_stack_ends_where_it_ends_alone(
    tmp_path, normalizer, model, optimizer, rates, others
):
    """In float64, so that nothing but a mistake can tell them apart."""
    runs = [
        config(model=model, normalizer=normalizer, optimizer=optimizer, seed=seed,
               learning_rate=rate, **others)
        for seed, rate in zip((3, 4), rates)
    ]
    together = StackRunner(splits(), Store(tmp_path))(runs)
    alone = Runner(splits(), Store(tmp_path))
    for run, found in zip(runs, together, strict=True):
        expected = alone(run)
        assert (found.config, found.status, found.start) == (run, OK, expected.start)
        for name in ("loss/train", "accuracy/train", "loss/validation", "accuracy/validation"):
            np.testing.assert_allclose(found.curves[name], expected.curves[name], rtol=1e-5)
        for name in ("test_loss", "test_accuracy", "validation_loss", "steps_to_90_percent"):
            one, other = found.metrics[name], expected.metrics[name]
            assert one == other or one == pytest.approx(other, rel=1e-5), name


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path):
    """Also their moving statistics, though one stack has one BatchNorm for all."""
    good = config(normalizer="batch", model="deep_mlp", steps=30)
    bad = config(normalizer="batch", model="deep_mlp", steps=30, learning_rate=1e200, seed=1)
    alone, = StackRunner(splits(), Store(tmp_path))([good])
    found, lost = StackRunner(splits(), Store(tmp_path))([good, bad])
    assert (found.status, lost.status) == (OK, DIVERGED) and 0 < lost.steps < 30
    assert found.metrics == pytest.approx(alone.metrics, rel=1e-9)
    assert all(step < lost.steps for step, _ in lost.curves.get("loss/train", []))


@pytest.mark.parametrize("model", STACKABLE)
def test_a_stack_of_models_computes_what_the_models_compute(model):
    """Every stackable model, in training mode, with weights that differ by run."""
    shape, outputs = ((1,), 1) if model.startswith("bad_init") else ((4, 4, 1), 3)

    def build(seed, runs=None):
        factory = functools.partial(
            NORMALIZERS.get("batch"), momentum=0.9, epsilon=1e-3, dtype="float64"
        )
        spec = ModelSpec(shape, outputs, factory, dtype="float64", seed=seed, runs=runs)
        return MODELS.get(model)(spec)

    alone = [build(seed) for seed in range(3)]
    stacked = build(0, runs=3)
    for variable, *values in zip(
        stacked.variables, *(one.variables for one in alone), strict=True
    ):
        variable.assign(np.stack(values).reshape(variable.shape))
    x = np.random.default_rng(0).normal(size=(7, 3, *shape))
    y = np.asarray(stacked(x, training=True))
    for run, one in enumerate(alone):
        np.testing.assert_allclose(y[:, run], one(x[:, run], training=True), rtol=1e-9, atol=1e-12)
    penalties = sum(float(sum(one.losses, 0.0)) for one in alone)
    assert float(sum(stacked.losses, 0.0)) == pytest.approx(penalties)


def test_initial_weights_follow_from_the_seed_and_not_from_the_place():
    runs = [config(seed=seed, learning_rate=rate) for seed in (5, 6) for rate in (0.1, 0.2)]
    model, starts = build_stack(runs, splits())
    kernel = model.get_layer("dense1").kernel.numpy()
    assert starts[0] == starts[1] != starts[2] == starts[3]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel[1], kernel[2])


def test_what_goes_into_one_stack():
    runs = [config(seed=seed, learning_rate=rate) for seed in range(3) for rate in (0.1, 0.2)]
    assert [[len(item) for item in group] for group in groups(runs)] == [[6]]
    # Adam's step is not the gradient times the rate: one stack for each rate.
    adam = [config(seed=s, learning_rate=r, optimizer="adam") for s in range(3) for r in (0.1, 0.2)]
    assert [[len(item) for item in group] for group in groups(adam)] == [[3, 3]]
    many = [config(seed=seed) for seed in range(stack.MOST_RUNS + 1)]
    assert [[len(item) for item in group] for group in groups(many)] == [[stack.MOST_RUNS, 1]]
    # What looks at several channels at once, and convolutions, are trained alone.
    assert stacks(config()) and not stacks(config(normalizer="layer"))
    assert not stacks(config(model="conv_bn_relu"))
    layer = [config(normalizer="layer", seed=seed) for seed in range(2)]
    assert [[len(item) for item in group] for group in groups(layer)] == [[1, 1]]


def test_the_dispatcher_takes_both_kinds(tmp_path):
    train = Dispatcher(splits(), Store(tmp_path))
    for normalizer, runs in (("batch", 2), ("layer", 1)):
        found = train([config(normalizer=normalizer, seed=seed) for seed in range(runs)])
        assert [result.config.normalizer for result in found] == [normalizer] * runs


@pytest.mark.parametrize("model, loss", [("bad_init_mlp", None), ("ioffe_mlp", "squared")])
def test_a_loss_for_numbers_is_refused_for_classes(tmp_path, model, loss):
    """And the other way round; the message names loss, model and dataset."""
    with pytest.raises(ConfigError, match="loss='squared' .* labels are classes; expected"):
        StackRunner(splits(), Store(tmp_path))([config(model=model, loss=loss)])
    numbers = dataclasses.replace(splits().train, labels=np.linspace(0, 1, 60, dtype="float32"))
    with pytest.raises(ConfigError, match="loss='softmax' .* labels are numbers; expected"):
        Runner(Splits(numbers, numbers, numbers, classes=1), Store(tmp_path))(config())


def test_percentiles_are_those_of_one_unit_in_front_of_the_last_activation(tmp_path):
    run = config(normalizer="none", steps=5, log_interval=5, eval_interval=5)
    result, = StackRunner(splits(), Store(tmp_path))([run])
    alone = Runner(splits(), Store(tmp_path))
    alone(run)
    model = alone._graph(run)._model
    place = keras.Model(model.input, model.get_layer("dense3_norm").output)
    unit = np.asarray(place(splits().validation.images))[:, 0]
    for percentile in (15, 50, 85):
        (step, value), = result.curves[f"unit/p{percentile}"]
        assert step == 5 and value == pytest.approx(np.percentile(unit, percentile), abs=1e-5)
