"""Runs side by side in one graph end up where each would have ended alone."""

import dataclasses
import functools

import numpy as np
import pytest
from make import bright_splits, run_config

from bn_keras.models.blocks import ModelSpec
from bn_keras.nets import build
from bn_keras.registry import MODELS, NORMALIZERS, PROBES
from bn_keras.results import DIVERGED, OK, Store
from bn_keras.runner import Runner, kernel_digest

STACKABLE = [name for name in MODELS.names() if MODELS.properties(name).get("stacks")]
WITH_ARGUMENT = ("pitfall_curve", "keras_metric")
EVERY_PROBE = tuple(
    name for name in PROBES.names()
    if not PROBES.properties(name).get("always") and name not in WITH_ARGUMENT
)


def runner(folder):
    return Runner(lambda config: bright_splits(), Store(folder))


def assert_equal(found, expected):
    """Two results of one run; a stack has no count of skipped batches of its own."""
    assert (found.config, found.status, found.start) == (
        expected.config, expected.status, expected.start
    )
    assert (found.steps, found.data) == (expected.steps, expected.data)
    assert set(found.curves) == set(expected.curves) - {"statistics/skipped_batches"}
    for name, points in found.curves.items():
        np.testing.assert_allclose(
            points, expected.curves[name], rtol=1e-5, atol=1e-9, err_msg=name
        )
    assert set(found.metrics) == set(expected.metrics)
    for name, value in found.metrics.items():
        other = expected.metrics[name]
        assert value == other or value == pytest.approx(other, rel=1e-5, abs=1e-12), name


@pytest.mark.slow
def test_a_run_of_a_stack_ends_where_it_ends_alone(tmp_path, small_net):
    """In float64, so that nothing but a mistake can tell them apart; another rate for each."""
    runs = [
        run_config(model=small_net, seed=seed, learning_rate=rate, measure=("units",))
        for seed, rate in ((3, 0.1), (4, 0.4))
    ]
    train = runner(tmp_path)
    together = train(runs)
    for run, found in zip(runs, together, strict=True):
        assert_equal(found, *train([run]))
    assert together[0].curves["loss/train"] != together[1].curves["loss/train"]


