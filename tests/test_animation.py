"""What captured runs leave behind, and the pictures that are drawn from it."""

import functools
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_keras import animation, data, report, stack
from bn_keras.config import ConfigError
from bn_keras.diagnostics.layers import LayerRecorder
from bn_keras.registry import STUDIES
from bn_keras.results import Store
from bn_keras.runner import build_model

STUDY = "bad_init_regression"
STEPS, EPOCH = 4, 2  # of 2 steps an epoch


@functools.cache
def points():
    return data.load("quadratic", None, train_size=64, validation_size=20, test_size=30)


def plan(**changes):
    tiny = {"steps": STEPS, "log_interval": EPOCH, "eval_interval": EPOCH, "batch_size": 32}
    return STUDIES.get(STUDY)().expand({**tiny, **changes}, range(2))


def train(path, arms, **changes):
    """Trains some arms of the study on few points; returns (Store, results)."""
    store = Store(path)
    runs = [run for run in plan(**changes) if run.arm in arms]
    store.write_study(STUDY, False)
    store.write_plan(runs)
    runner = stack.StackRunner(points(), store)
    for group in stack.groups(runs):
        for some in group:
            for result in runner(some):
                store.add(result)
    return store, store.results()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    arms = ("tanh batch", "tanh none", "relu none, He", "relu none")
    return train(tmp_path_factory.mktemp("work"), arms)


def frames_in(movie):
    with Image.open(movie) as opened:
        return opened.n_frames


def frames_of(trained, arm):
    store, results = trained
    return animation.captured_runs(store, results)[arm].frames


def test_there_is_a_frame_before_training_and_one_after_every_epoch(trained):
    frames = frames_of(trained, "tanh batch")
    assert frames["steps"].tolist() == [0, 2, 4] and frames["epochs"].tolist() == [0, 1, 2]
    layers = frames["layers"].tolist()
    assert layers == [*(f"dense{number}" for number in range(1, 9)), "output"]
    assert frames["dense1/input"].shape == (3, 30, 1)
    assert frames["dense2/input"].shape == frames["dense8/output"].shape == (3, 30, 10)
    assert frames["output/output"].shape == (3, 30, 1)


@pytest.mark.parametrize("arm", ["tanh batch", "tanh none", "relu none, He"])
def test_the_first_frame_is_what_numpy_computes_from_the_first_seeds_weights(trained, arm):
    """In inference mode, where BN's statistics are still 0 and 1."""
    frames = frames_of(trained, arm)
    run = next(run for run in plan() if run.arm == arm)
    assert run.seed == 0
    model = build_model(run, points())
    activation = animation.FUNCTIONS[run.activation]
    normalize = 1 / np.sqrt(1 + run.epsilon) if run.normalizer == "batch" else 1
    x = points().test.images * normalize
    for layer in frames["layers"]:
        np.testing.assert_allclose(frames[f"{layer}/input"][0], x, rtol=1e-4, atol=1e-7)
        dense = model.get_layer(layer)
        z = x @ dense.kernel.numpy() + (0 if dense.bias is None else dense.bias.numpy())
        np.testing.assert_allclose(frames[f"{layer}/output"][0], z, rtol=1e-4, atol=1e-7)
        x = activation(z * normalize)


def test_frames_show_each_net_of_a_stack_and_the_weights_of_their_moment():
    runs = [run for run in plan() if run.arm == "relu none, He"]
    model, _ = stack.build_stack(runs, points())
    x = points().test.images
    recorder = LayerRecorder(model, 2, x, points().test.labels, EPOCH)
    recorder.record(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + 0.1)
    recorder.record(EPOCH)
    outputs = np.asarray(model(np.repeat(x[:, None], 2, 1)))
    first, second = recorder.frames(0), recorder.frames(1)
    np.testing.assert_allclose(first["output/output"][1], outputs[:, 0], rtol=1e-5)
    np.testing.assert_allclose(second["output/output"][1], outputs[:, 1], rtol=1e-5)
    assert not np.allclose(first["output/output"][0], first["output/output"][1])
    at_x = np.interp(x[:, 0], first["grid"], first["fitted"][1])
    np.testing.assert_allclose(at_x, outputs[:, 0, 0], atol=0.05 * np.ptp(outputs))


