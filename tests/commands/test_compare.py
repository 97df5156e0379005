"""`bn_keras.compare`: what a caller's objects become, on tiny nets that are really trained."""

import keras
import numpy as np
import pytest
from make import normal

import bn_keras
from bn_keras import own
from bn_keras.config import ConfigError
from bn_keras.registry import UnknownName

X = normal((150, 4))
Y = (X[:, 0] > 0).astype(int)
DATA = X[:100], Y[:100], X[100:], Y[100:]


def build(normalizer):
    return keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(6), normalizer(), keras.layers.ReLU(),
        keras.layers.Dense(2),
    ])


def finished(**compiled):
    model = build(keras.layers.BatchNormalization)
    if compiled:
        model.compile(**compiled)
    return model


@pytest.fixture
def compare(tmp_path):
    def call(model=build, data=DATA, arms=("none", "batch"), **settings):
        settings = {"seeds": 1, "steps": 4, "logdir": tmp_path / "runs", "progress": False,
                    "batch_size": 16, **settings}
        return bn_keras.compare(model, data, arms, **settings)

    return call


def settings_of(report, name):
    return {getattr(run, name) for run in report.plan.runs}


@pytest.mark.slow
def test_arms_seeds_and_settings_are_those_of_the_call(compare):
    report = compare(arms=["none", "batch", "layer"], seeds=2, first_seed=5)
    assert [(run.arm_name, run.seed) for run in report.plan.runs] == [
        (arm, seed) for arm in ("none", "batch", "layer") for seed in (5, 6)
    ]
    assert settings_of(report, "steps") == {4} and settings_of(report, "optimizer") == {"adam"}
    assert {row.status for row in report.rows} == {"ok"} and not report.missing


@pytest.mark.slow
def test_the_same_call_goes_on_and_another_net_or_other_data_start_anew(compare, tmp_path):
    first = compare(arms=["batch"])
    again = compare(arms=["batch"], seeds=2)
    assert [result.seconds for result in again.results if result.config.seed == 0] == [
        result.seconds for result in first.results
    ]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    compare(data=(X[:100] + 1, *DATA[1:]), arms=["batch"])
    compare(model=lambda normalizer: build(normalizer), arms=["batch"])
    assert len(list((tmp_path / "runs").iterdir())) == 3


@pytest.mark.slow
def test_a_finished_net_whose_weights_have_changed_is_another_one(compare, tmp_path):
    model = finished()
    compare(model, arms=["batch"])
    compare(model, arms=["batch"])
    model.layers[0].kernel.assign_add(np.ones((4, 6)))
    compare(model, arms=["batch"])
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_a_compiled_net_gives_optimizer_rate_loss_and_metrics(compare):
    model = finished(
        optimizer=keras.optimizers.RMSprop(0.03), loss="sparse_categorical_crossentropy",
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(1, name="sparse_top")],
    )
    report = compare(model, arms=["batch"], seeds=2)
    assert list(settings_of(report, "learning_rate")) == [pytest.approx(0.03)]
    assert {own.place(name) for name in settings_of(report, "optimizer")} == {"RMSprop"}
    for row in report.rows:
        assert row.metrics["test_metric_sparse_top"] == pytest.approx(row.metrics["test_accuracy"])
    losses = {own.place(name) for name in settings_of(report, "loss")}
    assert losses == {"sparse_categorical_crossentropy"}
    assert any("All seeds start from the same weights" in note for note in report.notes)
    given = compare(model, arms=["batch"], learning_rate=0.5, optimizer="sgd")
    assert settings_of(given, "learning_rate") == {0.5}
    assert settings_of(given, "optimizer") == {"sgd"}


@pytest.mark.slow
def test_an_optimizer_of_ones_own_makes_its_own_steps(compare):
    """Adam with an epsilon that stops it: the losses of untrained nets."""
    still = compare(optimizer=keras.optimizers.Adam(0.1, epsilon=1e12), arms=["none"])
    moved = compare(optimizer=keras.optimizers.Adam(0.1), arms=["none"])
    first, last = (still.results[0].curves["loss/train"][place][1] for place in (0, -1))
    untrained = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert still.results[0].metrics["test_loss"] != moved.results[0].metrics["test_loss"]
    with own_seed(0):
        model = build(lambda: keras.layers.Identity())
    expected = float(untrained(DATA[3], model(DATA[2])))
    assert still.results[0].metrics["test_loss"] == pytest.approx(expected, rel=1e-3)
    assert first > 0 and last > 0


class own_seed:
    def __init__(self, seed):
        self.seed = seed

    def __enter__(self):
        keras.utils.set_random_seed(self.seed)

    def __exit__(self, *error):
        pass


