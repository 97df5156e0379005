"""What probes measure of nets, alone and side by side, against NumPy."""

import functools

import keras
import numpy as np
import pytest
from make import bright_splits, number_splits, run_config

from bn_keras import losses
from bn_keras.batch_norm import reference
from bn_keras.diagnostics import pitfalls, probe
from bn_keras.diagnostics.probe import Nets, make_probe
from bn_keras.loop import NO_EXAMPLE, Steps, Task
from bn_keras.models.blocks import normalizers
from bn_keras.nets import build
from bn_keras.registry import PROBES

EPSILON = 1e-3
HIDDEN = ("dense1", "dense2", "dense3")
SPLITS = bright_splits()
VALIDATION, TEST = SPLITS.validation, SPLITS.test


def perturbed(model, seed):
    """Every weight somewhere else than where it starts; variances positive."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 3, variable.shape))
        elif variable.name in ("kernel", "bias", "gamma", "beta", "moving_mean"):
            variable.assign(variable + rng.normal(0, 0.3, variable.shape))
    return model


def weights_of(model):
    return {variable.path: variable.numpy().astype(float) for variable in model.variables}


def stacked_nets(alone, config, splits, loss):
    """Nets that hold the weights of some models alone side by side; one alone with one model."""
    net = build(config, splits, len(alone))
    for variable, *values in zip(net.variables, *(one.variables for one in alone), strict=True):
        variable.assign(np.stack([value.numpy() for value in values]).reshape(variable.shape))
    return Nets(net, splits, Task(loss), len(alone))


def make_nets(runs, config, splits=SPLITS, loss=losses.softmax):
    """(Nets, the weights of each run); runs=None is a net that cannot stand beside others."""
    models = [perturbed(build(config, splits), seed) for seed in range(runs or 1)]
    if runs is None:
        nets = Nets(models[0], splits, Task(loss), None)
    else:
        nets = stacked_nets(models, config, splits, loss)
    nets.configs = [config] * (runs or 1)
    nets.batches = np.stack(
        [np.random.default_rng(seed).permutation(24).reshape(2, 12) for seed in range(runs or 1)],
        -1,
    )
    return nets, [weights_of(model) for model in models]


def forward(weights, images, mode="population"):
    """What stands where in ioffe_mlp, in NumPy: dict of `LAYER`, `LAYER_norm`, `LAYER_relu`."""
    found = {}
    x = images.reshape(len(images), -1) / 255
    for name in (*HIDDEN, "logits_dense"):
        found[f"{name}/input"] = x
        x = x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0)
        found[name] = x
        place = f"{name}_norm"
        if f"{place}/gamma" in weights:
            gamma, beta = weights[f"{place}/gamma"], weights[f"{place}/beta"]
            if mode == "batch":
                x = reference.forward(x, gamma, beta, epsilon=EPSILON)[0]
            else:
                x = reference.inference(
                    x, weights[f"{place}/moving_mean"], weights[f"{place}/moving_variance"],
                    gamma, beta, epsilon=EPSILON,
                )
        found[place] = x
        x = np.maximum(x, 0) if name in HIDDEN else x
        found[f"{name}_relu"] = x
    return found


def logits(weights, images, mode="population"):
    return forward(weights, images, mode)["logits_dense"]


def cross_entropies(values, labels):
    values = values - values.max(-1, keepdims=True)
    return np.log(np.exp(values).sum(-1)) - values[np.arange(len(labels)), labels]


def accuracy(values, labels):
    return (values.argmax(-1) == labels).mean()


def close(found, expected):
    """Keras rounds the pixels' scale to float32."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def approx(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-9)


CONFIG = run_config()
RUNS = pytest.mark.parametrize("runs", [None, 1, 2], ids=["alone", "stack of one", "stack of two"])
FEW = pytest.mark.parametrize("runs", [None, 2], ids=["alone", "stack of two"])


