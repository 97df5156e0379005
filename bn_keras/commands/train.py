"""`train`: flags → plan → runs → report. TensorFlow is not loaded before work starts."""

import pathlib
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

from absl import flags as absl_flags

from bn_keras import api, experiment
from bn_keras.commands import flags
from bn_keras.commands.console import INTERRUPTED, end_at_once, make_console, refuse, say
from bn_keras.commands.report import show
from bn_keras.config import RUN_FIELDS, ConfigError
from bn_keras.data import DataError
from bn_keras.objects import ObjectError
from bn_keras.plan import Plan, make_plan
from bn_keras.registry import COMMANDS, PartError, UnknownName


@COMMANDS.register(
    "train", usage="train [flags]",
    does="compare with and without batch normalization; train --help lists the flags",
)
def main(arguments: Sequence[str], program: str = "bn-keras train") -> int:
    """Runs the command.

    Args:
        arguments: flags.
        program: what the user called, for messages.

    Returns:
        The exit status: 0, 1 where results could not be stored, 2 for bad input, 130 after Ctrl-C.
    """
    kept = ""
    try:
        options = flags.parse([program, *arguments])
        if options is None:
            say(flags.help_text(program))
            return 0
        if options["dry_run"]:
            return _show_plan(_plan(options), options["logdir"], options["workers"])
        work = experiment.prepare(_plan(options), options["logdir"])
        kept = f"; finished runs are kept in {work.store.work_dir}, the same command goes on there"
        return _train(work, options["workers"])
    except (ConfigError, DataError, ObjectError, PartError, UnknownName, absl_flags.Error) as error:
        return refuse(program, error)
    except OSError as error:
        return refuse(program, f"{error}{kept}", 1)
    except KeyboardInterrupt:
        return refuse(program, f"stopped{kept}", INTERRUPTED)


def script() -> int:
    """The command as `python train.py`; arguments and exit status as those of `main`."""
    end_at_once()
    status: int = main(sys.argv[1:], program=f"python {pathlib.Path(sys.argv[0]).name}")
    return status


def _plan(options: Dict[str, Any]) -> Plan:
    """The plan that the flags ask for."""
    study = options["study"] or "comparison"
    axes = flags.axes(options)
    overrides = {
        name: options[name] for name in options["given"]
        if name in RUN_FIELDS and name != "normalizer" and name not in axes
    }
    arms: List[str] = [name.strip() for name in (options["arms"] or "").split(";") if name.strip()]
    return make_plan(
        study, api.same_data_everywhere(overrides), seeds=options["seeds"],
        first_seed=options["first_seed"], quick=options["quick"], arms=arms,
        normalizers=flags.normalizers(options) if study == "comparison" else None, axes=axes,
    )


def _show_plan(plan: Plan, logdir: str, workers: Optional[int]) -> int:
    """Tells what would be trained, and how long about; keeps nothing."""
    from bn_keras.report.layout import Columns  # rich takes its time

    console = make_console()
    stored = experiment.store_of(plan, logdir)
    with tempfile.TemporaryDirectory() as folder:
        work = experiment.prepare(plan, folder)
        for note in work.notes:
            api.tell(console, note)
        missing = [run for run in plan.runs if stored.find(run) is None]
        seeds = list(dict.fromkeys(run.seed for run in plan.runs))
        console.print(Columns(["arm", "settings"], [
            [arm, ", ".join(f"{name}={value}" for name, value in settings.items())]
            for arm, settings in plan.study.arms.items()
        ]))
        api.tell(console, f"{len(plan.study.arms)} arms, {len(seeds)} seeds each from {seeds[0]}: "
                          f"{len(plan.runs)} runs, of which {len(plan.runs) - len(missing)} are "
                          f"stored in {stored.work_dir}")
        if missing:
            seconds = experiment.estimate(work, workers) * len(missing) / len(plan.runs)
            api.tell(console, f"about {_duration(seconds)}, judged by some steps of "
                              f"{experiment.TIMED} nets at most; nothing was kept")
    return 0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _train(work: experiment.Work, workers: Optional[int]) -> int:
    console = make_console()
    interrupted = False
    try:
        api.train_and_tell(work, workers, console)
    except KeyboardInterrupt:
        interrupted = True
    planned = len(work.plan.runs)
    done = planned - len(work.missing()) if interrupted else planned
    if not done:
        api.tell(console, "stopped before the first run was finished; nothing to report")
        return INTERRUPTED
    show(console, work.store, experiment.report(work.store))
    if interrupted:
        api.tell(console, f"stopped: {done} of {planned} runs are finished and kept; the same "
                          "command goes on with the rest")
        return INTERRUPTED
    return 0
