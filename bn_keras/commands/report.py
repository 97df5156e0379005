"""`bn-keras report WORK_DIR`: tables, pictures and verdicts of stored results."""

import shlex
from typing import TYPE_CHECKING, Sequence

from bn_keras import experiment
from bn_keras.commands.console import HELP, make_console, refuse, say
from bn_keras.registry import COMMANDS
from bn_keras.report.report import Report
from bn_keras.results import Store
from bn_keras.texts import plain

if TYPE_CHECKING:
    from rich.console import Console

USAGE = """usage: bn-keras report WORK_DIR

Prints and draws again what a work directory of `bn-keras train` holds: verdict, tables and picture,
and the numbers as JSON and CSV. Nothing is trained, and TensorFlow is not loaded. Runs that are
missing, as after Ctrl-C, are named.

Example:
  bn-keras report runs/mnist_cnn-mnist-sgd-3-af0d3b"""

# TensorBoard where it starts by itself, without smoothing: the runs, in one colour an arm, and the
# charts of every arm's median over seeds.
RUNS = "http://localhost:6006/?runColorGroup=regex%3A(%5E%5B%5E%2F%5D%2B)&smoothing=0#timeseries"
BANDS = "http://localhost:6006/#custom_scalars&regexInput=over_seeds&_smoothingWeight=0"


@COMMANDS.register(
    "report", usage="report WORK_DIR", does="print and draw again what a work directory holds"
)
def main(arguments: Sequence[str]) -> int:
    """Reports on one folder.

    Args:
        arguments: the folder.

    Returns:
        The exit status: 0, 1 where the report cannot be written, 2 where there is none to write.
    """
    if set(arguments) & {*HELP}:
        say(USAGE)
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return refuse(
            "bn-keras report", f"received {' '.join(arguments) or 'nothing'}; expected one "
            "WORK_DIR, such as runs/NAME"
        )
    store = Store(arguments[0])
    try:
        found = experiment.report(store)
    except ValueError as error:
        return refuse("bn-keras report", error)
    except OSError as error:
        return refuse("bn-keras report", f"the report cannot be written: {error}", 1)
    show(make_console(), store, found)
    return 0


def show(console: "Console", store: Store, report: Report) -> None:
    """Prints a report, and where its files are."""
    console.print(report)
    folder = store.work_dir
    tensorboard = shlex.quote(str(folder / "tensorboard"))
    for what, where in (
        ("report", folder / "report.html"),
        ("picture", folder / "picture.png"),
        *(("animation", path) for path in sorted(folder.glob("animation-*"))),
        ("results", folder / "results.json"),
        ("curves", folder / "runs" / "*" / "*.csv"),
        ("TensorBoard", f"tensorboard --logdir {tensorboard}"),
        ("  every run", RUNS),
        ("  every arm", BANDS),
    ):
        console.print(f"{what:12s} {plain(where)}", soft_wrap=True, markup=False)
