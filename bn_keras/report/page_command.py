"""The command line that trains a plan's runs again."""

import shlex
from typing import Any, Mapping, Optional, Sequence

from bn_keras import objects, own
from bn_keras.config import RUN_FIELDS, ConfigError
from bn_keras.plan import Plan, is_keras_file, make_plan
from bn_keras.registry import STUDIES, UnknownName

# Settings that can hold an object of the user's own.
NAMES = ("model", "normalizer", "dataset", "loss", "optimizer", "measure")
# A plan says these by its arms and seeds.
_OWN = ("arm", "seed", "normalizer")


def command(plan: Plan) -> Optional[str]:
    """`bn-keras train …` that plans exactly these runs, quoted for a shell.

    Args:
        plan: Plan.

    Returns:
        The line, or None where no single command plans these runs: they come from several commands
        (other seeds for other arms), or from Python (a study of one's own).
    """
    own_study = not STUDIES.get(plan.name).__module__.startswith("bn_keras.")
    seeds = sorted({run.seed for run in plan.runs})
    arms = list(dict.fromkeys(run.arm_name for run in plan.runs))
    one_block = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if own_study or not one_block or len(plan.runs) != len(arms) * len(seeds):
        return None
    if any(_from_python(getattr(run, name)) for run in plan.runs for name in NAMES):
        return None
    choice: dict[str, Any] = {
        "seeds": len(seeds), "first_seed": seeds[0], "quick": plan.quick, "axes": plan.study.axes,
    }
    if STUDIES.properties(plan.name).get("normalizers"):
        choice["normalizers"] = list(dict.fromkeys(run.normalizer for run in plan.runs))
    else:
        choice["arms"] = arms
    try:
        overrides = _overrides(plan, make_plan(plan.name, {}, **choice))
        again = make_plan(plan.name, overrides, **choice)
    except (ConfigError, UnknownName):  # as of a plan that was made by hand
        return None
    told_twice = {"steps", "epochs"} <= set(overrides)
    if set(again.runs) != set(plan.runs) or told_twice or None in overrides.values():
        return None  # the last two: no flag says it
    words = ["bn-keras", "train", *_study_flags(plan, choice.get("normalizers", arms))]
    words += [f"--{name}={','.join(map(_text, values))}"
              for name, values in plan.study.axes.items()]
    words += [f"--{name}={_text(value)}" for name, value in overrides.items()]
    words.append(f"--seeds={len(seeds)}")
    if seeds[0]:
        words.append(f"--first_seed={seeds[0]}")
    return shlex.join(words)


def _from_python(value: Any) -> bool:
    """Whether a setting is an object of a Python process, of which a command knows nothing."""
    names = value if isinstance(value, tuple) else [value]
    return any(
        isinstance(name, str) and own.is_own(name) and not (
            objects.is_object_name(own.place(name)) or is_keras_file(name)
        )
        for name in names
    )


def _overrides(plan: Plan, usual: Plan) -> Mapping[str, Any]:
    """Settings in which the plan's runs differ from the study's own, if all have the same value."""
    found = {}
    theirs = {(run.arm_name, run.seed): run for run in usual.runs}
    for name in RUN_FIELDS:
        pairs = [(getattr(run, name), getattr(theirs[run.arm_name, run.seed], name))
                 for run in plan.runs]
        if name not in (*_OWN, *plan.study.axes) and any(mine != other for mine, other in pairs):
            found[name] = pairs[0][0]
    return found


def _study_flags(plan: Plan, arms: Sequence[str]) -> list[str]:
    """The choice of study and arms."""
    flags = []
    if plan.name != "comparison" or plan.quick:
        flags = [f"--study={plan.name}", *["--quick"] * plan.quick]
    if plan.name != "comparison":
        whole = make_plan(plan.name, {}, quick=plan.quick, seeds=1)
        return flags + [f"--arms={';'.join(arms)}"] * (list(whole.study.arms) != list(arms))
    named = [arm for arm in arms if arm != "none"]
    if not named:
        return [*flags, "--is_bn=False"]
    flags += ["--is_bn"] * ("none" not in arms)
    return flags + [f"--normalizer={','.join(named)}"] * (named != ["batch"])


def _text(value: Any) -> str:
    """A setting as its flag reads it."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, str):
        return own.place(value) if own.is_own(value) else value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
