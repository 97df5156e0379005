"""A report as data frame, Markdown, LaTeX, HTML and picture, each read back by a second reader."""

import base64
import dataclasses
import html.parser
import io
import math
import re
import shutil
import subprocess
import sys

import pytest
import reports
from markdown_it import MarkdownIt
from matplotlib import _pylab_helpers
from PIL import Image
from rich.console import Console

from bn_keras.plan import make_plan
from bn_keras.report import exports, figures, report, sentences
from bn_keras.results import DIVERGED

HOSTILE = "a|b <i>*c*</i>_d_ \\[x](y) `e` ~~f~~ &amp; $g$ #1 --x {h} 50% ^i \"j\" 'k'"
ARMS = ("none", "batch")


def compared(**overrides):
    return report.make_report(*reports.compared(
        {"none": [0.11, None, 0.11], "batch": [0.96, 0.95, 0.97]}, **overrides
    ))


@pytest.fixture(scope="module")
def plain_report():
    return compared()


@pytest.fixture(scope="module")
def judged():
    """The report of a study with claims."""
    plan = make_plan("bn_and_dropout", {}, seeds=1)
    return report.make_report(plan, [reports.result(run, 0.9) for run in plan.runs])


def hostile(found):
    """The report with names and findings that every form would take for its own syntax."""
    named = {"none": HOSTILE, "batch": "[batch"}
    return dataclasses.replace(
        found,
        arms=[dataclasses.replace(arm, name=named[arm.name]) for arm in found.arms],
        rows=[dataclasses.replace(row, arm=named[row.arm]) for row in found.rows],
        verdict=f"{HOSTILE}\n1. {HOSTILE}\n# {HOSTILE}\n- {HOSTILE}\n• {HOSTILE}\n    {HOSTILE}",
        notes=[HOSTILE],
    )