def test_the_test_curve_is_the_error_of_the_frames(trained):
    _, results = trained
    frames = frames_of(trained, "tanh batch")
    curve = next(run for run in results if run.config.arm == "tanh batch").curves["loss/test"]
    errors = ((frames["output/output"][..., 0] - frames["y"]) ** 2).mean(-1)
    assert [step for step, _ in curve] == [0, 2, 4]
    np.testing.assert_allclose([value for _, value in curve], errors, rtol=1e-4)


def test_measures_tell_dead_saturated_and_vanishing_units():
    class Given(LayerRecorder):
        def __init__(self, values):
            self._given = values

        def _values(self, inputs):
            return [None, None, self._given]

    # (examples, runs, units): run 0 has a dead and a live unit, run 1 two dead ones.
    relu = np.array([[[0, 1], [0, 0]], [[0, 3], [0, 0]]], np.float32)
    found = Given(relu).measure(None, "relu", "end")
    assert found["end_dead_units_layer_1"].tolist() == [0.5, 1]
    assert found["end_dead_units"].tolist() == [0.5, 1]
    assert found["end_std_layer_1"].tolist() == [0.5, 0]
    tanh = np.array([[[-1, 0.9]], [[-0.99, 0.9]], [[0, -1]]], np.float32)
    found = Given(tanh).measure(None, "tanh", "start")
    assert found["start_saturated_units_layer_1"].tolist() == [0.5]
    assert not any("dead" in name for name in found)


def test_only_the_first_seed_of_each_arm_is_stored_and_all_are_measured(trained):
    store, results = trained
    assert len(list(store.work_dir.glob("runs/*/*.npz"))) == 4
    assert all((store.frames(run.config) is None) == (run.config.seed > 0) for run in results)
    assert all("start_std_layer_8" in run.metrics for run in results)
    for run in results:
        assert ("test_loss_population_statistics" in run.metrics) == (
            run.config.normalizer == "batch"
        )


