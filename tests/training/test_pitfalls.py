"""Every bug against hand-computed logits, and what the study of them says."""

import dataclasses
import functools
import io
import itertools

import keras
import numpy as np
import pytest
from rich.console import Console
from test_results import result

from bn_keras import BatchNorm, data, losses, report, runner, stack
from bn_keras.batch_norm import reference
from bn_keras.diagnostics import pitfalls
from bn_keras.registry import STUDIES
from bn_keras.results import Store
from bn_keras.studies import Row
from bn_keras.studies import pitfalls as study

STUDY = STUDIES.get("pitfalls")()
EPSILON = 1e-3
PLACES = ("conv_norm", "dense_norm", "logits_norm")
POPULATION, FRESH, BATCH, SKIPPED = "population", "fresh", "batch", "skipped"
# What each evaluation does at the three normalizers.
MODES = {
    "correct": (POPULATION, POPULATION, POPULATION),
    "never_updated": (FRESH, FRESH, FRESH),
    "conv_never_updated": (FRESH, POPULATION, POPULATION),
    "batch_statistics": (BATCH, BATCH, BATCH),
    "dense_batch_statistics": (POPULATION, BATCH, BATCH),
    "as_written": (FRESH, BATCH, BATCH),
    "without_bn": (SKIPPED, SKIPPED, SKIPPED),
}


