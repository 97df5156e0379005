"""Tables and paragraphs at any width and in any encoding, and the tables of studies."""

import io

import pytest
from reports import row
from rich.console import Console

from bn_keras.registry import FILES, TABLES
from bn_keras.report.layout import Columns, Paragraph
from bn_keras.results import DIVERGED
from bn_keras.studies.bad_init_regression import BY_LAYER
from bn_keras.studies.pitfalls import PITFALLS


def printed(renderable, width=100, encoding="utf-8", color=False):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    system = "truecolor" if color else None
    console = Console(file=file, width=width, force_terminal=color, color_system=system)
    console.print(renderable)
    file.flush()
    return raw.getvalue().decode(encoding)


TABLE = Columns(
    ["arm", "runs", "validation accuracy", "test accuracy", "steps to 90 percent",
     "accuracy of single images", "seconds per run"],
    [["none, Glorot's dense layers", "0 of 6 learned\n[0, .46]\n6 stuck", ".101 [.096, .103]",
      ".102 [.097, .104]", "never", ".100", "3.2"],
     ["batch", "6 of 6 learned\n[.54, 1]", "learned: .967 [.965, .971]", ".966", "50 (6 of 6)",
      ".967", "4.1"]],
)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_a_table_drops_no_column_and_breaks_no_word_at_any_width(width):
    text = printed(TABLE, width)
    assert all(len(line) <= width for line in text.splitlines())
    words = text.split()
    for cell in (*TABLE.headings, *(cell for cells in TABLE.rows for cell in cells)):
        for word in cell.split():
            assert word in words, word
    for together in ("[.965, .971]", "6 of 6", "[.54, 1]"):
        assert together in text, text


def test_further_columns_go_on_below_with_the_first_one_again():
    lines = printed(TABLE, 60).splitlines()
    headings = [line for line in lines if line.startswith("arm ")]
    assert len(headings) > 1
    assert sum(line.startswith("batch ") for line in lines) == len(headings)
    assert sum(line.startswith("arm ") for line in printed(TABLE, 200).splitlines()) == 1


def test_a_word_that_no_terminal_can_hold_is_folded_and_not_lost():
    word = "x" * 90
    text = printed(Columns(["arm", "runs"], [[word, "6"]]), 40)
    assert text.count("x") == 90 and "6" in text


@pytest.mark.parametrize("renderable", [TABLE, Paragraph("• .96 – [.95, .97] ± 学")])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_its_own_characters(renderable, encoding):
    assert ".9" in printed(renderable, 80, encoding)


def test_brackets_in_a_cell_are_no_markup():
    text = printed(Columns(["arm"], [["csv:/tmp/[red]x[/red].csv"], ["[.96, .97]"]]), color=True)
    assert "[red]x[/red]" in text and "[.96, .97]" in text and "\x1b[31m" not in text


def test_a_verdict_has_its_colour():
    text = printed(Columns(["claim", "verdict"], [["a", "holds"], ["b", "does not hold"]]),
                   color=True)
    assert "\x1b[32mholds" in text and "\x1b[31mdoes not hold" in text


def test_a_paragraph_wraps_at_words_and_keeps_its_indent_and_its_paths():
    path = "/tmp/" + "folder/" * 12
    text = printed(Paragraph(f"{'word ' * 12}\n    {'inner ' * 12}\n{path}"), 40)
    lines = text.splitlines()
    assert all(line.startswith("    inner") for line in lines if "inner" in line)
    assert path in text.replace("\n", "") and max(map(len, lines[:-3])) <= 40


def test_the_table_of_layers_has_medians_and_figures_found_elsewhere():
    rows = [row("tanh none", seed, **{"start_std_layer_1": 0.3 + seed / 10,
                                      "start_std_layer_8": 5e-5}) for seed in range(3)]
    (headings, cells), = TABLES.get("by_layer")(rows, BY_LAYER)
    assert headings[:2] == ["layer (elsewhere)", "tanh, no BN: deviation at the start"]
    assert [line[:2] for line in cells] == [["1", ".400 (.33)"], ["8", "5e-5 (5e-5)"]]
    assert cells[0][2:] == ["–"] * 2 + ["– (.14)"] + ["–"] * 2
    assert TABLES.get("by_layer")([row("tanh none")], BY_LAYER) == []


def test_the_tables_of_pitfalls_tell_what_each_costs_and_the_remedy():
    correct = {f"pitfall/correct/{what}": 0.5 for what in ("whole", "16", "2", "1", "loss")}
    rows = [row("CNN", seed, **{**correct, "pitfall/correct/whole": 0.9 + seed / 100})
            for seed in range(3)]
    rows += [row("MLP, momentum .999", 0, **correct),
             row("MLP, never in training mode", 0, DIVERGED)]
    (headings, costs), (_, words) = TABLES.get("pitfalls")(rows, PITFALLS)
    assert headings[0] == "pitfall and net" and all(len(line) == len(headings) for line in costs)
    found = {line[0]: line[1:] for line in costs}
    assert found["correct inference: CNN"][0] == ".910"
    assert found["correct inference: elsewhere"][0] == ".983–.986"
    # A diverged run is told, not left out.
    assert found["never in training mode: MLP (1 of 1 diverged)"] == ["–"] * 5
    assert [line[0] for line in words][:2] == ["correct inference", "momentum .999, short run"]
    assert TABLES.get("pitfalls")([], PITFALLS) == []


def test_the_files_of_the_blog_are_those_of_the_first_seed():
    def curves(loss):
        return {"loss/train": [[10, loss], [20, 0.5]], "accuracy/train": [[10, 0.25], [20, 0.75]]}

    rows = [row("none", 0, curves=curves(2.5)), row("none", 1, curves=curves(9.0)),
            row("batch", 0, curves=curves(1.5)), row("batch, as written", 0)]
    assert FILES.get("loss_and_accuracy_pairs")(rows) == {
        "without_bn.txt": "2.5 0.25\n0.5 0.75\n", "with_bn.txt": "1.5 0.25\n0.5 0.75\n",
    }


@pytest.mark.parametrize("registry", [TABLES, FILES])
def test_tables_and_files_can_be_added_from_outside(registry):
    registry.register("mine")(lambda rows, data=None: [])
    try:
        assert registry.get("mine")([]) == [] and "mine" in registry.names()
    finally:
        del registry._registered["mine"]
