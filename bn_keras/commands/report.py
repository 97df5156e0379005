"""`bn-keras report WORK_DIR`: tables, pictures and verdicts of stored results."""

from typing import Sequence

from bn_keras import experiment
from bn_keras.commands.console import make_console, refuse
from bn_keras.commands.train import show_report
from bn_keras.registry import COMMANDS
from bn_keras.results import Store


@COMMANDS.register(
    "report", usage="report WORK_DIR", does="print and draw again what a work directory holds"
)
def main(arguments: Sequence[str]) -> int:
    """Reports on one folder; returns the exit status: 0, or 2 where there is nothing to report."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return refuse(
            "bn-keras report", f"received {list(arguments)}; expected one WORK_DIR, such as "
            "runs/NAME"
        )
    store = Store(arguments[0])
    try:
        found = experiment.report(store)
    except (OSError, ValueError) as error:
        return refuse(
            "bn-keras report",
            f"{arguments[0]}: no work directory of this version's train command ({error})",
        )
    show_report(make_console(), store, found)
    return 0