# Of the net from outside the package, which XLA does not compile; one case is of one that it does.
BESIDE = {
    "every probe": ("small_net", "batch", "sgd", (0.1, 0.4),
                    {"measure": (*EVERY_PROBE, "pitfall_curve:correct"), "l2": 0.01}),
    "adam": ("small_net", "batch", "adam", (0.003, 0.003), {"initializer": "glorot"}),
    # Our layer, whose statistics a stack shares, with all; what a stack does to others is alike.
    "momentum": ("small_net", "keras_batch", "momentum", (0.01, 0.01),
                 {"activation": "tanh", "measure": ("layers",)}),
    "uneven": ("ioffe_mlp", "batch", "sgd", (0.1, 0.2),
               {"batch_size": 17, "last_batch": "keep", "log_interval": 4}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BESIDE)
def test_a_run_of_any_stack_ends_where_it_ends_alone(tmp_path, what, small_net):
    model, normalizer, optimizer, rates, others = BESIDE[what]
    runs = [
        run_config(**{
            "model": model, "normalizer": normalizer, "optimizer": optimizer, "seed": seed,
            "learning_rate": rate, "steps": 12, **others,
        })
        for seed, rate in zip((3, 4), rates)
    ]
    train = runner(tmp_path)
    first, second = train(runs)
    assert (first.status, second.status) == (OK, OK)
    assert_equal(second, *train(runs[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", ["batch", "none"])
def test_a_run_that_diverges_leaves_the_others_alone(tmp_path, normalizer, small_net):
    """Also their moving statistics, though one stack has one BatchNorm for all."""
    good = run_config(
        model=small_net, normalizer=normalizer,
        measure=("units", "penalty", "layers", "histograms"),
    )
    bad = dataclasses.replace(good, learning_rate=1e200, seed=1, arm="bad")
    train = runner(tmp_path)
    found, lost = train([good, bad])
    alone, = train([good])
    assert_equal(found, alone)
    assert (found.status, lost.status) == (OK, DIVERGED) and 0 < lost.steps < good.steps
    assert set(lost.metrics) == set(found.metrics)
    kept = {name for name, value in lost.metrics.items() if value is not None}
    assert kept and all(name.startswith("start_") for name in kept)
    assert all(step < lost.steps for points in lost.curves.values() for step, _ in points)


@pytest.mark.slow
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


@pytest.mark.slow
def test_initial_weights_follow_from_a_run_s_own_settings_and_not_from_its_place(
    tmp_path, small_net
):
    """Equal seeds start alike; another initializer of the same seed does not."""
    settings = [
        {"seed": 5}, {"seed": 5, "learning_rate": 0.2}, {"seed": 6},
        {"seed": 5, "initializer": "he"}, {"seed": 5, "bias": 0.5},
    ]
    base = run_config(model=small_net, normalizer="none", steps=1, log_interval=1)
    runs = [dataclasses.replace(base, **changes) for changes in settings]
    found = runner(tmp_path)(runs)
    starts = [result.start for result in found]
    assert starts == [kernel_digest(build(run, bright_splits())) for run in runs]
    assert starts[0] == starts[1] == starts[4] and len(set(starts)) == 3
    losses = [result.curves["loss/train"][0][1] for result in found]
    assert losses[0] == losses[1] and len(set(losses)) == 4


@pytest.mark.slow
def test_stacks_of_one_graph_and_size_share_its_trace(tmp_path, monkeypatch, small_net):
    """Other seeds, rates and numbers of steps; one Trainer, traced once."""
    from bn_keras import loop

    trainers, traces = [], []
    make, step = loop.Trainer.__init__, loop.Trainer._step
    monkeypatch.setattr(
        loop.Trainer, "__init__",
        lambda self, *args, **kwargs: (trainers.append(self), make(self, *args, **kwargs))[1],
    )
    monkeypatch.setattr(
        loop.Trainer, "_step", lambda self, *args: (traces.append(self), step(self, *args))[1]
    )
    train = runner(tmp_path)
    for seed, rate, steps in ((0, 0.1, 4), (2, 0.2, 6)):
        base = run_config(model=small_net, learning_rate=rate, steps=steps)
        train([dataclasses.replace(base, seed=s) for s in (seed, seed + 1)])
    # TensorFlow calls the body of the loop twice in one trace, to find what it changes.
    assert len(trainers) == 1 and len(traces) <= 2
    train([run_config(model=small_net, steps=1, seed=seed) for seed in range(3)])
    assert len(trainers) == 2, "a stack of another size needs another graph"


@pytest.mark.parametrize("changes", [
    {"steps": 9}, {"measure": ("units",)}, {"model": "deep_mlp"},
    {"optimizer": "adam", "learning_rate": 0.7},
])
def test_runs_that_differ_in_what_a_stack_shares_are_refused(tmp_path, changes):
    first = run_config(optimizer=changes.get("optimizer", "sgd"))
    with pytest.raises(ValueError, match="a stack of 2 runs of .*expected one run"):
        runner(tmp_path)([first, dataclasses.replace(first, **changes)])


@pytest.mark.parametrize(
    "changes",
    [{"model": "conv_bn_relu"}, {"normalizer": "layer"}, {"dtype_policy": "mixed_float16"}],
    ids=["convolution", "layer normalization", "one loss scale"],
)
def test_runs_that_would_mix_with_each_other_are_refused(tmp_path, changes):
    (value,) = changes.values()
    with pytest.raises(ValueError, match=f"a stack of 2 runs of .*{value}.*expected one run"):
        runner(tmp_path)([run_config(seed=seed, **changes) for seed in range(2)])