@functools.lru_cache(maxsize=None)
def batch_nets(runs):
    return make_nets(runs, CONFIG)


@functools.lru_cache(maxsize=None)
def plain_nets(runs):
    return make_nets(runs, run_config(normalizer="none"))


def started(name, nets):
    found = make_probe(name, nets)
    assert set(found.start()) <= set(curves_of(name))
    return found


def curves_of(name):
    return PROBES.properties(name.partition(":")[0]).get("metrics", {})


def no_steps(runs):
    runs = runs or 1
    return Steps(np.zeros((1, runs)), np.zeros((1, runs)), np.zeros(runs))


def test_every_probe_says_what_it_gives():
    names = PROBES.names()
    assert len(names) >= 12
    for name in names:
        for metric, (title, unit, worse) in PROBES.properties(name).get("metrics", {}).items():
            assert metric and title and isinstance(unit, str)
            assert worse in ("high", "low", None)
    assert probe.measured_always() == ["evaluation", "training"]


@pytest.mark.parametrize("name, known", [
    ("pitfalls:never_updatd", "never_updatd"), ("pitfall_curve:never_updatd", "never_updatd"),
    ("pitfall_curve", "None"),
])
def test_an_unknown_argument_is_refused_with_the_known_ones(name, known):
    with pytest.raises(ValueError, match=f"unknown evaluation '?{known}'?; known: correct, "):
        make_probe(name, batch_nets(None)[0])


@pytest.mark.parametrize("name", [
    name for name in PROBES.names() if "pitfall" not in name and name != "keras_metric"
])
def test_an_argument_that_a_probe_does_not_take_is_refused(name):
    with pytest.raises(ValueError, match="takes no argument; received 'everything'"):
        make_probe(f"{name}:everything", batch_nets(None)[0])


def test_an_unknown_probe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown probe 'penalti'.*did you mean 'penalty'"):
        make_probe("penalti", batch_nets(None)[0])


@FEW
def test_training_reports_the_last_of_the_steps(runs):
    nets, weights = batch_nets(runs)
    count = len(weights)
    steps = Steps(
        np.arange(2.0 * count).reshape(2, count), np.arange(2.0 * count).reshape(2, count) / 8,
        np.arange(count) + 5.0,
    )
    found = started("training", nets).during(2, steps)
    np.testing.assert_array_equal(found["loss/train"], steps.loss[1])
    np.testing.assert_array_equal(found["accuracy/train"], steps.accuracy[1])
    np.testing.assert_array_equal(found["gradient/norm"], steps.gradient_norm)
    # One layer, and one count, serves all the runs of a stack.
    assert ("statistics/skipped_batches" in found) == (runs is None)


def test_training_counts_the_batches_that_the_guards_left_out():
    nets, _ = make_nets(None, CONFIG)
    images = np.full((12, 4, 4, 1), np.nan)
    nets.net(images, training=True)
    found = started("training", nets).during(1, no_steps(None))
    assert found["statistics/skipped_batches"] == [3], "one in each of three layers"


@pytest.mark.slow
@RUNS
def test_evaluation_has_the_losses_and_accuracies_of_numpy(runs):
    nets, weights = batch_nets(runs)
    measured = started("evaluation", nets)
    curve, metrics = measured.during(4, no_steps(runs)), measured.at_end()
    for run, own in enumerate(weights):
        part = VALIDATION.first(CONFIG.curve_size)
        assert len(part) < len(VALIDATION)
        values = logits(own, part.images)
        assert curve["loss/validation"][run] == approx(cross_entropies(values, part.labels).mean())
        assert curve["accuracy/validation"][run] == approx(accuracy(values, part.labels))
        for name, split in (("validation", VALIDATION), ("test", TEST)):
            values = logits(own, split.images)
            loss = cross_entropies(values, split.labels).mean()
            assert metrics[f"{name}_loss"][run] == approx(loss)
            assert metrics[f"{name}_accuracy"][run] == approx(accuracy(values, split.labels))
            assert metrics[f"{name}_images"][run] == 60


