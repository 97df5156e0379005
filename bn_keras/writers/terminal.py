"""The terminal: progress bars while runs are trained, a line for each where there are no bars."""

import time
from typing import Any, List, Mapping, Optional

from rich import progress
from rich.markup import escape
from rich.table import Column

from bn_keras.writers import Writer

WIDE = 100  # columns; a narrower terminal has room for the numbers alone


class Terminal:
    """A progress bar for every stack on a terminal, a line for every stored run elsewhere.

    A context manager; `stack` gives the Writer of the runs of one stack.

    Args:
        console: a rich Console.
    """

    def __init__(self, console: Any):
        self._console = console
        name = progress.TextColumn("{task.description}", table_column=Column(overflow="fold"))
        bar: List[progress.ProgressColumn] = [
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[rate]:>6} steps/s"),
        ]
        self._bars = progress.Progress(
            name,
            *(bar if console.width >= WIDE else []),
            progress.TextColumn("{task.completed:>4.0f}/{task.total:.0f} steps"),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TextColumn("accuracy {task.fields[accuracy]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Terminal":
        self._bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.stop()

    def stack(self, name: str, total: int) -> Writer:
        """The writer that shows runs in progress, of `total` steps."""
        task = self._bars.add_task(escape(name), total=total, rate="", loss="", accuracy="")
        return _Bar(self._bars, task)

    def stored(self, name: str, result: Any) -> None:
        """Says that a run is finished, once it is stored."""
        if self._console.is_terminal:
            return
        self._console.print(
            f"{name}: {result.status} after {result.steps} steps, {_outcome(result.metrics)}",
            highlight=False, markup=False, soft_wrap=True,
        )


class _Bar(Writer):
    def __init__(self, bars: progress.Progress, task: progress.TaskID):
        self._bars, self._task = bars, task
        self._started = time.perf_counter()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        if "loss/train" in values:
            rate = step / (time.perf_counter() - self._started)
            self._bars.update(
                self._task,
                completed=step,
                rate=f"{rate:.1f}",
                loss=_short(values["loss/train"]),
                accuracy=_short(values.get("accuracy/train")),
            )


def _outcome(metrics: Mapping[str, Optional[float]]) -> str:
    name = "accuracy" if "validation_commonest" in metrics else "loss"
    return f"validation {name} {_short(metrics.get(f'validation_{name}'))}"


def _short(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.3f}"
