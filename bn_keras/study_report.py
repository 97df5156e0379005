"""A study's work directory as a table of arms, the verdicts on its claims and a picture."""

import dataclasses
import json

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from bn_keras import animation, figures, stats, verdicts
from bn_keras.registry import STUDIES
from bn_keras.results import write_atomically

COLORS = {
    verdicts.HOLDS: "green",
    verdicts.OTHER_REASON: "yellow",
    verdicts.FAILS: "red",
    verdicts.UNDECIDED: "dim",
}


@dataclasses.dataclass(frozen=True)
class StudyReport:
    """What a study found.

    Attributes:
        name: the study's.
        study: Study.
        quick: whether it is the short version, whose figures are not those reported before.
        rows: list of Row.
        judged: a Verdict for every claim that at least one seed says something about.
    """

    name: str
    study: object
    quick: bool
    rows: list
    judged: list

    note = "median [lowest, highest] over seeds; below it, the figure found before"

    @property
    def verdict(self):
        """The claims and what became of them, as text."""
        lines = [f"{self.study.question} ({self.study.source})"]
        if self.quick:
            lines.append(
                "This is the quick version: it shows that all of it works, and decides little."
            )
        for found in self.judged:
            lines.append(
                f"• {found.claim.text} ({found.claim.source}): {found.verdict.upper()}: "
                f"{found.reason}"
            )
            if found.verdict == verdicts.OTHER_REASON:
                lines.append(f"    {found.claim.otherwise}")
            lines += [f"    {line}" for line in found.figures]
        return "\n".join(lines)

    def table(self):
        """A rich table of arms and metrics, and one of the claims."""
        arms = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        arms.add_column("arm")
        arms.add_column("seeds", justify="right")
        metrics = [
            metric for metric in self.study.metrics
            if any(metric in row.metrics for row in self.rows)  # some need more steps than these
        ]
        for metric in metrics:
            arms.add_column(metric.replace("_", " "), justify="right")
        for arm in dict.fromkeys(row.arm for row in self.rows):
            mine = [row for row in self.rows if row.arm == arm]
            cells = []
            for metric in metrics:
                found = "–"  # a metric that this kind of net does not have
                if any(metric in row.metrics for row in mine):
                    found = stats.figure(row.metrics.get(metric) for row in mine)
                before = self.study.reported.get((arm, metric))
                cells.append(found if before is None else f"{found}\n[dim]{escape(before)}[/]")
            arms.add_row(escape(arm), str(len(mine)), *map(_plain, cells))
        claims = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("claim", "verdict", "seeds"):
            claims.add_column(heading)
        for found in self.judged:
            color = COLORS[found.verdict]
            claims.add_row(
                escape(found.claim.text), f"[{color}]{found.verdict}[/]",
                f"{found.effect.seen} of {found.effect.seeds}",
            )
        return Group(*self._own_tables(), arms, claims)

    def _own_tables(self):
        for headings, rows in self.study.tables(self.rows) if self.study.tables else []:
            # Rows of several lines, written so or folded, need a blank line between them.
            folded = any("\n" in cell or len(cell) > 20 for cells in rows for cell in cells)
            own = Table(
                *headings, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
                leading=int(folded),
            )
            for cells in rows:
                own.add_row(*map(escape, cells))
            yield own

    def to_json(self):
        """Rows and verdicts as a JSON text."""
        content = {
            "study": self.name,
            "question": self.study.question,
            "quick": self.quick,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "claims": [
                {**dataclasses.asdict(found), "claim": found.claim.text,
                 "source": found.claim.source, "reason": found.reason}
                for found in self.judged
            ],
        }
        return json.dumps(content, indent=1, allow_nan=False)


def write(store, results):
    """Writes the picture, `results.json` and the animations of a study's work directory.

    Args:
        store: Store whose `study()` names a study.
        results: its results, at least one.

    Returns:
        `(StudyReport, bytes of the PNG)`.
    """
    told = store.study()
    study = STUDIES.get(told["name"])()
    rows = study.rows(results)
    # Where no seed has what a claim is about, as with some arms alone, there is nothing to judge.
    judged = [found for found in (verdicts.judge(claim, rows) for claim in study.claims)
              if found.effect.seeds]
    report = StudyReport(told["name"], study, told["quick"], rows, judged)
    captured = animation.captured_runs(store, results)
    pairs = {
        name: arms for name, arms in study.animations.items() if set(arms) <= set(captured)
    }
    if pairs:
        picture = animation.overview(results, study.question, captured, pairs)
    else:
        picture = getattr(figures, study.picture)(results, study.question)
    for name, arms in pairs.items():
        title = f"{name}: what every layer sees"
        images = animation.layer_histograms(*(captured[arm] for arm in arms), title)
        path = store.work_dir / f"animation-{name}"
        write_atomically(path.with_suffix(".gif"), animation.gif(images))
        write_atomically(path.with_suffix(".html"), animation.page(images, title))
    write_atomically(store.work_dir / "picture.png", picture)
    for name, text in (study.files(results) if study.files else {}).items():
        write_atomically(store.work_dir / name, text)
    write_atomically(store.work_dir / "results.json", report.to_json())
    return report, picture


def _plain(cell):
    # An interval's brackets are no markup; the dim line's are.
    first, _, rest = cell.partition("\n")
    return escape(first) + ("\n" + rest if rest else "")
