"""The report as one HTML file, `report.html`, that needs no other file and no network.

Its text, tables and picture are there without JavaScript; the script adds the charts, and sorts and
filters the table of runs. All text that a user or a file can give is escaped by the template. As a
second wall, the page's policy (Content-Security-Policy) lets no script run but its own two, and
nothing be fetched.
"""

import base64
import dataclasses
import functools
import hashlib
import pathlib
import re
from typing import TYPE_CHECKING, Any, Iterator, Optional, Sequence

import altair
import jinja2
import vl_convert

from bn_keras import verdicts
from bn_keras.config import PARTS, RUN_FIELDS
from bn_keras.metrics import describe
from bn_keras.registry import FIGURES
from bn_keras.report import page_charts, page_command, sentences
from bn_keras.report.figures.drawing import styles
from bn_keras.report.findings import outcome
from bn_keras.report.layout import is_figure
from bn_keras.report.numbers import chosen, count, number
from bn_keras.report.page_looks import DARK, LIGHT, dashes, visible
from bn_keras.texts import plain

if TYPE_CHECKING:
    from bn_keras.report.report import Report

FOLDER = pathlib.Path(__file__).parent
PANEL_WIDTH = 340  # of a picture's panel, in CSS pixels: narrower, its text is too small to read
OUTCOMES = ("validation_accuracy", "test_accuracy", "test_loss")  # of runs, beside the study's own
VERDICT_CLASSES = {
    verdicts.HOLDS: "holds", verdicts.OTHER_REASON: "other", verdicts.FAILS: "fails",
}
PLURALS = {
    verdicts.HOLDS: "hold", verdicts.OTHER_REASON: "hold, but for another reason",
    verdicts.FAILS: "do not hold", verdicts.UNDECIDED: "are not decided",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: its title.
        headings: one a column.
        rows: texts, as many as headings.
        keys: places of the arms whose colours stand in front of the rows; none for no colours.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[int] = ()

    @property
    def figures(self) -> list[bool]:
        """Whether a column holds numbers alone, and is set to the right."""
        return [place > 0 and all(is_figure(row[place]) for row in self.rows)
                for place in range(len(self.headings))]


def page(report: "Report", picture: Optional[bytes] = None) -> str:
    """The page of a report.

    Args:
        report: Report.
        picture: a PNG, the report's picture, if its study has one.
    """
    study, plan = report.plan.study, report.plan
    arms = [arm.name for arm in report.arms]
    looks = styles(report.rows)
    curves = page_charts.curves(report.rows, report.results, arms)
    data = {
        "arms": [plain(arm) for arm in arms],
        "curves": {"chart": page_charts.curves_chart(
            len(arms), tuple(dashes(looks[arm][1]) for arm in arms)), "groups": curves.groups},
        "finals": {"chart": page_charts.finals_chart(len(arms)), **page_charts.finals(
            report.rows, report.arms, study.compared, study.columns)},
    }
    library, script = _library(), _read("page.js")
    shared, runs = _runs(report)
    text: str = _environment().get_template("page.html").render(
        question=plain(study.question), source=plain(study.source),
        verdict=list(_verdict(report)), picture=_picture(report, picture),
        tables=list(_tables(report)), claims=list(_claims(report)),
        notes=[plain(note) for note in report.notes],
        arms=[{"name": plain(arm), "light": visible(looks[arm][0], *LIGHT),
               "dark": visible(looks[arm][0], *DARK),
               "dashes": " ".join(map(str, dashes(looks[arm][1])))} for arm in arms],
        curves=curves, seeds=sorted({row.seed for row in report.rows}), finals=data["finals"],
        runs=runs, shared=shared, versions=_versions(report), missing=_missing(report),
        planned=count(len(plan.runs), "run"), command=page_command.command(plan),
        files=list(_files(report)), data=data, style=_read("page.css"), library=library,
        script=script, hashes=[_hash(library), _hash(script)],
    )
    return text


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed, in the version that Altair writes for."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _verdict(report: "Report") -> Iterator[str]:
    """The findings in short: the claims are counted here, and told one by one further down."""
    if report.plan.quick:
        yield sentences.QUICK
    if report.missing:
        planned = count(len(report.plan.runs), "run")
        yield f"{len(report.missing)} of {planned} missing: what follows is of the others."
    yield from sentences.against_baseline(report)
    if report.judged:
        known = [found.verdict for found in report.judged]
        parts = [f"{known.count(word)} {plural if known.count(word) > 1 else word}"
                 for word, plural in PLURALS.items() if word in known]
        yield f"Claims: {', '.join(parts)}."
    study = report.plan.study
    unjudged = len(study.claims) - len(report.judged)
    if unjudged:
        yield f"{count(unjudged, 'claim')} cannot be judged by the runs that there are."
    if study.baseline is None and not study.claims:
        yield "This study has no baseline and no claims: its findings are in the tables."


def _picture(report: "Report", picture: Optional[bytes]) -> Optional[dict[str, Any]]:
    if picture is None:
        return None
    panels, reading = [], {}
    for name in report.plan.study.figures:
        kind, _, argument = name.partition(":")
        panels.append(plain(describe(argument).title) if argument else kind.replace("_", " "))
        told = re.search(r"How to read it: (.*?)\n\s*\n", FIGURES.get(kind).__doc__ or "", re.S)
        if told:
            reading[kind.replace("_", " ")] = " ".join(told[1].split())
    names = [plain(arm.name) for arm in report.arms]
    return {
        "url": "data:image/png;base64," + base64.b64encode(picture).decode(),
        "alt": f"{count(len(panels), 'panel')}: {'; '.join(panels)}. Arms: {', '.join(names)}. "
               "The tables below have the numbers.",
        "reading": reading, "width": PANEL_WIDTH * min(len(panels), 3),
    }


def _tables(report: "Report") -> Iterator[Table]:
    """Those of the terminal, arms first; the claims have a section of their own."""
    found = sorted(sentences.tables(report), key=lambda table: table[0] != sentences.ARMS)
    for caption, headings, cells in found:
        if caption != sentences.CLAIMS:
            arms = caption == sentences.ARMS
            yield Table(caption, headings, cells, range(len(cells)) if arms else ())


def _claims(report: "Report") -> Iterator[dict[str, Any]]:
    for found in report.judged:
        yield {
            "text": plain(found.claim.text), "source": plain(found.claim.source),
            "verdict": found.verdict, "class": VERDICT_CLASSES.get(found.verdict, "open"),
            "seen": sentences.seen(found).replace("\n", "; "), "reason": plain(found.reason),
            "otherwise": plain(found.claim.otherwise) if found.verdict == verdicts.OTHER_REASON
            else "",
            "figures": [plain(line) for line in found.figures],
        }


def _runs(report: "Report") -> tuple[list[tuple[str, list[tuple[str, str]]]], Table]:
    """The settings that all planned runs share, by part, and the table of the runs."""
    planned = report.plan.runs
    values = {name: {getattr(run, name) for run in planned} for name in RUN_FIELDS}
    shared = []
    for title, part in PARTS.items():
        own = {field.name for field in dataclasses.fields(part)}
        pairs = [(name, _setting(next(iter(values[name])))) for name in RUN_FIELDS
                 if name in own and name != "seed" and len(values[name]) == 1]
        shared.append((title, pairs))
    varied = [name for name in RUN_FIELDS
              if name not in ("arm", "seed") and len(values[name]) > 1]
    rows = {(row.arm, row.seed): row for row in report.rows}
    metrics = [name for name in dict.fromkeys((*report.plan.study.columns, *OUTCOMES))
               if any(name in result.metrics for result in report.results)]
    cells = []
    for result in report.results:
        config = result.config
        row = rows.get((config.arm_name, config.seed))  # there is none on a ladder
        values_of = [result.metrics.get(name) for name in metrics]
        cells.append([
            plain(config.arm_name), str(config.seed), outcome(row) if row else result.status,
            *(_setting(getattr(config, name)) for name in varied),
            *("–" if value is None else number(value) for value in values_of),
            f"{result.steps:,}", f"{result.seconds:.1f}",
        ])
    headings = ["arm", "seed", "outcome", *varied,
                *(plain(describe(name).title) for name in metrics), "steps", "seconds"]
    return shared, Table("Runs", headings, cells)


def _setting(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, tuple):
        return plain(", ".join(value)) or "none"
    return chosen(value) if isinstance(value, (int, float)) else plain(value)


def _versions(report: "Report") -> list[tuple[str, str]]:
    found: dict[str, dict[str, None]] = {}
    for result in report.results:
        for name, version in result.versions.items():
            found.setdefault(plain(name), {})[plain(version)] = None
    return [(name, ", ".join(versions)) for name, versions in found.items()]


def _missing(report: "Report") -> list[tuple[str, list[str]]]:
    """Reason to the planned runs that are missing for it."""
    found: dict[str, list[str]] = {}
    for run, reason in report.missing.items():
        found.setdefault(plain(reason), []).append(plain(run))
    return list(found.items())


def _files(report: "Report") -> Iterator[tuple[str, str]]:
    """(file, what it holds) of the files that stand beside the page."""
    yield "results.json", "all of this report as data"
    yield "results.csv", "every metric of every run, one a line"
    captured = {row.arm for row in report.rows if row.frames}
    for name, pair in report.plan.study.animations.items():
        if captured.issuperset(pair):
            yield f"animation-{name}.html", "what the layers saw, epoch by epoch"
