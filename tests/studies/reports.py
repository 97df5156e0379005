"""Plans and results for the tests of reports: nothing is trained."""

import numpy as np

from bn_keras.plan import make_plan
from bn_keras.results import DIVERGED, OK, RunResult
from bn_keras.study import Row

IMAGES = 5000
STEPS = (10, 20, 30)
CURVES = ("loss/train", "accuracy/train", "loss/validation", "accuracy/validation")


def result(config, accuracy, status=OK, start="a", metrics=(), curves=None):
    """The result of a run that ended at an accuracy; None for one that diverged."""
    values = {
        "validation_accuracy": accuracy, "test_accuracy": accuracy, "validation_images": IMAGES,
        "test_images": IMAGES, "validation_commonest": 0.11, "test_commonest": 0.11,
        "steps_to_90_percent": 20 if (accuracy or 0) >= 0.9 else None, **dict(metrics),
    }
    if curves is None:
        last = 3 if status == OK else 1
        curves = {name: [[step, accuracy or 0.5] for step in STEPS[:last]] for name in CURVES}
    found = {"config": config, "status": status, "steps": 30, "seconds": 1.5, "metrics": values,
             "curves": curves, "start": start, "versions": {"keras": "3"}, "data": "d"}
    known = RunResult.__dataclass_fields__
    return RunResult(**{name: value for name, value in found.items() if name in known})


def compared(accuracies, start="a", **overrides):
    """(plan, results) of the plain comparison.

    Args:
        accuracies: normalizer to an accuracy a seed; None for a run that diverged.
        start: digest of the initial weights, or normalizer to one.
        overrides: settings of all runs.
    """
    seeds = max(map(len, accuracies.values()))
    plan = make_plan("comparison", {"learning_rate": 3.0, "optimizer": "sgd", "steps": 100,
                                    **overrides}, seeds=seeds, normalizers=list(accuracies))
    results = []
    for run in plan.runs:
        if run.seed < len(accuracies[run.normalizer]):
            value = accuracies[run.normalizer][run.seed]
            digest = start if isinstance(start, str) else start[run.normalizer]
            digest = f"{digest}{run.seed}"
            results.append(result(run, value, DIVERGED if value is None else OK, digest))
    return plan, results


def row(arm, seed=0, status=OK, normalizer=None, curves=None, frames=None, **metrics):
    """A Row; `normalizer` is the arm's first word by default."""
    return Row(arm, seed, status, metrics, curves or {}, normalizer or arm.split(",")[0].split()[0],
               frames=frames or {})


def frames(layers=3, points=20, seed=0, shift=0.0):
    """Frames of a regression net, as the probe `layers` stores them; three, of epochs 0 to 2."""
    rng = np.random.default_rng(seed)
    names = [*(f"dense{number}" for number in range(1, layers)), "output"]
    x = np.linspace(-2, 2, points, dtype=np.float32)[:, None]
    found = {"layers": np.array(names), "steps": np.array([0, 10, 20]),
             "epochs": np.array([0, 1, 2], np.float32), "x": x, "y": x[:, 0] ** 2,
             "grid": np.linspace(-2, 2, 30, dtype=np.float32),
             "fitted": np.stack([np.full(30, shift + frame, np.float32) for frame in range(3)])}
    for name in names:
        for end in ("input", "output"):
            found[f"{name}/{end}"] = rng.normal(shift, 1, (3, points, 4)).astype(np.float32)
    return found
