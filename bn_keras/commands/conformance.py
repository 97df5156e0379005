"""The verb `conformance`: is a batch normalization layer right? Arguments, table and JSON.

Neither TensorFlow nor the layer's module is loaded here; `diagnostics.judging` does both.
"""

import argparse
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Sequence

from bn_keras.checking import Checked
from bn_keras.commands.console import INTERRUPTED, make_console, refuse, say
from bn_keras.diagnostics import judging
from bn_keras.diagnostics.judging import KERAS_LAYER, About, Judgement
from bn_keras.diagnostics.severity import SEVERITIES, WRONG_NUMBERS
from bn_keras.registry import COMMANDS
from bn_keras.texts import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DESCRIPTION = """Asks a batch normalization some fifty questions, and says what is wrong with it.

LAYER is keras.layers.BatchNormalization, bn_keras.BatchNorm, or one of your own, at module:name or
my_file.py:name: a keras.layers.Layer, a plain class that is called with arrays of shape (batch,
channels), a function such as batch_norm(x, gamma, beta, moving_mean, moving_variance, training) of
NumPy, TensorFlow, PyTorch or JAX, or a module of PyTorch or Flax linen. Other usual names (eps,
running_var, …) and PyTorch's momentum are recognized and no mistakes.

Severities, the worst first:
  wrong numbers  outputs, gradients or statistics, in ordinary use
  drop-in        right, but not the interface of Keras's layer: configs, files, masks
  robustness     empty batches, half precision, numbers far from zero, replicas
  policy         a maintainer's choice: NaN in, NaN out; what is accepted, refused and warned of

Example:
  bn-keras conformance keras.layers.BatchNormalization --fail_on=drop-in

Exit status: 0 nothing failed that --fail_on counts, 1 something did, 2 it could not be judged.
"""
MOST_CHARACTERS = 300  # of an evidence


@COMMANDS.register(
    "conformance", usage="conformance LAYER [flags]",
    does="is a batch normalization right? LAYER is keras.layers.BatchNormalization, "
    "bn_keras.BatchNorm, or a layer, class or function of your own at module:name or "
    "file.py:name; conformance --help lists the flags",
)
def main(arguments: Sequence[str]) -> int:
    """Judges the layer that the arguments name; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return _refuse(
            f"received KERAS_BACKEND={os.environ['KERAS_BACKEND']}; expected tensorflow"
        )
    path = options.layer
    dotted = ".py:" in path or all(path.replace(":", ".", 1).split("."))
    if not dotted or not set(path) & {*".:"}:
        return _refuse(
            f"received {path!r}; expected module:Class of a module that can be imported "
            "from here, such as keras.layers:BatchNormalization, or file.py:name"
        )
    only = [text for texts in options.only for text in texts.split(",")]
    try:
        checked = _collect(path, judging.judge(path, only, options.timeout))
    except judging.Refused as refusal:
        return refuse("bn-keras conformance", refusal, lines=True)
    except judging.Silence as silence:
        return _refuse(f"TensorFlow could not be loaded: {silence}")
    except KeyboardInterrupt:
        return INTERRUPTED
    counted = SEVERITIES[: SEVERITIES.index(options.fail_on) + 1]
    status = int(bool(checked.failed(*counted)))
    unjudged = all(one.verdict == "skip" for one in checked.rows)
    if unjudged:
        status = 2
    if options.json:
        say(json.dumps(_as_json(checked, status, options.fail_on), indent=1))
        return status
    console = make_console()
    for line in checked.words():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(checked))
    for one in checked.failed():
        _print_failure(console, one)
    say(f"{path}: {_summary(checked.counts())}")
    if checked.failed() and not status:
        say(f"exit status 0: none of them is as severe as {options.fail_on}")
    if unjudged:
        say("exit status 2: no probe could be judged; expected a layer with what they look at, or "
            "other probes")
    return status


def _as_json(checked: Checked, status: int, fail_on: str) -> Dict[str, Any]:
    return {
        "layer": checked.thing,
        "kind": checked.about.kind,
        "status": status,
        "fail_on": fail_on,
        **checked.counts(),
        "hints": [dict(zip(("cause", "text", "remedy"), one)) for one in checked.hints],
        "conventions": list(checked.about.conventions),
        "probes": [dataclasses.asdict(one) for one in checked.rows],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bn-keras conformance", description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="only these probes: a part of their names, a kind or a severity; separated by commas "
        "or given several times",
    )
    parser.add_argument(
        "--fail_on", "--fail-on", default=WRONG_NUMBERS, type=_severity, metavar="SEVERITY",
        help=f"the mildest failure that makes the exit status 1: {', '.join(SEVERITIES)} "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument(
        "--timeout", default=120.0, type=_seconds, metavar="SECONDS",
        help="for the import of the layer's module, and for each probe (default: 120)",
    )
    return parser


def _severity(text: str) -> str:
    known = {one.replace("-", " "): one for one in SEVERITIES}
    try:
        return known[text.lower().replace("-", " ").replace("_", " ")]
    except KeyError:
        raise argparse.ArgumentTypeError(
            f"received {text!r}; expected one of {', '.join(SEVERITIES)}"
        ) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"received {text!r}; expected a number of seconds above 0")
    return seconds


def _refuse(text: str) -> int:
    return refuse("bn-keras conformance", text)


def _collect(path: str, told: Iterable[Any]) -> Checked:
    """All that is told, with a word on a terminal of how far it has come."""
    from rich.console import Console

    rows: List[Judgement] = []
    about = About("of a kind that it did not live to tell")
    with Console(stderr=True).status("loading") as status:
        for one in told:
            if isinstance(one, About):
                about = About(
                    _plain(one.kind), tuple(map(_plain, one.conventions)),
                    tuple((_plain(a), _plain(b), _plain(c)) for a, b, c in one.hints),
                )
                continue
            rows.append(dataclasses.replace(one, evidence=_plain(one.evidence)))
            status.update(f"{len(rows)} probes done")
    return Checked(path, about, tuple(rows))


def _plain(text: str) -> str:
    kept = plain(text)
    return kept if len(kept) <= MOST_CHARACTERS else kept[:MOST_CHARACTERS] + "…"


def _summary(counts: Dict[str, Any]) -> str:
    by_severity = ", ".join(
        f"{number} {severity}" for severity, number in counts["failed_by_severity"].items()
    )
    return (
        f"{counts['passed']} passed, {counts['failed']} failed ({by_severity}), "
        f"{counts['skipped']} skipped"
    )


def _table(checked: Checked) -> "Table":
    """All rows of a Keras layer; of other things, those that could be asked."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("probe", "kind", "", "evidence", box=box.SIMPLE, pad_edge=False)
    colors = {"fail": "bold red", "pass": "green", "skip": "dim"}
    for severity in SEVERITIES:
        rows = [one for one in checked.rows if one.severity == severity
                and (one.verdict != "skip" or checked.about.kind == KERAS_LAYER)]
        if rows:
            table.add_section()
            table.add_row(f"[bold]{severity}[/]")
        for one in sorted(rows, key=lambda one: list(colors).index(one.verdict)):
            color = colors[one.verdict]
            table.add_row(
                one.probe, one.kind, f"[{color}]{one.verdict}[/]", escape(one.evidence)
            )
    return table


def _print_failure(console: "Console", judgement: Judgement) -> None:
    """Three lines: severity and probe, the evidence, why it matters."""
    console.print(
        f"{judgement.severity}: {judgement.probe}", style="bold red", markup=False
    )
    for line in (judgement.evidence, judgement.why):
        console.print(f"    {line}", markup=False, soft_wrap=True)