@pytest.mark.slow
def test_the_commonest_class_is_counted_in_each_set():
    splits = bright_splits()
    splits.validation.labels[:] = [2] * 45 + [0] * 15
    splits.test.labels[:30] = 1
    nets = Nets(batch_nets(None)[0].net, splits, Task(losses.softmax), None)
    nets.configs = [CONFIG]
    metrics = started("evaluation", nets).at_end()
    assert metrics["validation_commonest"] == 45 / 60
    assert metrics["test_commonest"] == np.bincount(splits.test.labels)[1] / 60 > 0.6


def test_steps_to_a_target_are_those_of_the_first_evaluation_that_has_it(monkeypatch):
    """Exactly 90 % is enough, later drops do not matter, and what is never reached is NaN."""
    nets, _ = batch_nets(2)
    measured = started("evaluation", nets)
    for step, accuracies in ((5, (0.5, 0.1)), (10, (0.9, 0.2)), (15, (0.3, 0.96)), (20, (1, 0.9))):
        answer = np.zeros(2), np.float32(accuracies)
        monkeypatch.setattr(nets, "evaluate", lambda *args, answer=answer: answer)
        measured.during(step, no_steps(2))
    metrics = measured.at_end()
    found = [metrics[f"steps_to_{percent}_percent"].tolist() for percent in (90, 95, 97, 98)]
    np.testing.assert_array_equal(found, [[10, 15], [20, 15], [20, np.nan], [20, np.nan]])


@pytest.mark.slow
@FEW
def test_a_regression_has_losses_and_no_accuracies(runs):
    splits = number_splits()
    config = run_config(model="bad_init_mlp", dataset="quadratic", pixels="raw")
    nets, _ = make_nets(runs, config, splits, losses.squared)
    nets.configs = [config] * nets.runs
    found = {}
    for name in ("training", "evaluation", "one_at_a_time", "predicted_classes"):
        measured = started(name, nets)
        found.update(measured.during(1, no_steps(runs)))
        found.update(measured.at_end())
    assert {"loss/train", "loss/validation", "validation_loss", "test_loss"} <= set(found)
    assert not [name for name in found if "accuracy" in name or "commonest" in name
                or "percent" in name or "classes" in name]
    outputs = nets.predict(splits.test.images)[:, :, 0]
    expected = np.mean((outputs - splits.test.labels[:, None]) ** 2, 0)
    np.testing.assert_allclose(found["test_loss"], expected, rtol=1e-5)


@FEW
def test_histograms_show_what_goes_into_and_out_of_every_normalizer(runs):
    nets, weights = batch_nets(runs)
    found = started("histograms", nets).histograms(3)
    assert len(found) == 3 * 6
    for run, own in enumerate(weights):
        values = forward(own, VALIDATION.images)
        for name in HIDDEN:
            place = f"{name}_norm"
            for what, expected in (("input", values[name]), ("output", values[place])):
                # 60 images by 100 units by 2 runs are 12,000 values: none is left out.
                close(found[f"{place}/{what}"][run], expected)
            for what in ("gamma", "beta", "moving_mean", "moving_variance"):
                np.testing.assert_allclose(
                    found[f"{place}/{what}"][run], own[f"{place}/{what}"], rtol=1e-12
                )


def test_histograms_take_evenly_spaced_values_of_large_activations(monkeypatch):
    from bn_keras.diagnostics import histograms

    monkeypatch.setattr(histograms, "MAX_VALUES", 1000)
    nets, (own,) = batch_nets(None)
    found = started("histograms", nets).histograms(0)["dense1_norm/input"]
    close(found[0], forward(own, VALIDATION.images)["dense1"][::7])