@pytest.mark.slow
def test_normalizers_of_ones_own_are_arms(compare):
    class Double(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    report = compare(arms={"none": "none", "double": Double, "made": lambda: Double()})
    assert [arm.name for arm in report.arms] == ["none", "double", "made"]
    assert report.plan.study.baseline == "none"
    with pytest.raises(ConfigError, match="expected a keras.Layer"):
        compare(arms={"wrong": lambda: 3})


@pytest.mark.slow
def test_lists_of_values_are_axes_and_each_net_is_compared_at_its_best(compare):
    report = compare(learning_rate=[0.001, 0.1], batch_size=[8, 16], seeds=2, steps=6)
    assert report.plan.study.axes == {"learning_rate": (0.001, 0.1), "batch_size": (8, 16)}
    assert len(report.arms) == 8 and len(report.results) == 16
    compared, = report.comparisons
    assert (compared.arm, compared.baseline, compared.metric) == ("batch", "none", "test_accuracy")
    frame = report.frame()
    assert set(frame.columns) >= {"learning_rate", "batch_size", "test_accuracy"}


@pytest.mark.slow
def test_numbers_are_compared_by_their_loss(compare):
    report = compare(
        lambda normalizer: keras.Sequential([
            keras.Input((4,)), normalizer(), keras.layers.Dense(1)]),
        (X, X[:, 1]), seeds=2, learning_rate=[0.01, 0.1],
    )
    assert report.plan.study.compared == "test_loss"
    best = [line for line in report.verdict.splitlines() if " is best at learning_rate=" in line]
    assert len(best) == 2 and all("test loss" in line for line in best)


@pytest.mark.slow
def test_metrics_of_keras_are_measured(compare):
    report = compare(metrics=["sparse_categorical_accuracy"], arms=["batch"])
    row, = report.rows
    for split in ("validation", "test"):
        assert row.metrics[f"{split}_metric_sparse_categorical_accuracy"] == pytest.approx(
            row.metrics[f"{split}_accuracy"])


class Unregistered(keras.metrics.Metric):
    def __init__(self, name="unregistered"):
        super().__init__(name=name)

    def update_state(self, labels, outputs, sample_weight=None):
        pass

    def result(self):
        return 0.0


WRONG = {
    "compiled metric": ({"model": finished(loss="mse", metrics=[Unregistered()])}, ConfigError,
                        "Unregistered, with which the model was compiled, cannot be made again"),
    "own metric": ({"metrics": [Unregistered()]}, ConfigError, "an __init__ that takes name and"),
    "a number": ({"model": 3}, ConfigError, "model: received 3; expected a function"),
    "unbuilt": ({"model": keras.Sequential([keras.layers.Dense(2)])}, ConfigError, "is not built"),
    "no net": ({"model": "mnist_cn"}, UnknownName, "unknown model 'mnist_cn'"),
    "no file": ({"model": "nowhere.py:build"}, ValueError, "nowhere.py: no such file"),
    "arms": ({"arms": "batch"}, ConfigError, r"arms='batch': expected a list of normalizers"),
    "twice": ({"arms": ["none", "batch", "batch"]}, ConfigError, "arms: received batch twice"),
    "a layer": ({"arms": {"mine": keras.layers.Dense(2)}}, ConfigError, "function that returns"),
    "label": ({"arms": {"plain": "none"}}, ConfigError, "received 'none' under the name 'plain'"),
    "arm": ({"arms": ["none", "btach"]}, UnknownName, "unknown normalizer 'btach'"),
    "setting": ({"leraning_rate": 1.0}, ConfigError, "did you mean 'learning_rate'"),
    "rate": ({"learning_rate": [0.1, -1]}, ConfigError, "learning_rate=-1: expected a number gre"),
    "no rates": ({"learning_rate": []}, ConfigError, r"learning_rate=\[\]: expected a list of val"),
    "axis": ({"log_interval": [1, 2]}, ConfigError, "log_interval: received several values"),
    "normalizer": ({"normalizer": "batch"}, ConfigError, r"expected arms in its place"),
    "loss": ({"loss": "nonsense"}, ConfigError, "loss='nonsense': unknown"),
    "optimizer": ({"optimizer": 3}, ConfigError, "optimizer: received 3; expected"),
    "schedule": ({"optimizer": keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))}, ConfigError, "is a schedule"),
    "metric": ({"metrics": ["nonsense"]}, ConfigError, "metrics: "),
    "data": ({"data": (X, Y[:3])}, ValueError, "150"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_in_a_sentence(case, compare):
    settings, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        compare(**settings)