def test_the_report_draws_again_without_tensorflow(trained):
    store, _ = trained
    for path in store.work_dir.glob("*.*"):
        if path.suffix in (".gif", ".html", ".png"):
            path.unlink()
    code = (
        "import sys; from bn_keras.__main__ import main; status = main(['report', sys.argv[1]]); "
        "print('TENSORFLOW', 'tensorflow' in sys.modules); sys.exit(status)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(store.work_dir)], capture_output=True, text=True,
        cwd=pathlib.Path(animation.__file__).parent.parent, check=True,
    ).stdout
    assert "TENSORFLOW False" in told and "animation-tanh.gif" in told
    assert frames_in(store.work_dir / "animation-tanh.gif") == 1 + STEPS // EPOCH
    page = (store.work_dir / "animation-tanh.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + STEPS // EPOCH
    assert "src=\"http" not in page and "href" not in page
    # The arms of the other animation are not all there.
    assert not (store.work_dir / "animation-relu.gif").exists()


def test_frames_of_an_animation_differ_within_the_axes_only(trained):
    store, results = trained
    captured = animation.captured_runs(store, results)
    images = animation.layer_histograms(captured["tanh batch"], captured["tanh none"], "title")
    first, last = (np.asarray(image.convert("RGB")) for image in (images[0], images[-1]))
    changed = (first != last).any(-1)
    height, width = changed.shape
    assert changed[: height // 5].any()  # epoch and errors
    assert changed[height // 5:].any() and not changed[int(0.95 * height):].any()
    assert not changed[:, : width // 20].any()
    assert frames_in(io.BytesIO(animation.gif(images))) == len(images) == 3


@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_folder_without_readable_frames_still_reports(trained, tmp_path, damage):
    keep = shutil.ignore_patterns("animation-*", "tensorboard")
    shutil.copytree(trained[0].work_dir, tmp_path, ignore=keep, dirs_exist_ok=True)
    store, results = Store(tmp_path), trained[1]
    path, = tmp_path.glob("runs/tanh batch/*.npz")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000 if damage == "cut short" else 0])
    found, picture = report.write(store)
    assert picture.startswith(b"\x89PNG") and len(found.rows) == len(results)
    assert not list(tmp_path.glob("animation-*"))


def test_a_folder_from_before_there_was_capturing_still_reports(tmp_path):
    store, results = train(tmp_path, ("tanh none",), capture=False)
    assert "start_std_layer_8" not in results[0].metrics
    plan_file = tmp_path / "plan.json"
    for path in (plan_file, *tmp_path.glob("runs/*/*.json")):
        content = json.loads(path.read_text())
        for config in content if path == plan_file else [content["config"]]:
            del config["capture"]
        path.write_text(json.dumps(content))
    _, picture = report.write(store)
    assert picture.startswith(b"\x89PNG")


def test_a_diverged_net_is_drawn_as_far_as_it_goes(trained):
    store, results = trained
    captured = animation.captured_runs(store, results)
    lost = {name: values.copy() for name, values in captured["tanh none"].frames.items()}
    for layer in lost["layers"]:
        lost[f"{layer}/output"][1:] = np.nan
    lost = animation.Captured(captured["tanh none"].result, lost)
    assert len(animation.layer_histograms(captured["tanh batch"], lost, "title")) == 3


def test_models_that_differ_in_initial_weights_only_share_a_stack():
    runs = [run for run in plan() if run.activation == "relu"]
    # BN; with another momentum, in another graph; with whole batches, in the same; none at all.
    sizes = [[len(some) for some in group] for group in stack.groups(runs)]
    assert sorted(sizes) == [[2], [2, 2], [6]]
    model, _ = stack.build_stack(
        [run for run in runs if run.normalizer == "none"], points()
    )
    kernels = model.get_layer("dense1").kernel.numpy()
    np.testing.assert_array_equal(kernels[0], kernels[2])  # only the bias is another
    assert not np.array_equal(kernels[0], kernels[4])
    biases = model.get_layer("dense1").bias.numpy().reshape(6, 10)
    assert np.all(biases[:2] == np.float32(-0.2)) and np.all(biases[2:] == 0)


def test_what_cannot_stand_in_a_stack_is_not_captured(tmp_path):
    run = next(run for run in plan(epsilon=1e-3) if run.arm == "relu none")
    run = type(run)(**{**vars(run), "normalizer": "layer"})
    with pytest.raises(ConfigError, match="capture=True with .*'layer'"):
        stack.Dispatcher(points(), Store(tmp_path))([run])


@pytest.mark.slow
def test_bn_rescues_the_badly_initialized_relu_net(tmp_path):
    """The figures of the study: without BN 780 to 900, with exact population statistics to 60."""
    arms = ("tanh none", "tanh batch", "relu none", "relu batch", "relu batch, momentum .99")
    command = [
        sys.executable, "train.py", f"--study={STUDY}", f"--arms={';'.join(arms)}", "--seeds=3",
        f"--logdir={tmp_path}",
    ]
    root = pathlib.Path(animation.__file__).parent.parent
    assert subprocess.run(command, cwd=root, capture_output=True, timeout=400).returncode == 0
    path, = tmp_path.glob("*/results.json")
    content = json.loads(path.read_text())
    arms = {}
    for row in content["rows"]:
        arms.setdefault(row["arm"], []).append(row["metrics"])
    assert [len(rows) for rows in arms.values()] == [3] * 5
    assert all(780 <= row["test_loss"] <= 900 for row in arms["relu none"])
    assert all(row["test_loss_population_statistics"] <= 60 for row in arms["relu batch"])
    # Momentum has no part in training: these are the same weights, evaluated otherwise.
    for one, other in zip(arms["relu batch"], arms["relu batch, momentum .99"], strict=True):
        exact = "test_loss_population_statistics"
        assert one[exact] == pytest.approx(other[exact], rel=1e-6)
        assert other["test_loss"] > 2 * other[exact]
    assert all(row["end_dead_units_layer_3"] == 1 for row in arms["relu none"])
    assert all(row["start_saturated_units"] == 0 for row in arms["tanh none"])
    assert all(row["start_std_layer_8"] < 1e-3 for row in arms["tanh none"])
    for gif in path.parent.glob("animation-*.gif"):
        assert frames_in(gif) == 13 and gif.stat().st_size < 3e6
    assert len(list(path.parent.glob("animation-*"))) == 4
