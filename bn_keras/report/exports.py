"""A report in the forms that others take: data frames, Markdown, LaTeX, notebooks, pictures.

`Report` has a method for each. Cells and sentences are those of the terminal, from `sentences`;
here they are only escaped.
"""

import base64
import dataclasses
import html
import io
import math
import pathlib
import re
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, Sequence, Union

from bn_keras import study as studies
from bn_keras.config import RUN_FIELDS
from bn_keras.report import sentences
from bn_keras.report.findings import outcome
from bn_keras.results import RunResult, write_atomically
from bn_keras.study import Row
from bn_keras.texts import plain

if TYPE_CHECKING:
    import pandas

    from bn_keras.report.report import Report

WIDTH = 100  # columns of the plain text
MARKDOWN = re.compile(r"([\\`*_<>\[\]|~&$])")
BLOCK = re.compile(r"^(\d*)([-+#=]|(?<=\d)[.)])")  # at a line's start: a list, a heading, a rule
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    '"': "{''}", "–": r"\textendash{}", "—": r"\textemdash{}",
    # pdflatex does not know these in text
    "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "×": r"$\times$", "±": r"$\pm$",
    "²": "$^2$", "·": r"$\cdot$", "…": r"\ldots{}", "•": r"\textbullet{}",
})
TABLE_STYLE = "border-collapse: collapse; color: inherit; background: transparent"
CELL_STYLE = "text-align: left; vertical-align: top; padding: 0.2em 1em 0.2em 0"


def frame(report: "Report") -> "pandas.DataFrame":
    """A tidy table of runs.

    Args:
        report: Report.

    Returns:
        A pandas.DataFrame, a row for each run: arm, seed, status, outcome (learned, stuck,
        diverged, finished), normalizer, a column for each setting that differs between runs, and
        one for each metric, NaN where a run has no value.

    Raises:
        ImportError: pandas is not installed.
    """
    rows, settings = _runs(report), _varied(report.results)
    metrics = dict.fromkeys(metric for row in rows for metric in row.metrics)
    columns: dict[str, list[Any]] = {
        "arm": [row.arm for row in rows],
        "seed": [row.seed for row in rows],
        "status": [row.status for row in rows],
        "outcome": [outcome(row) for row in rows],
        **{name: [_setting(run, name) for run in report.results] for name in settings},
        **{metric: [_value(row.metrics.get(metric)) for row in rows] for metric in metrics},
    }
    return _pandas().DataFrame(columns)


def curves(report: "Report") -> "pandas.DataFrame":
    """A tidy table of curves.

    Args:
        report: Report.

    Returns:
        A pandas.DataFrame, a row for each point of each curve of each run: arm, seed, normalizer,
        a column for each setting that differs between runs, metric, step, value (NaN where it was
        not finite).

    Raises:
        ImportError: pandas is not installed.
    """
    settings = _varied(report.results)
    lines = [
        (run.config.arm_name, run.config.seed, *(_setting(run, name) for name in settings),
         metric, step, _value(value))
        for run in report.results for metric, points in run.curves.items()
        for step, value in points
    ]
    return _pandas().DataFrame(
        lines, columns=["arm", "seed", *settings, "metric", "step", "value"]
    )


def save_picture(report: "Report", path: Union[str, pathlib.Path]) -> None:
    """Writes the picture of a report, whole or not at all.

    Args:
        report: Report.
        path: its end says the kind: .png, .svg or .pdf.

    Raises:
        ValueError: the end is another one, or the study has no picture.
        OSError: the file cannot be written.
    """
    from bn_keras.report import figures  # matplotlib takes a second

    kind = pathlib.Path(path).suffix.lower().removeprefix(".")
    if kind not in figures.KINDS:
        raise ValueError(
            f"save_picture: received {str(path)!r}; expected a path that ends in "
            + ", ".join(f".{known}" for known in figures.KINDS)
        )
    write_atomically(path, figures.render(report.figure(), kind))


def in_one_line(report: "Report") -> str:
    """A report in one line: the study, how many arms and runs."""
    plan = report.plan
    arms = f"{len(report.arms)} arm" + "s" * (len(report.arms) != 1)
    quick = " (quick)" * plan.quick
    return (f"<Report on {plain(plan.name)}{quick}: {arms}, {len(report.results)} of "
            f"{len(plan.runs)} runs>")


def to_text(report: "Report") -> str:
    """A report as a terminal of 100 columns shows it, without colours."""
    from rich.console import Console

    text = io.StringIO()
    Console(
        file=text, width=WIDTH, highlight=False, color_system=None, force_terminal=False,
        force_jupyter=False,
    ).print(report)
    return text.getvalue()


