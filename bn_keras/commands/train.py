"""`train`: flags → plan → runs → report. TensorFlow is not loaded before work starts."""

import pathlib
import shlex
import sys
from typing import Any, Dict, List, Optional, Sequence

from absl import flags as absl_flags

from bn_keras import experiment
from bn_keras.commands import flags
from bn_keras.commands.console import make_console, printable, refuse, say
from bn_keras.config import RUN_FIELDS, ConfigError
from bn_keras.data import DataError, absolute
from bn_keras.plan import Plan, make_plan
from bn_keras.registry import COMMANDS, UnknownName
from bn_keras.report.report import Report
from bn_keras.results import Store

INTERRUPTED = 130


@COMMANDS.register(
    "train", usage="train [flags]",
    does="compare with and without batch normalization; train --help lists the flags",
)
def main(arguments: Optional[Sequence[str]] = None, program: str = "bn-keras train") -> int:
    """Runs the command.

    Args:
        arguments: flags; None for the process's own.
        program: what the user called, for messages.

    Returns:
        The exit status: 0, 1 where results could not be stored, 2 for bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    store = None
    try:
        options = flags.parse([program, *arguments])
        if options is None:
            say(flags.help_text(program))
            return 0
        work = experiment.prepare(_plan(options), options["logdir"])
        store = work.store
        return _train(work, options["workers"])
    except (ConfigError, DataError, UnknownName, absl_flags.Error) as error:
        return refuse(program, error)
    except KeyboardInterrupt:
        if store is not None:
            refuse(program, f"stopped; finished runs are kept in {store.work_dir}")
        return INTERRUPTED
    except OSError as error:
        kept = "" if store is None else (
            f"; finished runs are kept in {store.work_dir}, the same command goes on from there"
        )
        return refuse(program, f"{error}{kept}", 1)


def show_report(console: Any, store: Store, report: Report) -> None:
    """Prints a report, and where its files are."""
    console.print(report)
    folder = store.work_dir
    tensorboard = shlex.quote(str(folder / "tensorboard"))
    for what, where in (
        ("picture", folder / "picture.png"),
        *(("animation", path) for path in sorted(folder.glob("animation-*"))),
        ("results", folder / "results.json"),
        ("curves", folder / "runs" / "*" / "*.csv"),
        ("TensorBoard", f"tensorboard --logdir {tensorboard}"),
    ):
        console.print(f"{what:12s} {printable(str(where))}", soft_wrap=True, markup=False)


def _plan(options: Dict[str, Any]) -> Plan:
    """The plan that the flags ask for."""
    study = options["study"] or "comparison"
    overrides = {
        name: options[name] for name in options["given"]
        if name in RUN_FIELDS and name != "normalizer"
    }
    if "dataset" in overrides or "data_dir" in overrides:
        overrides["dataset"], overrides["data_dir"] = absolute(
            options["dataset"], options["data_dir"]
        )
    arms: List[str] = [name.strip() for name in (options["arms"] or "").split(";") if name.strip()]
    return make_plan(
        study, overrides, seeds=options["seeds"], first_seed=options["first_seed"],
        quick=options["quick"], arms=arms,
        normalizers=flags.normalizers(options) if study == "comparison" else None,
    )


def _train(work: experiment.Work, workers: Optional[int]) -> int:
    console = make_console()
    planned, missing = len(work.plan.runs), len(work.missing)
    for note in work.notes:
        console.print(printable(note), markup=False, soft_wrap=True)
    if missing < planned:
        console.print(
            f"{planned - missing} of {planned} runs are stored in "
            f"{printable(str(work.store.work_dir))} and are not repeated (delete the folder to "
            "train them again)", markup=False, soft_wrap=True,
        )
    done = planned - missing
    interrupted = False
    if missing:
        at_once = experiment.workers_of(work.plan, workers)
        console.print(f"{missing} to train, {at_once} at a time; loading TensorFlow")
        from bn_keras.writers.terminal import Terminal

        with Terminal(console) as terminal:
            try:
                for result in experiment.train(work, workers, terminal.stack):
                    terminal.stored(work.store.run_name(result.config), result)
                    done += 1
            except KeyboardInterrupt:
                interrupted = True
    if not done:
        console.print("stopped before the first run was finished; nothing to report")
        return INTERRUPTED
    show_report(console, work.store, experiment.report(work.store))
    if interrupted:
        console.print(
            f"stopped: {done} of {planned} runs are finished and kept; the same command goes on "
            "with the rest", soft_wrap=True,
        )
        return INTERRUPTED
    return 0


def script() -> int:
    """The command as `python train.py`."""
    return main(program=f"python {pathlib.Path(sys.argv[0]).name}")