@FEW
def test_the_arm_without_a_normalizer_has_histograms_of_its_places(runs):
    nets, weights = plain_nets(runs)
    found = started("histograms", nets).histograms(0)
    assert set(found) == {f"{name}_norm/{what}" for name in HIDDEN for what in ("input", "output")}
    for run, own in enumerate(weights):
        expected = forward(own, VALIDATION.images)["dense3"]
        close(found["dense3_norm/output"][run], expected)


@pytest.mark.slow
@FEW
def test_single_images_have_the_accuracy_that_numpy_gives_the_first_hundred(runs, monkeypatch):
    from bn_keras.diagnostics import one_at_a_time

    monkeypatch.setattr(one_at_a_time, "IMAGES", 50)  # of 60
    nets, weights = batch_nets(runs)
    found = started("one_at_a_time", nets).at_end()["one_at_a_time_accuracy"]
    part = TEST.first(50)
    assert found == approx([accuracy(logits(own, part.images), part.labels) for own in weights])


@pytest.mark.slow
@FEW
def test_batch_statistics_are_those_of_the_validation_images(runs):
    """One batch of 40; the accuracy differs from the one with population statistics."""
    nets, weights = batch_nets(runs)
    found = started("batch_statistics", nets).at_end()["validation_accuracy_batch_statistics"]
    part = VALIDATION.first(CONFIG.curve_size)
    expected = [accuracy(logits(own, part.images, "batch"), part.labels) for own in weights]
    assert found == approx(expected)
    assert expected != [accuracy(logits(own, part.images), part.labels) for own in weights]


@pytest.mark.parametrize("name", ["batch_statistics", "population_loss"])
def test_nets_without_batch_normalization_have_nothing_of_its_statistics(name):
    assert started(name, plain_nets(2)[0]).at_end() == {}


@FEW
@pytest.mark.parametrize("model, factor", [("not_mnist_mlp", 0.0005), ("ioffe_mlp", 0.0)])
def test_the_penalty_is_that_of_all_squares_of_kernels_and_biases(model, factor, runs):
    nets, weights = make_nets(runs, run_config(model=model))
    expected = [
        factor * sum((value**2).sum() for path, value in own.items()
                     if path.endswith(("/kernel", "/bias")))
        for own in weights
    ]
    assert started("penalty", nets).at_end()["penalty"] == approx(expected)
    assert (min(expected) > 1) == (factor > 0)


@FEW
def test_predicted_classes_are_those_that_some_image_gets(runs):
    nets, weights = batch_nets(runs)
    part = VALIDATION.first(CONFIG.curve_size)
    expected = [len({int(row.argmax()) for row in logits(own, part.images)}) for own in weights]
    assert started("predicted_classes", nets).at_end()["predicted_classes"] == approx(expected)


def test_predicted_classes_are_counted_run_by_run():
    """A bias alone decides in the first run, one class for all; in the second one the images do."""
    nets, _ = make_nets(2, CONFIG)
    kernel = np.random.default_rng(0).normal(0, 10, (2, 100, 3))
    kernel[0] = 0
    nets.net.get_layer("logits_dense").kernel.assign(kernel)
    nets.net.get_layer("logits_dense").bias.assign([0, 0, 5, 0, 0, 0])
    part = VALIDATION.first(CONFIG.curve_size)
    second = set(nets.predict(part.images)[:, 1].argmax(-1))
    assert len(second) > 1
    found = started("predicted_classes", nets).at_end()["predicted_classes"]
    assert found.tolist() == [1, len(second)]


@FEW
@pytest.mark.parametrize("nets_of", [batch_nets, plain_nets], ids=["batch", "none"])
@pytest.mark.parametrize("loss", [losses.softmax, losses.clipped_softmax],
                         ids=["softmax", "clipped"])