def net(normalizer=BatchNorm, seed=0):
    """1x1 convolution, BN, relu, dense, BN, relu, dropout, dense, BN; no weight is as it starts."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((3, 3, 2))
    x = keras.layers.Conv2D(4, 1, name="conv")(inputs)
    x = keras.layers.Activation("relu")(normalizer(epsilon=EPSILON, name="conv_norm")(x))
    x = keras.layers.Dense(3, name="dense")(keras.layers.Flatten()(x))
    x = keras.layers.Activation("relu")(normalizer(epsilon=EPSILON, name="dense_norm")(x))
    x = keras.layers.Dense(5, name="logits")(keras.layers.Dropout(0.5, seed=1)(x))
    model = keras.Model(inputs, normalizer(epsilon=EPSILON, name="logits_norm")(x))
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) * rng.choice([-1, 1], weight.shape))
        if weight.name == "moving_variance":
            weight.assign(np.abs(weight))
    return model


def images(count=40):
    rng = np.random.default_rng(7)
    return rng.normal(1, 2, (count, 3, 3, 2)).astype("float32"), rng.integers(0, 5, count)


def oracle(model, x, modes, kept=1.0):
    """Logits in NumPy; `kept` multiplies what stands at the dropout."""
    weights = {w.path: w.numpy().astype(float) for w in model.weights}

    def linear(name, x):
        kernel = weights[f"{name}/kernel"]
        return x @ kernel.reshape(kernel.shape[-2:]) + weights[f"{name}/bias"]

    def normalized(place, x):
        gamma, beta = weights[f"{place}/gamma"], weights[f"{place}/beta"]
        mode = modes[PLACES.index(place)]
        if mode == SKIPPED:
            return x
        if mode == BATCH:
            return reference.forward(x, gamma, beta, epsilon=EPSILON)[0]
        mean, variance = weights[f"{place}/moving_mean"], weights[f"{place}/moving_variance"]
        if mode == FRESH:
            mean, variance = np.zeros_like(mean), np.ones_like(variance)
        return reference.inference(x, mean, variance, gamma, beta, epsilon=EPSILON)

    x = np.maximum(normalized("conv_norm", linear("conv", x.astype(float))), 0)
    x = np.maximum(normalized("dense_norm", linear("dense", x.reshape(len(x), -1))), 0)
    return normalized("logits_norm", linear("logits", x * kept))


@pytest.mark.parametrize("normalizer", [BatchNorm, keras.layers.BatchNormalization],
                         ids=["ours", "keras"])
@pytest.mark.parametrize("name", MODES)
def test_an_evaluation_gives_the_logits_of_its_bug_and_of_no_other(name, normalizer):
    model, (x, _) = net(normalizer), images()
    found = np.asarray(getattr(pitfalls, name)(model)(x))
    for other, modes in MODES.items():
        same = np.allclose(found, oracle(model, x, modes), rtol=1e-4, atol=1e-3)
        assert same == (other == name), other


def test_active_dropout_drops_units_and_leaves_the_normalizers_in_inference_mode():
    model, (x, _) = net(), images()
    forward = pitfalls.dropout_active(model)
    possible = np.stack([
        oracle(model, x, MODES["correct"], 2 * np.array(kept))  # what stays is doubled
        for kept in itertools.product([0.0, 1.0], repeat=3)
    ])
    found = [np.asarray(forward(x)) for _ in range(2)]
    for logits in found:
        error = np.abs(possible - logits).max(-1).min(0)
        assert error.max() < 1e-3
    assert not np.allclose(*found), "the same units were dropped twice"


@pytest.fixture(scope="module")
def measured():
    """(model, its variables before, what was measured of it)."""
    model, (x, labels) = net(), images()
    before = [variable.numpy() for variable in model.variables]
    return model, before, pitfalls.measure(model, x, labels, losses.softmax)


def test_the_model_is_left_as_it_was(measured):
    model, before, _ = measured
    assert len(before) > 18  # the state of the dropout's random numbers, too
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_measured_are_the_bugs_a_model_can_have():
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    assert pitfalls.evaluations(plain) == ["correct"]
    dropping = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))
    assert pitfalls.evaluations(dropping) == ["correct", "dropout_active"]
    dense = keras.Model(inputs, BatchNorm()(inputs))
    assert pitfalls.evaluations(dense) == [
        "correct", "never_updated", "batch_statistics", "without_bn"
    ]
    assert set(pitfalls.evaluations(net())) == {*MODES, "dropout_active"}


@pytest.mark.parametrize("name", MODES)
def test_accuracy_loss_and_spread_are_those_of_the_logits(name, measured):
    (model, _, found), (x, labels) = measured, images()
    assert found["pitfall/images"] == 40
    logits = functools.partial(oracle, model, modes=MODES[name])
    for key, size in {"whole": 40, "16": 16, "2": 2, "1": 1}.items():
        together = np.concatenate([logits(x[start:start + size]) for start in range(0, 40, size)])
        right = (together.argmax(-1) == labels).mean()
        assert found[f"pitfall/{name}/{key}"] == pytest.approx(right), key
    spread = (together.max(0) - together.min(0)).max()
    assert found[f"pitfall/{name}/spread"] == pytest.approx(spread, rel=1e-4, abs=1e-4)
    whole = logits(x)
    whole -= whole.max(-1, keepdims=True)
    loss = np.log(np.exp(whole).sum(-1)) - whole[np.arange(40), labels]
    assert found[f"pitfall/{name}/loss"] == pytest.approx(loss.mean(), rel=1e-4)


def test_every_bug_that_is_measured_has_its_words_and_the_other_way_round():
    assert {pitfall.evaluation for pitfall in study.PITFALLS} == set(pitfalls.evaluations(net()))
    assert study.BATCHES == tuple(pitfalls.BATCH_SIZES)
    assert {arm for pitfall in study.PITFALLS for arm in pitfall.arms} == set(STUDY.arms)
    for pitfall in study.PITFALLS:
        for text in (pitfall.name, pitfall.see, pitfall.notice, pitfall.remedy):
            assert text and text == text.strip()
    assert all(settings["pitfalls"] for settings in STUDY.arms.values())


def test_the_table_has_medians_and_leaves_out_what_no_net_showed():
    rows = [
        Row("CNN", seed, {"pitfall/correct/whole": value, "pitfall/correct/loss": None})
        for seed, value in enumerate((0.5, 0.9, 0.8))
    ]
    (headings, effects), (_, words) = study.tables(rows)
    assert headings == ("pitfall", "net", "whole", "by 16", "by 2", "by 1", "loss")
    # Correct inference, and the comparison of losses, whose other net was not trained.
    correct, losses = ([cell.split("\n") for cell in row[1:]] for row in effects)
    assert [cell[0] for cell in correct] == ["CNN", ".800", "–", "–", "–", "–"]
    assert [cell[1:] for cell in correct] == [
        ["before"], [".983–.986"], [""], [""], [".98–1"], [".142"]
    ]
    assert losses == [["CNN"], [".800"], ["–"], ["–"], ["–"], ["–"]]
    assert [row[0] for row in words] == [row[0] for row in effects]
    assert words[0][1].startswith("the same accuracy")


def test_the_report_comes_from_the_work_directory(tmp_path):
    store = Store(tmp_path)
    store.write_study("pitfalls", False)
    runs = STUDY.expand({}, range(3))
    measured = {
        f"pitfall/{name}/{what}": 0.25 for name in (*MODES, "dropout_active")
        for what in (*study.MEASURED, "spread")
    }
    metrics = {"pitfall/images": 480.0, **dict.fromkeys(STUDY.metrics, 0.5), **measured}
    for config in runs:
        store.add(dataclasses.replace(result(), config=config, metrics=metrics))
    store.write_plan(runs)
    summary, picture = report.write(store)
    assert (tmp_path / "picture.png").read_bytes() == picture and len(picture) > 10_000
    console = Console(width=260, file=io.StringIO())
    console.print(summary.table())
    text = console.file.getvalue()
    for pitfall in study.PITFALLS:
        assert pitfall.name in text and pitfall.remedy.split(",")[0][:20] in text
    assert ".250" in text


def test_a_net_whose_pitfalls_are_measured_is_trained_alone():
    (config,) = [run for run in STUDY.expand({}, [0]) if run.arm == "MLP"]
    assert not stack.stacks(config)
    assert stack.stacks(dataclasses.replace(config, pitfalls=None))


def test_the_bug_of_one_batch_draws_its_rows_again_and_again():
    (config,) = [run for run in STUDY.expand({}, [0]) if run.drawn_batches]
    batches = runner.batch_indices(config, 55_000, 20)
    assert batches.shape == (20, 64)
    assert all(sorted(batch) == list(range(64)) for batch in batches)
    right = runner.batch_indices(dataclasses.replace(config, drawn_batches=None), 55_000, 20)
    assert len(np.unique(right)) == 20 * 64


@pytest.mark.slow
def test_one_set_of_weights_is_right_and_a_constant_classifier(tmp_path):
    """mnist_cnn after 100 steps: correct at least .9 singly, as written the same of all images."""
    splits = data.load("mnist", train_size=10_000, validation_size=500, test_size=320)
    (config,) = [
        run for run in STUDY.expand({}, [0], quick=True) if run.arm == "CNN"
    ]
    run = runner.Runner(splits, Store(tmp_path))(dataclasses.replace(config, steps=100))
    found = {name.removeprefix("pitfall/"): value for name, value in run.metrics.items()}
    assert found["correct/1"] >= 0.9 and found["correct/spread"] > 1
    assert found["as_written/spread"] < 1e-4 and found["as_written/1"] <= 0.25
    assert found["as_written/whole"] >= 0.9 > 0.8 >= found["never_updated/whole"]
    assert found["dropout_active/1"] >= 0.9
