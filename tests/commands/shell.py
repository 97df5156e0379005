"""A small comparison to run in processes, and a work directory that was never trained."""

import contextlib

import numpy as np

from bn_keras import experiment
from bn_keras.plan import make_plan
from bn_keras.results import OK, RunResult, write_atomically

SETTINGS = {
    "model": "ioffe_mlp", "optimizer": "adam", "learning_rate": 0.05, "steps": 20,
    "validation_size": 10, "batch_size": 8, "eval_interval": 10, "curve_size": 10, "measure": (),
}


def write_csv(path, rows=60, value=0, header=None):
    """60 images of 4 × 4 pixels and three classes; another `value` makes them other data."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    pixels = rng.integers(0, 256, (rows, 16))
    pixels[np.arange(rows), labels] = 255
    pixels[0, -1] = value
    lines = [header or "label," + ",".join(f"pixel{i}" for i in range(16))]
    lines += [",".join(map(str, [label, *row])) for label, row in zip(labels, pixels)]
    path.write_text("\n".join(lines) + "\n")
    return path


def flags(csv, logdir, **changes):
    """The flags of a small comparison."""
    settings = {**SETTINGS, "dataset": f"csv:{csv}", "logdir": logdir, "seeds": 2, **changes}
    return [
        f"--{name}={','.join(value) if isinstance(value, tuple) else value}"
        for name, value in settings.items()
    ]


def plan(csv, seeds=2, normalizers=("none", "batch"), **changes):
    """The plan of those flags."""
    overrides = {**SETTINGS, "dataset": f"csv:{csv}", **changes}
    return make_plan("comparison", overrides, seeds=seeds, normalizers=list(normalizers))


def result(config, data, status=OK, accuracy=None):
    """A run's result as if it had been trained."""
    accuracy = accuracy or {"none": 0.4, "batch": 0.9}.get(config.normalizer, 0.5)
    metrics = {
        "validation_accuracy": accuracy, "validation_loss": 0.5, "test_accuracy": accuracy,
        "test_loss": 0.5, "steps_to_90_percent": None, "validation_images": 10.0,
        "test_images": 6.0, "validation_commonest": 0.4, "test_commonest": 0.4,
    }
    curves = {
        "loss/train": [[10, 0.5], [20, None]], "accuracy/train": [[10, 0.5], [20, accuracy]],
        "accuracy/validation": [[0, 0.3], [10, 0.5], [20, accuracy]],
    }
    if status != OK:
        metrics = dict.fromkeys(metrics)
    return RunResult(
        config, status, config.steps, 1.5, metrics, curves, "digest", {"keras": "3"}, data
    )


def finish(work, configs=None):
    """Stores results of all runs of a prepared experiment, or of some."""
    for config in work.plan.runs if configs is None else configs:
        work.store.add(result(config, work.load(config).digest()))
    return work


def finished(folder, **settings):
    """A work directory with all results of the small comparison in it."""
    csv = write_csv(folder / "data.csv")
    return finish(experiment.prepare(plan(csv, **settings), folder / "runs")).store.work_dir


@contextlib.contextmanager
def damaged(path, content):
    """A file with other content: bytes, None for no file, "folder" for one in its place."""
    kept = path.read_bytes()
    path.unlink()
    if content == "folder":
        (path / "inside").mkdir(parents=True)
    elif content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        if content == "folder":
            (path / "inside").rmdir()
            path.rmdir()
        write_atomically(path, kept)