def test_examples_without_a_gradient_are_those_the_clipped_logarithm_cuts_off(
    runs, nets_of, loss
):
    """Of the first batch, each run its own; BN with that batch's statistics."""
    nets, weights = nets_of(runs)
    for layer in nets.net.layers:  # large logits, so that some probabilities vanish
        if layer.name == "logits_dense":
            before = layer.kernel.numpy()
            layer.kernel.assign(before * 20)
    shared = Nets(nets.net, SPLITS, Task(loss), runs)
    shared.configs, shared.batches = nets.configs, nets.batches
    try:
        found = make_probe("no_gradient", shared).at_start()["start_no_gradient"]
    finally:
        nets.net.get_layer("logits_dense").kernel.assign(before)
    for run, own in enumerate(weights):
        batch = SPLITS.train.take(nets.batches[0, :, run])
        own = {**own, "logits_dense/kernel": own["logits_dense/kernel"] * 20}
        lost = cross_entropies(logits(own, batch.images, "batch"), batch.labels) > -np.log(1e-10)
        assert lost.mean() > 0.1, "a case in which nothing is cut off proves nothing"
        expected = lost.mean() if loss is losses.clipped_softmax else 0
        assert found[run] == approx(expected)


def test_a_first_batch_that_is_smaller_than_the_others_counts_its_own_examples():
    nets, _ = make_nets(None, CONFIG)
    nets.batches = np.array([[[0], [1], [2], [NO_EXAMPLE]]])
    assert make_probe("no_gradient", nets).at_start()["start_no_gradient"] == [0]


@FEW
def test_units_are_percentiles_in_front_of_the_last_activation(runs):
    nets, weights = batch_nets(runs)
    measured = started("units", nets)
    images = VALIDATION.images[:CONFIG.curve_size]
    found = measured.during(2, no_steps(runs))
    np.testing.assert_allclose(found["units/median_range"], 0)
    last = nets.net.get_layer("dense3_norm")
    shift = np.linspace(-1, 2, last.beta.shape[0])
    before = last.beta.numpy()
    try:
        last.beta.assign(before + shift)
        again = measured.during(4, no_steps(runs))
    finally:
        last.beta.assign(before)
    for run, own in enumerate(weights):
        units = forward(own, images)["dense3_norm"]
        for percent in (15, 50, 85):
            expected = np.percentile(units[:, 0], percent)
            assert found[f"unit/p{percent}"][run] == approx(expected)
        travelled = np.abs(shift.reshape(len(weights), -1)[run]).mean()
        assert again["units/median_range"][run] == approx(travelled)


def test_units_of_a_convolution_are_its_places_one_behind_the_other():
    splits = bright_splits(examples=6, size=12)
    nets, _ = make_nets(None, run_config(model="conv_bn_relu", curve_size=6), splits)
    found = started("units", nets).during(1, no_steps(None))
    place = keras.Model(nets.net.input, normalizers(nets.net)[-1].output)
    values = np.asarray(place(splits.validation.images))
    assert values.ndim == 4
    assert found["unit/p50"] == approx([np.median(values[:, 0, 0, 0])])


@pytest.mark.slow
@FEW
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_layers_measure_the_signal_and_dead_or_saturated_units(runs, activation):
    config = run_config(normalizer="none", activation=activation)
    nets, weights = make_nets(runs, config)
    # Some units dead or saturated, others not.
    shift = np.linspace(0, 12 if activation == "tanh" else 2, 100)
    layer = nets.net.get_layer("dense2")
    layer.bias.assign(layer.bias - np.tile(shift, len(weights)))
    measured = started("layers", nets)
    found = {**measured.at_start(), **measured.at_end()}
    for run, own in enumerate(weights):
        x, layers = SPLITS.train.images.reshape(60, -1) / 255, []
        for name in HIDDEN:
            kernel, bias = own[f"{name}/kernel"], own[f"{name}/bias"]
            if name == "dense2":
                bias = bias - shift
            x = x @ kernel + bias
            x = np.maximum(x, 0) if activation == "relu" else np.tanh(x)
            layers.append(x)
        kind = "dead" if activation == "relu" else "saturated"
        shares = []
        for number, values in enumerate(layers, start=1):
            deviation = values.std(0).mean()
            dead = (values == 0).all(0)
            saturated = (np.abs(values) > 0.95).mean(0) > 0.5
            shares.append((dead if activation == "relu" else saturated).mean())
            for when in ("start", "end"):
                assert found[f"{when}_std_layer_{number}"][run] == pytest.approx(
                    deviation, rel=1e-5
                )
                share = found[f"{when}_{kind}_units_layer_{number}"][run]
                assert share == pytest.approx(shares[-1])
        assert 0.1 < shares[1] < 0.9
        assert found[f"start_{kind}_units"][run] == approx(np.mean(shares))
    other = "saturated" if activation == "relu" else "dead"
    assert not [name for name in found if other in name]