class Reader(html.parser.HTMLParser):
    """Texts of the cells, paragraphs, list items and images of a page, and all of its tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.texts, self.tags, self.images = [], [], [], []
        self._row = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
            self._row = self.cells[-1]
        elif tag in ("p", "li"):
            self.texts.append("")
            self._row = self.texts
        elif tag == "br":
            self._row[-1] += "\n"
        elif tag == "img":
            self.images.append(dict(attributes))

    def handle_endtag(self, tag):
        if tag in ("td", "th", "p", "li"):
            self._row = None

    def handle_data(self, data):
        if self._row:
            self._row[-1] += data


def lines_of(found, headings):
    """The table of arms in a Reader."""
    at = found.cells.index(headings)
    return found.cells[at + 1:at + 3]


def test_a_frame_has_a_row_for_each_run(plain_report):
    frame = plain_report.frame()
    assert list(frame.columns[:5]) == ["arm", "seed", "status", "outcome", "normalizer"]
    assert frame[["arm", "seed", "status", "outcome"]].values.tolist() == [
        ["none", 0, "ok", "stuck"], ["none", 1, "diverged", "diverged"], ["none", 2, "ok", "stuck"],
        *(["batch", seed, "ok", "learned"] for seed in range(3)),
    ]
    assert frame["validation_accuracy"].tolist()[::2] == [0.11, 0.11, 0.95]
    assert math.isnan(frame["validation_accuracy"][1]), "a diverged run has no accuracy"
    assert frame["validation_accuracy"].dtype == frame["steps_to_90_percent"].dtype == "float64"
    grouped = frame.groupby("arm")["validation_accuracy"].max()
    assert grouped.to_dict() == {"none": 0.11, "batch": 0.97}


def test_a_frame_has_the_settings_that_differ_and_only_those(plain_report):
    study = make_plan("learning_rates", {}, seeds=1)
    found = report.make_report(study, [reports.result(run, 0.9) for run in study.runs])
    assert found.plan.study.ladder is None or len(found.rows) < len(study.runs)
    frame = found.frame()
    assert len(frame) == len(study.runs) == len(set(frame["arm"]))
    assert frame["learning_rate"].tolist() == [run.learning_rate for run in study.runs]
    assert "batch_size" not in frame and "measure" not in frame
    # Settings that hold several names are texts, by which a frame can be grouped.
    results = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, measure=("penalty",) * at))
        for at, run in enumerate(plain_report.results[:3])
    ]
    frame = dataclasses.replace(plain_report, results=results).frame()
    assert frame["measure"].tolist() == ["", "penalty", "penalty,penalty"]


def test_the_frame_of_a_ladder_has_its_runs_and_not_its_nets():
    plan = make_plan("mnist_cnn_rates", {}, seeds=1)
    assert plan.study.ladder is not None
    found = report.make_report(plan, [reports.result(run, 0.9) for run in plan.runs])
    assert len(found.rows) < len(plan.runs) == len(found.frame())


def test_curves_are_long_and_hold_every_point(plain_report):
    frame = plain_report.curves()
    assert list(frame.columns) == ["arm", "seed", "normalizer", "metric", "step", "value"]
    expected = [
        (run.config.arm_name, run.config.seed, metric, step, value)
        for run in plain_report.results for metric, points in run.curves.items()
        for step, value in points
    ]
    found = frame[["arm", "seed", "metric", "step", "value"]]
    assert list(found.itertuples(index=False, name=None)) == expected and len(expected) > 40
    assert frame["value"].dtype == "float64"
    run = dataclasses.replace(plain_report.results[0], curves={"loss/train": [[5, None]]})
    lone = dataclasses.replace(plain_report, results=[run]).curves()
    assert math.isnan(lone["value"][0]) and lone["normalizer"][0] == run.config.normalizer


def test_without_pandas_the_message_names_the_command(plain_report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for form in (plain_report.frame, plain_report.curves):
        with pytest.raises(ImportError, match=r"needs pandas.*pip install 'bn_keras\[frames\]'"):
            form()


def test_a_report_prints_as_on_a_terminal_and_shows_as_one_line(plain_report, judged):
    text = str(plain_report)
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(plain_report)
    assert text == re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert plain_report.verdict.splitlines()[0] in text
    assert repr(plain_report) == "<Report on comparison: 2 arms, 6 of 6 runs>"
    runs = len(judged.plan.runs)
    partly = dataclasses.replace(judged, results=judged.results[:1], arms=judged.arms[:1],
                                 plan=dataclasses.replace(judged.plan, quick=True))
    assert repr(partly) == f"<Report on bn_and_dropout (quick): 1 arm, 1 of {runs} runs>"


def read_markdown(text):
    """By a second implementation of the dialect; a broken table or list would not come out."""
    return Reader(MarkdownIt("gfm-like", {"linkify": False}).render(text))


@pytest.mark.parametrize("name", ["plain", "judged", "hostile"])
def test_markdown_gives_the_cells_and_findings_back(name, plain_report, judged):
    found = {"plain": plain_report, "judged": judged, "hostile": hostile(plain_report)}[name]
    read = read_markdown(found.to_markdown())
    headings, cells = sentences.table_of_arms(found)
    at = read.cells.index(headings)
    assert read.cells[at + 1:at + 1 + len(cells)] == cells
    claims = sentences.table_of_claims(found)[1] if found.judged else []
    assert read.cells[len(read.cells) - len(claims):] == claims or not claims
    assert len(read.cells) == 1 + len(cells) + (1 + len(claims)) * bool(claims)
    said = [line.strip().removeprefix("• ") for line in found.verdict.split("\n")]
    assert [text.strip() for text in read.texts] == [*said, *found.notes]
    assert set(read.tags) <= {"ul", "li", "p", "table", "thead", "tbody", "tr", "th", "td", "br"}


TOKEN = re.compile(
    r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|"
    r"textasciigrave|textendash|textemdash|ldots|textbullet)\{\}|\\([{}$&#%_])|(\{''\})|"
    r"\$(\\[a-z]+|-|\^2)\$|(-\{\})|(\{\})|([^\\{}$&#%_^~<>|\"`])"
)
WORDS = {
    "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<",
    "textgreater": ">", "textbar": "|", "textasciigrave": "`", "textendash": "–",
    "textemdash": "—", "ldots": "…", "textbullet": "•",
}
SYMBOLS = {r"\le": "≤", r"\ge": "≥", r"\to": "→", r"\times": "×", r"\pm": "±", r"\cdot": "·",
           "-": "−", "^2": "²"}


def read_latex(cell):
    """The text that LaTeX sets; anything special that is not escaped is an error here as there."""
    text, at = "", 0
    assert "--" not in cell
    while at < len(cell):
        token = TOKEN.match(cell, at)
        assert token, f"{cell[at:]!r} of {cell!r}"
        word, escaped, quotes, symbol, hyphen, nothing, character = token.groups()
        text += (WORDS.get(word) or escaped or quotes and '"' or SYMBOLS.get(symbol)
                 or hyphen and "-" or character or "")
        at = token.end()
    return text


@pytest.mark.parametrize("name", ["plain", "judged", "hostile"])
def test_latex_gives_the_cells_back(name, plain_report, judged):
    found = {"plain": plain_report, "judged": judged, "hostile": hostile(plain_report)}[name]
    head, *lines, last, end = found.to_latex().splitlines()
    headings, cells = sentences.table_of_arms(found)
    assert head == r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}"
    assert (last, end) == (r"\bottomrule", r"\end{tabular}")
    assert (lines[0], lines[2]) == (r"\toprule", r"\midrule")
    assert not any(line.startswith(("[", "*")) for line in lines), "an argument of the \\\\ above"
    read = [[read_latex(cell) for cell in re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))]
            for line in lines if line.endswith(r" \\")]
    folded = any("\n" in cell for row in cells for cell in row)
    assert read[0] == headings and folded == (r"\addlinespace" in lines) == (name != "judged")
    groups = "\n".join(lines[3:]).split("\\addlinespace\n") if folded else lines[3:]
    assert len(groups) == len(cells)
    at = 1
    for group, row in zip(groups, cells):
        height = len(group.strip().splitlines())
        columns = zip(*read[at:at + height])
        assert ["\n".join(column).rstrip("\n") for column in columns] == row
        at += height


def test_every_special_character_is_escaped_for_latex_and_hyphens_stay_hyphens():
    special = "\\{}$&#%_^~<>|`\"−≤≥→×±²·…•–—---"
    assert read_latex(exports._latex(special)) == special


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_sets_the_table(plain_report, tmp_path):
    body = hostile(plain_report).to_latex()
    (tmp_path / "table.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{body}\\end{{document}}\n", encoding="utf-8",
    )
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("name", ["plain", "judged", "hostile"])
def test_a_notebook_shows_cells_findings_and_picture(name, plain_report, judged, monkeypatch):
    found = {"plain": plain_report, "judged": judged, "hostile": hostile(plain_report)}[name]
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "png")
    monkeypatch.setattr(figures, "compose", lambda *_: None)
    monkeypatch.setattr(figures, "png", lambda _: pixel.getvalue())
    read = Reader(found._repr_html_())
    headings, cells = sentences.table_of_arms(found)
    at = read.cells.index(headings)
    assert read.cells[at + 1:at + 1 + len(cells)] == cells
    assert read.texts == [found.verdict, *found.notes]
    assert set(read.tags) <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "br",
                              "details", "summary", "img"}
    image, = read.images
    assert found.plan.study.question in image["alt"]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == pixel.getvalue()


def test_html_takes_the_colours_of_the_notebook(plain_report, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda _: b"")
    monkeypatch.setattr(figures, "compose", lambda *_: None)
    text = plain_report._repr_html_()
    assert set(re.findall(r"(?:color|background): *([a-z#0-9]+)", text)) == {
        "inherit", "transparent"
    }
    bare = dataclasses.replace(plain_report.plan.study, figures=())
    found = dataclasses.replace(plain_report, plan=dataclasses.replace(
        plain_report.plan, study=bare), notes=())
    assert "<img" not in found._repr_html_() and "<details" not in found._repr_html_()


@pytest.mark.slow
def test_a_figure_is_not_known_to_pyplot_and_shows_itself_in_a_notebook(plain_report):
    before = dict(_pylab_helpers.Gcf.figs)
    figure = plain_report.figure()
    assert _pylab_helpers.Gcf.figs == before
    assert len(figure.axes) == len(plain_report.plan.study.figures)
    shown = Image.open(io.BytesIO(figure._repr_png_()))
    assert shown.format == "PNG" and shown.size[0] > 500


@pytest.mark.slow
def test_a_notebook_shows_a_figure_once(plain_report):
    formatters = pytest.importorskip("IPython.core.formatters")
    bundle, _ = formatters.DisplayFormatter().format(plain_report.figure())
    assert {kind for kind in bundle if kind.startswith("image/")} == {"image/png"}


@pytest.mark.slow
@pytest.mark.parametrize("kind, start", [
    ("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF"),
])
def test_a_picture_is_saved_by_its_suffix_and_twice_the_same(kind, start, plain_report, tmp_path):
    path = tmp_path / "new folder" / f"picture.{kind}"
    plain_report.save_picture(path)
    first = path.read_bytes()
    plain_report.save_picture(str(path))
    assert first.startswith(start) and first == path.read_bytes()
    assert [one.name for one in path.parent.iterdir()] == [path.name], "a scratch file was left"


@pytest.mark.parametrize("name", ["picture", "picture.jpg", "png"])
def test_a_picture_of_another_kind_is_refused(name, plain_report, tmp_path):
    with pytest.raises(ValueError, match=f"received '.*{name}'; expected .*png, .svg, .pdf"):
        plain_report.save_picture(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_picture_of_a_work_directory_is_that_of_the_report(plain_report):
    names = [f"outcomes:{plain_report.plan.study.compared}" if name == "outcomes" else name
             for name in plain_report.plan.study.figures]
    written = figures.picture(plain_report.rows, names, report._title(plain_report.plan))
    assert written == figures.png(plain_report.figure())


def test_a_diverged_row_says_so_everywhere(plain_report):
    for text in (plain_report.to_markdown(), plain_report.to_latex(), str(plain_report)):
        assert DIVERGED in text
