"""The verb `conformance`: is a batch normalization layer right? Arguments, table and JSON.

Neither TensorFlow nor the layer's module is loaded here; `diagnostics.judging` does both.
"""

import argparse
import collections
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Sequence

from bn_keras.commands.console import INTERRUPTED, make_console, refuse, say
from bn_keras.diagnostics.severity import CONVENIENCE, SEVERITIES
from bn_keras.registry import COMMANDS
from bn_keras.texts import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bn_keras.diagnostics.judging import Judgement

DESCRIPTION = """Asks a batch normalization layer some fifty questions.

LAYER is keras.layers.BatchNormalization, bn_keras.BatchNorm, or module:Class of your own: a
keras.layers.Layer, or a plain class with __call__(x) on NumPy rows and a `training` switch.

Severities, the worst first:
  wrong numbers  outputs, gradients or statistics, in ordinary use
  drop-in        not the interface of keras.layers.BatchNormalization: configs, files, masks
  robustness     bad batches, half precision, numbers far from zero, replicas
  convenience    what is accepted, and what errors say

Example:
  bn-keras conformance keras.layers.BatchNormalization --fail-on=drop-in

Exit status: 0 nothing failed, 1 something failed, 2 the layer could not be judged.
"""
MOST_CHARACTERS = 300  # of an evidence


@COMMANDS.register(
    "conformance", usage="conformance LAYER [flags]",
    does="is a batch normalization layer right? LAYER is keras.layers.BatchNormalization, "
    "bn_keras.BatchNorm, or module:Class of your own; conformance --help lists the flags",
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
    if not all(options.layer.replace(":", ".", 1).split(".")) or not set(options.layer) & {*".:"}:
        return _refuse(
            f"received {options.layer!r}; expected module:Class of a module that can be imported "
            "from here, such as keras.layers:BatchNormalization"
        )
    from bn_keras.diagnostics import judging

    only = [text for texts in options.only for text in texts.split(",")]
    try:
        judgements = _collect(judging.judge(options.layer, only, options.timeout))
    except judging.Refused as refusal:
        return refuse("bn-keras conformance", refusal, lines=True)
    except judging.Silence as silence:
        return _refuse(f"TensorFlow could not be loaded: {silence}")
    except KeyboardInterrupt:
        return INTERRUPTED
    failed = [one for severity in SEVERITIES for one in judgements
              if one.verdict == "fail" and one.severity == severity]
    counted = SEVERITIES[: SEVERITIES.index(options.fail_on) + 1]
    status = int(any(one.severity in counted for one in failed))
    unjudged = all(one.verdict == "skip" for one in judgements)
    if unjudged:
        status = 2
    if options.json:
        say(json.dumps({
            "layer": options.layer,
            "status": status,
            "fail_on": options.fail_on,
            **_counts(judgements),
            "probes": [dataclasses.asdict(one) for one in judgements],
        }, indent=1))
        return status
    console = make_console()
    console.print(_table(judgements))
    for one in failed:
        _print_failure(console, one)
    say(f"{options.layer}: {_summary(_counts(judgements))}")
    if failed and not status:
        say(f"exit status 0: none of them is as severe as {options.fail_on}")
    if unjudged:
        say("exit status 2: no probe could be judged; expected a layer with what they look at, or "
            "other probes")
    return status


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
        "--fail-on", default=CONVENIENCE, type=_severity, metavar="SEVERITY",
        help=f"the mildest failure that makes the exit status 1: {', '.join(SEVERITIES)} "
        "(default: %(default)s, which is any)",
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


def _collect(judgements: Iterable[Any]) -> List["Judgement"]:
    """All judgements, with a word on a terminal of how far they have come."""
    from rich.console import Console

    found = []
    with Console(stderr=True).status("loading TensorFlow") as status:
        for one in judgements:
            found.append(dataclasses.replace(one, evidence=_plain(one.evidence)))
            status.update(f"{len(found)} probes done")
    return found


def _plain(text: str) -> str:
    kept = plain(text)
    return kept if len(kept) <= MOST_CHARACTERS else kept[:MOST_CHARACTERS] + "…"


def _counts(judgements: Sequence["Judgement"]) -> Dict[str, Any]:
    verdicts = collections.Counter(one.verdict for one in judgements)
    failed = collections.Counter(one.severity for one in judgements if one.verdict == "fail")
    return {
        "passed": verdicts["pass"],
        "failed": verdicts["fail"],
        "skipped": verdicts["skip"],
        "failed_by_severity": {severity: failed[severity] for severity in SEVERITIES},
    }


def _summary(counts: Dict[str, Any]) -> str:
    by_severity = ", ".join(
        f"{number} {severity}" for severity, number in counts["failed_by_severity"].items()
    )
    return (
        f"{counts['passed']} passed, {counts['failed']} failed ({by_severity}), "
        f"{counts['skipped']} skipped"
    )


def _table(judgements: Sequence["Judgement"]) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("probe", "kind", "", "evidence", box=box.SIMPLE, pad_edge=False)
    colors = {"fail": "bold red", "pass": "green", "skip": "dim"}
    for severity in SEVERITIES:
        rows = [one for one in judgements if one.severity == severity]
        if rows:
            table.add_section()
            table.add_row(f"[bold]{severity}[/]")
        for one in sorted(rows, key=lambda one: list(colors).index(one.verdict)):
            color = colors[one.verdict]
            table.add_row(
                one.probe, one.kind, f"[{color}]{one.verdict}[/]", escape(one.evidence)
            )
    return table


def _print_failure(console: "Console", judgement: "Judgement") -> None:
    """Three lines: severity and probe, the evidence, why it matters."""
    console.print(
        f"{judgement.severity}: {judgement.probe}", style="bold red", markup=False
    )
    for line in (judgement.evidence, judgement.why):
        console.print(f"    {line}", markup=False, soft_wrap=True)