@FEW
def test_frames_hold_what_every_layer_gets_and_gives_at_every_evaluation(runs):
    nets, weights = batch_nets(runs)
    measured = started("layers", nets)
    curve = measured.during(4, no_steps(runs))
    part = TEST.first(CONFIG.curve_size)
    tags = measured.histograms(4)
    for run, own in enumerate(weights):
        values, frames = forward(own, part.images), measured.frames(run)
        expected = cross_entropies(values["logits_dense"], part.labels).mean()
        assert curve["loss/test"][run] == approx(expected)
        assert frames["layers"].tolist() == [*HIDDEN, "logits_dense"]
        assert frames["steps"].tolist() == [0, 4]
        np.testing.assert_allclose(frames["epochs"], [0, 4 / 5])
        np.testing.assert_array_equal(frames["x"], part.images)
        np.testing.assert_array_equal(frames["y"], part.labels)
        for name in frames["layers"]:
            for end, expected in (("input", values[f"{name}/input"]), ("output", values[name])):
                assert frames[f"{name}/{end}"].shape == (2, *expected.shape)
                close(frames[f"{name}/{end}"][1], expected)
            close(tags[f"{name}/pre-activation"][run], values[name])
        assert "grid" not in frames


@pytest.mark.slow
@FEW
def test_frames_of_a_function_of_one_number_have_its_curve(runs):
    splits = number_splits()
    config = run_config(model="bad_init_mlp", pixels="raw", activation="tanh")
    nets, _ = make_nets(runs, config, splits, losses.squared)
    measured = started("layers", nets)
    for run in range(nets.runs):
        frames = measured.frames(run)
        grid = frames["grid"]
        assert (grid.min(), grid.max()) == (splits.test.images.min(), splits.test.images.max())
        expected = nets.predict(grid[:, None])[:, run, 0]
        np.testing.assert_allclose(frames["fitted"], expected[None], rtol=1e-4, atol=1e-6)


@FEW
def test_the_population_loss_is_that_with_statistics_over_all_training_images(runs):
    nets, weights = batch_nets(runs)
    found = started("population_loss", nets).at_end()["test_loss_population_statistics"]
    for run, own in enumerate(weights):
        exact = dict(own)
        for name in HIDDEN:  # each behind layers that are done already
            values = forward(exact, SPLITS.train.images)[name]
            exact[f"{name}_norm/moving_mean"] = values.mean(0)
            exact[f"{name}_norm/moving_variance"] = values.var(0)
        expected = cross_entropies(logits(exact, TEST.images), TEST.labels).mean()
        assert found[run] == pytest.approx(expected, rel=1e-5)
        before = cross_entropies(logits(own, TEST.images), TEST.labels).mean()
        assert abs(before - expected) > 1e-3


def fresh(own):
    """The weights with population statistics as they start."""
    changed = dict(own)
    for path, value in own.items():
        if path.endswith("moving_mean"):
            changed[path] = np.zeros_like(value)
        if path.endswith("moving_variance"):
            changed[path] = np.ones_like(value)
    return changed