def to_markdown(report: "Report") -> str:
    """A report for a README or a pull request.

    Returns:
        GitHub's Markdown: the findings, the table of arms, the claims, and how to read them. Names
        that look like Markdown or HTML are shown as they are.
    """
    parts = ["\n".join(_markdown_findings(report.verdict))]
    parts += [_markdown_table(headings, cells)
              for _, headings, cells in sentences.tables(report)]
    parts += [_markdown_line(note) for note in report.notes]
    return "\n\n".join(parts) + "\n"


def to_latex(report: "Report") -> str:
    r"""The table of arms for a paper.

    Returns:
        A LaTeX tabular with the rules of `\usepackage{booktabs}`. A cell of several lines takes as
        many lines of the table. pdflatex sets it, but for names in other scripts than Latin, which
        need xelatex or lualatex.
    """
    headings, cells = sentences.table_of_arms(report)
    lines = [r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}", r"\toprule",
             _latex_line(headings), r"\midrule"]
    folded = any("\n" in cell for row in cells for cell in row)
    for place, row in enumerate(cells):
        if place and folded:
            lines.append(r"\addlinespace")
        columns = [cell.split("\n") for cell in row]
        for line in range(max(map(len, columns))):
            lines.append(_latex_line([column[line] if line < len(column) else ""
                                      for column in columns]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_html(report: "Report") -> str:
    """A report for a notebook's output cell: findings, tables, notes, and the picture in it.

    Colours are those of the notebook, so that it is readable in a dark one too.
    """
    parts = [_html_paragraph(report.verdict)]
    parts += [_html_table(headings, cells) for _, headings, cells in sentences.tables(report)]
    if report.notes:
        notes = "".join(map(_html_paragraph, report.notes))
        parts.append(f"<details><summary>How to read this</summary>{notes}</details>")
    if report.plan.study.figures:
        from bn_keras.report import figures  # matplotlib takes a second

        picture = base64.b64encode(figures.png(report.figure())).decode("ascii")
        about = html.escape(plain(
            f"The runs as a picture: {report.plan.study.question} The table has the numbers."
        ))
        parts.append(f'<img alt="{about}" style="max-width: 100%" '
                     f'src="data:image/png;base64,{picture}">')
    return f'<div class="bn-keras-report">{"".join(parts)}</div>'


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "a data frame needs pandas, which is not installed: pip install 'bn_keras[frames]'"
        ) from error
    return pandas


def _runs(report: "Report") -> list[Row]:
    """A Row for each result, in their order: the study's ladder and views put runs together."""
    study = dataclasses.replace(report.plan.study, ladder=None, views={})
    return studies.rows(study, report.results)


def _varied(results: Sequence[RunResult]) -> list[str]:
    """The normalizer, and the settings in which runs differ; arm and seed have their own columns.

    The normalizer always, so that tables of several reports can be put below each other.
    """
    return [name for name in RUN_FIELDS if name not in ("arm", "seed")
            and (name == "normalizer" or len({getattr(run.config, name) for run in results}) > 1)]


def _setting(run: RunResult, name: str) -> Any:
    value = getattr(run.config, name)
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _value(value: Optional[float]) -> float:
    return math.nan if value is None else float(value)


def _lines(text: str, escape: Callable[[str], str]) -> str:
    """A cell whose lines are escaped one by one; control characters are spelt out."""
    return "<br>".join(escape(plain(line)) for line in text.split("\n"))


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", plain(text))


def _markdown_line(text: str) -> str:
    return BLOCK.sub(r"\1\\\2", _markdown(text.strip()))


def _markdown_findings(verdict: str) -> Iterator[str]:
    """A list of findings; what is said on a claim stands below its point."""
    for line in verdict.split("\n"):
        text = _markdown_line(line.strip().removeprefix("• "))
        yield f"  - {text}" if line.startswith("    ") else f"- {text}"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[_lines(cell, _markdown) for cell in line] for line in (headings, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def _latex_line(cells: Sequence[str]) -> str:
    line = " & ".join(_latex(cell) for cell in cells)
    # Behind the \\ of the line above, these would be an argument of it.
    return ("{}" if line.startswith(("[", "*")) else "") + line + r" \\"


def _latex(text: str) -> str:
    # Two hyphens would become a dash.
    return re.sub("-(?=-)", "-{}", plain(text).translate(LATEX))


def _html_paragraph(text: str) -> str:
    inside = "\n".join(html.escape(plain(line)) for line in text.split("\n"))
    return f'<p style="white-space: pre-wrap; max-width: 60em">{inside}</p>'


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        inside = "".join(
            f'<{tag} style="{CELL_STYLE}">{_lines(cell, html.escape)}</{tag}>'
            for cell in cells
        )
        return f"<tr>{inside}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (f'<table style="{TABLE_STYLE}"><thead>{line(headings, "th")}</thead>'
            f"<tbody>{body}</tbody></table>")
