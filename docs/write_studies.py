"""Writes `docs/studies.md` and the table in `docs/research.md`: `docs/write_studies.py RUNS`.

RUNS is the folder of `--logdir`: of every study that is stored in it whole, the figures are kept in
`docs/studies/NAME.json`, and the texts are written from all that is kept. Without RUNS the texts
alone are written anew.
"""

import inspect
import json
import pathlib
import sys
from typing import Any, Dict, Iterator, List

from bn_keras import study as studies
from bn_keras.plan import Plan, make_plan
from bn_keras.registry import STUDIES
from bn_keras.report import report, sentences
from bn_keras.results import Store, write_atomically

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "studies"
SECONDS = "seconds per run"
BEGIN, END = "<!-- studies -->", "<!-- end of studies -->"
INTRODUCTION = """# The studies and what they found

This page is written by `python docs/write_studies.py` from stored runs. Each study is one command,
which prints such figures and a verdict on each claim; the one that gave the figures below stands
above them, with its seeds. *Elsewhere* are figures of other seeds and programs, for comparison: the
tutorial's own, runs of it as it was written, and runs of this toolkit with the seeds on which the
study was made. No claim is judged by them.

Figures are median [lowest, highest] over seeds; counts in parentheses say in how many seeds there
is a value. A claim *holds* if the seeds show, with 95 % confidence, that it is true in more than
half of all seeds (5 of 5, 7 of 8, 9 of 10 do), *does not hold* if they show the opposite, and is
*not decided* otherwise. Where the effect is there, but the controls contradict the reason given for
it, the claim *holds, but for another reason*. `--arms="NAME; NAME"` runs some arms alone,
`--seeds=N` more pairs.
"""


def record(work_dir: pathlib.Path) -> Dict[str, Any]:
    """What is kept of a stored study: its tables as text, its claims and versions.

    Raises:
        ValueError: runs are missing.
    """
    found = report.write(Store(work_dir))
    if found.missing:
        raise ValueError(f"{len(found.missing)} of its runs are missing")
    headings, cells = sentences.table_of_arms(found)
    return {
        "study": found.plan.name,
        "seeds": len({run.seed for run in found.plan.runs}),
        "first_seed": min(run.seed for run in found.plan.runs),
        "headings": list(headings),
        "cells": [list(row) for row in cells],
        "comparisons": [sentences.against(found, compared) for compared in found.comparisons],
        "claims": [
            {"claim": one.claim.text, "source": one.claim.source, "verdict": one.verdict,
             "reason": one.reason, "otherwise": one.claim.otherwise}
            for one in found.judged
        ],
        "versions": found.results[0].versions,
    }


def kept() -> Dict[str, Dict[str, Any]]:
    """Study to record, of all that is kept, in the order of the names."""
    paths = sorted(KEPT.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def page(records: Dict[str, Dict[str, Any]]) -> str:
    """`docs/studies.md` as text."""
    lines = (
        line for name in STUDIES.names()
        for line in (_section(records[name]) if name in records else _unmeasured(name))
    )
    return "\n".join([INTRODUCTION, *lines])


def table() -> str:
    """The table of studies in `docs/research.md`."""
    rows = [["`--study=`", "what it asks", "what to expect", "on 2 cores"]]
    for name in STUDIES.names():
        study: studies.Study = STUDIES.get(name)()
        rows.append([f"`{name}`", study.question, study.expected, study.duration])
    return "\n".join(_markdown(rows))


def _section(found: Dict[str, Any]) -> Iterator[str]:
    study: studies.Study = STUDIES.get(found["study"])()
    module = inspect.getmodule(STUDIES.get(found["study"]))
    head, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    yield f"## `{found['study']}`: {head}\n"
    yield from (rest.strip("\n"), "")  # its second line is a command, indented
    yield (
        f"{study.question} Source: {study.source}. The figures are those of version "
        f"{found['versions']['bn_keras']}, by\n"
    )
    seeds = f"--seeds={found['seeds']} --first_seed={found['first_seed']}"
    yield f"```bash\npython train.py --study={found['study']} {seeds}\n```\n"
    rows = [found["headings"], *found["cells"]]
    if SECONDS in found["headings"]:  # several nets were trained at the same time
        place = found["headings"].index(SECONDS)
        rows = [[*row[:place], *row[place + 1:]] for row in rows]
    yield from _markdown(rows)
    yield ""
    yield from (f"- {sentence}" for sentence in found["comparisons"])
    for claim in found["claims"]:
        yield f"- {claim['claim']} ({claim['source']}): **{claim['verdict']}**. {claim['reason']}"
        if claim["verdict"] == "holds, but for another reason":
            yield f"  The controls say: {claim['otherwise']}."
    yield ""


def _unmeasured(name: str) -> Iterator[str]:
    study: studies.Study = STUDIES.get(name)()
    yield f"## `{name}`\n"
    yield f"{study.question} Source: {study.source}. Expected: {study.expected}.\n"
    yield "No runs of this version are kept yet.\n"


def _markdown(rows: List[List[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        cells = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in row)
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield "|" + "---|" * len(row)


def write() -> None:
    """Writes page and table from what is kept."""
    records = kept()
    write_atomically(ROOT / "docs" / "studies.md", page(records))
    around = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    before, rest = around.split(BEGIN)
    _, after = rest.split(END)
    # A blank line ends the comment; else a Markdown reader takes the table for a part of it.
    text = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    write_atomically(ROOT / "docs" / "research.md", text)


def main() -> None:
    for folder in sys.argv[1:]:
        for path in sorted(pathlib.Path(folder).glob("*/plan.json")):
            plan = Plan.from_json(path.read_text(encoding="utf-8"))
            if plan.quick or set(plan.study.arms) != set(STUDIES.get(plan.name)().arms):
                print(f"left out {path.parent}: not the whole study")
                continue
            if path.parent.name != make_plan(plan.name, {}, seeds=1).folder_name():
                print(f"left out {path.parent}: other settings than the study's own")
                continue
            try:
                text = json.dumps(record(path.parent), indent=1, ensure_ascii=False)
            except ValueError as error:
                print(f"left out {path.parent}: {error}")
                continue
            write_atomically(KEPT / f"{plan.name}.json", text + "\n")
            print(f"kept {plan.name}")
    write()


if __name__ == "__main__":
    main()