BUGS = {
    "correct": logits,
    "never_updated": lambda own, images: logits(fresh(own), images),
    "batch_statistics": lambda own, images: logits(own, images, "batch"),
    "without_bn": lambda own, images: logits(
        {path: value for path, value in own.items() if "_norm/" not in path}, images
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("runs", [None, 2], ids=["alone", "stack of two"])
def test_pitfalls_are_measured_in_batches_of_all_sizes(runs):
    nets, weights = batch_nets(runs)
    before = [variable.numpy() for variable in nets.net.variables]
    found = started("pitfalls", nets).at_end()
    assert {name.split("/")[1] for name in found} == {*BUGS, "images"}
    assert len(found) == 1 + 6 * len(BUGS)
    np.testing.assert_array_equal(found["pitfall/images"], 60)
    for run, own in enumerate(weights):
        for name, bug in BUGS.items():
            for key, size in {"whole": 60, "16": 16, "2": 2, "1": 1}.items():
                starts = range(0, 60, size)
                together = np.concatenate([bug(own, TEST.images[at:at + size]) for at in starts])
                share = accuracy(together, TEST.labels)
                assert found[f"pitfall/{name}/{key}"][run] == approx(share), (name, key)
            spread = np.ptp(together, axis=0).max()
            assert found[f"pitfall/{name}/spread"][run] == pytest.approx(
                spread, rel=1e-5, abs=1e-9
            ), name
            loss = cross_entropies(bug(own, TEST.images), TEST.labels).mean()
            assert found[f"pitfall/{name}/loss"][run] == pytest.approx(loss, rel=1e-5), name
    for variable, value in zip(nets.net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


@pytest.mark.slow
def test_one_pitfall_by_name_measures_that_one():
    found = started("pitfalls:without_bn", batch_nets(2)[0]).at_end()
    assert {name.split("/")[1] for name in found} == {"without_bn", "images"}
    # One that means nothing for a net gives nothing.
    assert set(started("pitfalls:without_bn", plain_nets(2)[0]).at_end()) == {"pitfall/images"}


@pytest.mark.slow
@FEW
@pytest.mark.parametrize("name", ["never_updated", "batch_statistics"])
def test_the_second_curve_follows_the_weights_as_they_are_now(runs, name):
    nets, weights = batch_nets(runs)
    measured = started(f"pitfall_curve:{name}", nets)
    part = VALIDATION.first(CONFIG.curve_size)
    bias = nets.net.get_layer("logits_dense").bias
    before = bias.numpy()
    for shift in (0.0, 1000.0):
        try:
            bias.assign(before + shift * (np.arange(len(before)) % 3 == 1))
            found = measured.during(1, no_steps(runs))
        finally:
            bias.assign(before)
        for run, own in enumerate(weights):
            values = BUGS[name](own, part.images) + shift * (np.arange(3) == 1)
            expected = accuracy(values, part.labels)
            assert found[f"accuracy/validation_{name}"][run] == approx(expected)


def test_every_pitfall_is_known_by_its_name():
    for name in pitfalls.EVALUATIONS:
        assert pitfalls.evaluation(name) is pitfalls.EVALUATIONS[name]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", [
    name for name in PROBES.names() if name not in ("pitfall_curve", "keras_metric")
])
def test_probes_measure_nets_in_half_precision(name, policy):
    nets, (own,) = half_nets(policy)
    measured = make_probe(name, nets)
    numbers = {
        **measured.start(), **measured.at_start(), **measured.during(1, no_steps(None)),
        **measured.at_end(),
    }
    for tag, values in numbers.items():
        assert np.shape(values) == (1,), tag
        float(values[0])
    for tag, values in measured.histograms(1).items():
        assert np.isfinite(np.asarray(values, float)).all(), tag


@functools.lru_cache(maxsize=None)
def half_nets(policy):
    return make_nets(None, run_config(dtype_policy=policy))
