"""The report on a plan's results, and the files that a work directory's report leaves.

`exports` has its forms for notebooks, papers and pull requests.

Nothing is claimed that the seeds cannot carry: fewer pairs than can decide are counted and not
tested, and one seed gives its numbers alone. Every row keeps its status, and runs that are missing
are named.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any, Mapping, Optional, Sequence, Union

import numpy as np

from bn_keras import own
from bn_keras import study as studies
from bn_keras import verdicts
from bn_keras.plan import PLAN_FILE, Plan
from bn_keras.registry import FILES
from bn_keras.report import exports, sentences
from bn_keras.report.findings import Arm, Compared, compare, outcome, summarize
from bn_keras.results import RunResult, Store, write_atomically
from bn_keras.study import Row

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, Group, RenderResult


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings on a plan's results.

    `print(report)` and a rich console show the whole of it as text, a notebook as a table with its
    picture.

    Attributes:
        plan: the Plan.
        results: the RunResults that there are.
        missing: planned run, such as `batch, seed 3`, to why it is not there.
        rows: the Rows that all of the rest is made of.
        arms: an Arm for each.
        comparisons: every arm against the study's baseline, if it has one.
        judged: a Verdict for every claim that at least one seed says something about.
        verdict: all findings as text.
        notes: how to read the tables.
    """

    plan: Plan
    results: Sequence[RunResult]
    missing: Mapping[str, str]
    rows: Sequence[Row]
    arms: Sequence[Arm]
    comparisons: Sequence[Compared]
    judged: Sequence[verdicts.Verdict]
    verdict: str
    notes: Sequence[str]

    def table(self) -> "Group":
        """The study's own tables, the arms, and the claims with what became of them."""
        from rich.console import Group

        from bn_keras.report.layout import Columns

        tables = [Columns(headings, cells) for _, headings, cells in sentences.tables(self)]
        return Group(*(part for table in tables for part in (table, "")))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from bn_keras.report.layout import Paragraph

        yield self.table()
        for note in self.notes:
            yield Paragraph(note, "dim")
        yield Paragraph(f"\n{self.verdict}\n")

    def __str__(self) -> str:
        return exports.to_text(self)

    def __repr__(self) -> str:
        return exports.in_one_line(self)

    def _repr_html_(self) -> str:
        return exports.to_html(self)

    def frame(self) -> "pandas.DataFrame":
        """A row for each run: arm, seed, status, outcome, settings and metrics."""
        return exports.frame(self)

    def curves(self) -> "pandas.DataFrame":
        """A row for each point of a curve: arm, seed, settings, metric, step and value."""
        return exports.curves(self)

    def figure(self) -> "Figure":
        """The picture, as a figure that pyplot does not know: nothing has to be closed."""
        from bn_keras.report import figures  # matplotlib takes a second

        return figures.compose(self.rows, panels(self.plan), _title(self.plan))

    def save_picture(self, path: Union[str, pathlib.Path]) -> None:
        """Writes the picture as PNG, SVG or PDF, which the end of the path says."""
        exports.save_picture(self, path)

    def to_markdown(self) -> str:
        """Verdict, arms, claims and notes in GitHub's Markdown."""
        return exports.to_markdown(self)

    def to_latex(self) -> str:
        r"""The table of arms as a LaTeX tabular, for `\usepackage{booktabs}`."""
        return exports.to_latex(self)

    def to_json(self) -> str:
        """All of the report as a strict JSON text; what is infinite or missing is null."""
        study = self.plan.study
        content = {
            "study": self.plan.name,
            "quick": self.plan.quick,
            "question": study.question,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "missing": dict(self.missing),
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "comparisons": [dataclasses.asdict(compared) for compared in self.comparisons],
            "claims": [_claim(found) for found in self.judged],
            "rows": [
                {"arm": row.arm, "seed": row.seed, "status": row.status, "outcome": outcome(row),
                 "normalizer": row.normalizer, "metrics": dict(row.metrics)}
                for row in self.rows
            ],
            "runs": [
                {**dataclasses.asdict(result), "curves": sorted(result.curves)}
                for result in self.results
            ],
        }
        return json.dumps(_finite(content), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """Every metric of every row, a line each: arm, seed, status, metric, value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arm", "seed", "status", "metric", "value"])
        for row in self.rows:
            for metric, value in row.metrics.items():
                writer.writerow([row.arm, row.seed, row.status, metric, value])
        return text.getvalue()


def make_report(
    plan: Plan, results: Sequence[RunResult], missing: Optional[Mapping[str, str]] = None
) -> Report:
    """The Report on a plan's results.

    Args:
        plan: what was to be run.
        results: what there is of it.
        missing: planned run to why it is not there; by default all that has no result is said to be
            unfinished.
    """
    if missing is None:
        there = {result.config for result in results}
        missing = {_named(run): "not finished" for run in plan.runs if run not in there}
    rows = studies.rows(plan.study, results)
    arms = [summarize(name, rows, results) for name in dict.fromkeys(row.arm for row in rows)]
    comparisons = compare(plan.study, rows, results)
    judged = [verdicts.judge(claim, rows) for claim in plan.study.claims]
    # Where no seed has what a claim is about, as with some arms alone, there is nothing to judge.
    judged = [found for found in judged if found.effect.seeds]
    report = Report(plan, results, missing, rows, arms, comparisons, judged, "", ())
    return dataclasses.replace(
        report, verdict="\n".join(sentences.verdict(report)), notes=tuple(sentences.notes(report))
    )


def read(store: Store) -> Report:
    """The report on a work directory, as far as its runs are finished; writes nothing.

    Args:
        store: Store of the work directory.

    Raises:
        ValueError: the folder has no plan of this version, or no readable result.
    """
    try:
        plan = Plan.from_json((store.work_dir / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{store.work_dir}: no work directory of this version's train command ({error})"
        ) from error
    results, missing = [], {}
    for run in plan.runs:
        result, reason = store.look_up(run)
        if result is None:
            missing[_named(run)] = reason
        else:
            results.append(result)
    if not results:
        reasons = ", ".join(dict.fromkeys(missing.values()))
        raise ValueError(f"{store.work_dir}: not one of its {len(plan.runs)} runs can be reported "
                         f"({reasons})")
    report = make_report(plan, results, missing)
    return dataclasses.replace(report, rows=_with_frames(store, report))


def write(store: Store) -> Report:
    """Writes a work directory's report into it.

    Writes `results.json`, `results.csv`, `picture.png`, the text files and animations that the
    study has, and `report.html`.

    Args:
        store: Store of the work directory.

    Raises:
        ValueError: as for `read`.
        OSError: the report cannot be written.
    """
    report = read(store)
    # The numbers first: a picture that fails must not cost them.
    write_atomically(store.work_dir / "results.csv", report.to_csv())
    write_atomically(store.work_dir / "results.json", report.to_json())
    for name in report.plan.study.files:
        for file, text in FILES.get(name)(report.rows).items():
            write_atomically(store.work_dir / file, text)
    picture = _write_pictures(store, report)
    _write_page(store, report, picture)
    return report


def _claim(found: verdicts.Verdict) -> dict[str, Any]:
    return {
        "claim": found.claim.text, "source": found.claim.source, "verdict": found.verdict,
        "reason": found.reason, "effect": dataclasses.asdict(found.effect),
        "cause": found.cause and dataclasses.asdict(found.cause),
    }


def _named(run: Any) -> str:
    return f"{run.arm_name}, seed {run.seed}"


def _finite(value: Any) -> Any:
    """JSON's values of a nested structure: no infinity, no NaN, no NumPy."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_frames(store: Store, report: Report) -> list[Row]:
    """The report's rows; the first one of each animated arm whose frames can be read has them."""
    frames: dict[tuple[str, int], Mapping[str, Any]] = {}
    animated = report.plan.study.animations.values()
    for arm in dict.fromkeys(arm for pair in animated for arm in pair):
        for result in report.results:
            if result.config.arm_name == arm:
                found = store.frames(result.config)
                if found is not None:
                    frames[arm, result.config.seed] = found
                    break
    return [
        dataclasses.replace(row, frames=frames[row.arm, row.seed])
        if (row.arm, row.seed) in frames else row
        for row in report.rows
    ]


def _title(plan: Plan) -> str:
    """The picture's: the question, and what all runs have in common."""
    told = []
    for name, text in (("model", "{}"), ("dataset", "on {}"), ("optimizer", "{}"),
                       ("learning_rate", "learning rate {:g}"), ("batch_size", "batches of {}")):
        value = plan.optimizer if name == "optimizer" else plan.common(name)
        if value is not None:
            told.append(text.format(own.short(value) if isinstance(value, str) else value))
    return f"{plan.study.question}\n{', '.join(told).replace(', on ', ' on ')}"


def panels(plan: Plan) -> list[str]:
    """The names of the picture's figures, each with its argument."""
    return [f"outcomes:{plan.study.compared}" if name == "outcomes" else name
            for name in plan.study.figures]


def _write_pictures(store: Store, report: Report) -> Optional[bytes]:
    """Writes picture and animations; returns the picture, if the study has one."""
    from bn_keras.report import animation, figures  # matplotlib takes a second

    study, picture = report.plan.study, None
    if study.figures:
        picture = figures.picture(report.rows, panels(report.plan), _title(report.plan))
        write_atomically(store.work_dir / "picture.png", picture)
    captured = {row.arm: row for row in report.rows if row.frames}
    for name, (upper, lower) in study.animations.items():
        if upper in captured and lower in captured:
            title = f"{name}: what every layer sees"
            images = animation.layer_histograms(captured[upper], captured[lower], title)
            path = store.work_dir / f"animation-{name}"
            write_atomically(path.with_suffix(".gif"), animation.gif(images))
            write_atomically(path.with_suffix(".html"), animation.page(images, title))
    return picture


def _write_page(store: Store, report: Report, picture: Optional[bytes]) -> None:
    from bn_keras.report.page import page  # Altair takes half a second

    write_atomically(store.work_dir / "report.html", page(report, picture))
