"""What a run measures beside its losses and accuracies, against NumPy."""

import numpy as np
import pytest

from bn_keras.config import ConfigError, RunConfig
from bn_keras.data import Split, Splits
from bn_keras.results import Store
from bn_keras.runner import Runner, batch_indices, build_model

TINY = 1e-12  # a rate at which the weights stay what they start as


def splits(examples=480, size=8):
    rng = np.random.default_rng(0)
    labels = (np.arange(examples) % 10).astype(np.int32)
    images = rng.integers(0, 256, (examples, size, size, 1)).astype(np.uint8)
    images[np.arange(examples), labels % size] = 255  # a bright line tells the class
    part = Split(images, labels)
    return Splits(part, part, part, classes=10)


def metrics(config, tmp_path):
    return Runner(splits(), Store(tmp_path))(config).metrics


@pytest.mark.parametrize(
    "normalizer, pixels, loss, some",
    [("none", "raw", "clipped_softmax", True), ("none", "raw", "softmax", False),
     ("none", "unit", "clipped_softmax", False), ("batch", "raw", "clipped_softmax", False)],
)
def test_examples_without_a_gradient_are_those_the_clipped_logarithm_cuts_off(
    normalizer, pixels, loss, some, tmp_path
):
    """BN with the batch's statistics: with those it starts with, raw pixels would cut off some."""
    config = RunConfig(model="ioffe_mlp", normalizer=normalizer, pixels=pixels, loss=loss, steps=1,
                       learning_rate=TINY, batch_size=120, activation="relu", curve_size=100)
    examples, model = splits(), build_model(config, splits())
    batch = examples.train.take(batch_indices(config, len(examples.train), 1)[0])
    logits = model(batch.images, training=True).numpy().astype(float)
    logits -= logits.max(-1, keepdims=True)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    cut_off = (probability[np.arange(120), batch.labels] < 1e-10).mean()
    expected = cut_off if loss == "clipped_softmax" else 0
    assert metrics(config, tmp_path)["start_no_gradient"] == pytest.approx(expected, abs=1e-6)
    assert (expected > 0.1) == some


def test_the_penalty_is_half_a_thousandth_of_all_squares(tmp_path):
    config = RunConfig(model="not_mnist_mlp", optimizer="sgd", steps=1, learning_rate=TINY,
                       pixels="centered", curve_size=100)
    model = build_model(config, splits())
    squares = sum(
        (weight.numpy().astype(float) ** 2).sum() for weight in model.trainable_weights
        if weight.name in ("kernel", "bias")
    )
    found = metrics(config, tmp_path)["penalty"]
    assert found == pytest.approx(0.0005 * squares, rel=1e-4) and found > 1


def test_the_second_curve_ends_where_the_bugs_are_measured(tmp_path):
    """Validation set and test set are the same here."""
    config = RunConfig(model="mnist_cnn", learning_rate=0.002, steps=6, eval_interval=3,
                       curve_size=480, pitfalls="as_written", pitfall_curve="as_written")
    result = Runner(splits(), Store(tmp_path))(config)
    curve = result.curves["accuracy/validation_as_written"]
    assert [step for step, _ in curve] == [3, 6]
    assert curve[-1][1] == pytest.approx(result.metrics["pitfall/as_written/whole"])
    assert curve[0][1] != curve[1][1] != result.metrics["test_accuracy"]
    measured = {name.split("/")[1] for name in result.metrics if name.startswith("pitfall/")}
    assert measured == {"as_written", "images"}, "more was measured than asked for"


@pytest.mark.parametrize("blank", [False, True], ids=["as it is", "one class alone"])
def test_predicted_classes_are_those_that_some_example_gets(blank, tmp_path):
    """With all inputs at 0 the logits are the last layer's biases: one class for every example."""
    part = splits().train
    if blank:
        part = Split(np.zeros_like(part.images), part.labels)
    examples = Splits(part, part, part, classes=10)
    config = RunConfig(model="ioffe_mlp", normalizer="none", steps=1, learning_rate=TINY,
                       curve_size=480, pixels="raw", activation="relu")
    logits = build_model(config, examples)(part.images).numpy()
    found = Runner(examples, Store(tmp_path))(config).metrics["predicted_classes"]
    assert found == len({int(row.argmax()) for row in logits})
    assert (found == 1) == blank


def test_numbers_are_not_trained_on_as_if_they_were_classes(tmp_path):
    part = Split(np.zeros((40, 1), np.float32), np.linspace(0, 1, 40, dtype=np.float32))
    config = RunConfig(model="bad_init_mlp", normalizer="layer", dataset="quadratic", pixels="raw")
    with pytest.raises(ConfigError, match="labels are numbers, with model='bad_init_mlp' and norm"):
        Runner(Splits(part, part, part, classes=1), Store(tmp_path))(config)


@pytest.mark.parametrize("setting", ["pitfalls", "pitfall_curve"])
def test_an_unknown_evaluation_is_named_with_the_known_ones(setting, tmp_path):
    config = RunConfig(model="ioffe_mlp", steps=1, curve_size=100, **{setting: "never_updatd"})
    with pytest.raises(ValueError, match="unknown evaluation 'never_updatd'; known: correct, "):
        metrics(config, tmp_path)
