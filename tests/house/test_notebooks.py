"""Every notebook runs and prints what is stored in it."""

import pathlib
import re
import runpy
import subprocess
import sys

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from make import ROOT

import bn_keras

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)

VALUE = r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
NUMBER = re.compile(rf"{VALUE}(?!\w)")
TIME = re.compile(rf"{VALUE} ?(?:µs|ms|s|min|h|seconds|minutes)\b")
NOT_CLAIMED = re.compile(r"section \d\.\d|https?:\S+")
ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
# What makes a kernel as good as new, but for the modules that are loaded.
ANEW = "%reset -f\nimport keras\nkeras.utils.clear_session()\ndel keras"
NOISE = 1e-8  # numbers below are rounding, or the error of finite differences
# A cell's tag: how far its decimal numbers may be off, `within:0.1` or `within:50%`. Training adds
# up what rounds differently on another processor.
WITHIN = re.compile(r"within:(\d*\.\d+)|within:(\d+)%")


def code_cells(path_or_notebook):
    notebook = path_or_notebook
    if isinstance(notebook, pathlib.Path):
        notebook = nbformat.read(notebook, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    """The text of a cell's outputs, a picture's stand-in included."""
    return "\n".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in cell.outputs
    )


def tolerances(cell):
    """What a cell's tags allow its numbers beyond the last digit: (absolute, relative)."""
    absolute, relative = 0.0, 0.0
    for tag in cell.metadata.get("tags", ()):
        number, percent = WITHIN.fullmatch(tag).groups()
        absolute, relative = float(number or 0), float(percent or 0) / 100
    return absolute, relative


def same_text(stored, fresh, tolerances=(0.0, 0.0)):
    """Whether two outputs say the same, but for times, addresses and what numbers may be off."""
    stored, fresh = (ADDRESS.sub("ADDRESS", TIME.sub("TIME", text)) for text in (stored, fresh))
    words = [" ".join(NUMBER.sub(" # ", text).split()) for text in (stored, fresh)]
    numbers = [NUMBER.findall(text) for text in (stored, fresh)]
    return words[0] == words[1] and all(
        same_number(a, b, *tolerances) for a, b in zip(*numbers, strict=True)
    )


def same_number(stored, fresh, absolute=0.0, relative=0.0):
    """At most one apart in the last printed decimal, and 1 %, or as far as a cell's tag allows.

    Whole numbers have to be equal.
    """
    a, b = float(stored), float(fresh)
    size = max(abs(a), abs(b))
    if a == b or size < NOISE:
        return True
    unit = max(last_digit(stored), last_digit(fresh))
    allowed = max(min(1.001 * unit, 0.01 * size), absolute + 1e-9, relative * size)
    return unit > 0 and abs(a - b) <= allowed


def last_digit(number):
    """What one step in a number's last printed digit is worth; 0 for a whole number."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def unprinted(prose, cells):
    """Decimal numbers in a text that stand in no code and no output."""
    text = "\n".join(f"{cell.source}\n{printed(cell)}" for cell in cells)
    shown = [abs(float(number)) for number in NUMBER.findall(text)]
    claimed = re.findall(r"(?<![\w.])\d*\.\d+(?!\w|\.\d)", NOT_CLAIMED.sub("", prose))
    return [
        number for number in claimed
        if not any(abs(float(number) - n) <= 0.5001 * last_digit(number) for n in shown)
    ]


def test_there_are_notebooks():
    assert PATHS


@every_notebook
def test_the_stored_outputs_are_whole(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert "execution" not in cell.metadata, cell.id
        assert cell.outputs or "print(" not in cell.source, f"{cell.id} prints nothing"
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"
    assert str(ROOT) not in path.read_text(encoding="utf-8")


@every_notebook
def test_the_prose_names_only_numbers_that_a_cell_shows(path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert unprinted(prose, code_cells(path)) == []


def test_the_page_by_hand_names_only_numbers_of_its_notebook():
    page = (ROOT / "docs/batch_norm_by_hand.md").read_text(encoding="utf-8")
    assert unprinted(page, code_cells(ROOT / "notebooks/b_batch_norm_by_hand.ipynb")) == []


@pytest.mark.slow
def test_the_code_has_the_style_of_the_house(tmp_path):
    for path in PATHS:
        source = "\n\n\n".join(cell.source for cell in code_cells(path)) + "\n"
        (tmp_path / f"{path.stem}.py").write_text(source, encoding="utf-8")
    for command in (["flake8"], ["isort", "--check-only", "--diff", f"--settings-path={ROOT}"]):
        result = subprocess.run(
            [sys.executable, "-m", *command, str(tmp_path)], capture_output=True, text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stdout + result.stderr


@every_notebook
def test_a_lesson_has_questions_with_answers_to_unfold_and_ends_with_something_to_change(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert prose.count("<details><summary>") == prose.count("</details>") >= 2
    assert cells[-1].cell_type == "markdown" and "## Change this and see" in cells[-1].source
    # Hidden figures teach nothing: what a reader may compare is printed as numbers.
    source = "\n".join(cell.source for cell in code_cells(path))
    assert not re.search(r"\bmain\(|%%capture|redirect_stdout|subprocess", source)


@every_notebook
def test_only_public_names_of_the_package_are_used(path):
    """In a kernel of its own a notebook finds no module that another one has loaded."""
    code = "\n".join(cell.source for cell in code_cells(path))
    assert set(re.findall(r"\bbn_keras\.(\w+)(?!.* import )", code)) <= set(bn_keras.__all__)


@pytest.fixture(scope="module")
def kernel():
    """One for all: it loads TensorFlow once."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@every_notebook
def test_a_kernel_prints_what_is_stored(path, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(ANEW))
    nbformat.write(notebook, tmp_path / path.name)
    execute = runpy.run_path(str(ROOT / "notebooks/refresh.py"))["execute"]
    cells = code_cells(execute(tmp_path / path.name, kernel))[1:]
    for stored, fresh in zip(code_cells(path), cells, strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (stored, fresh)]
        assert kinds[0] == kinds[1], f"{stored.id}: {printed(fresh)}"
        assert same_text(printed(stored), printed(fresh), tolerances(stored)), (
            f"{stored.id} has stored:\n{printed(stored)}\nbut prints:\n{printed(fresh)}"
        )


@pytest.mark.slow
def test_an_error_in_a_cell_is_raised(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="a")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    execute = runpy.run_path(str(ROOT / "notebooks/refresh.py"))["execute"]
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(tmp_path / "broken.ipynb")


@pytest.mark.parametrize(
    "stored, fresh, same",
    [
        ("error 0.8988", "error 0.8989", True),
        ("error 0.8988", "error 0.8990", False),
        ("error 0.5", "error 0.6", False),
        ("error 0.8988", "mistake 0.8988", False),
        ("differ by 0e+00", "differ by 4e-16", True),
        ("differ by 0e+00", "differ by 4e-06", False),
        ("[1. 2.]", "[ 1.  2.]", True),
        ("[1. 2.]", "[1. 3.]", False),
        ("[1. 2.]", "[1. 2. 2.]", False),
        ("3 of 200", "4 of 200", False),
        ("took 3.1 s for 5 runs", "took 8 s for 5 runs", True),
        ("took 3.1 s for 5 runs", "took 8 s for 6 runs", False),
        ("<Axes at 0x7f00>", "<Axes at 0x8f01>", True),
    ],
)
def test_what_counts_as_the_same_output(stored, fresh, same):
    assert same_text(stored, fresh) == same


@pytest.mark.parametrize(
    "tag, stored, fresh, same",
    [
        ("within:0.1", "accuracy 0.95", "accuracy 0.87", True),
        ("within:0.1", "accuracy 0.95", "accuracy 0.84", False),
        ("within:0.1", "3 seeds at 0.95", "2 seeds at 0.95", False),
        ("within:50%", "deviation 1e-05", "deviation 2e-05", True),
        ("within:50%", "deviation 1e-05", "deviation 3e-05", False),
        ("within:50%", "deviation 0.0", "deviation 0.1", False),
    ],
)
def test_a_tag_lets_the_numbers_of_a_trained_net_be_off(tag, stored, fresh, same):
    cell = nbformat.v4.new_code_cell("print(x)", metadata={"tags": [tag]})
    assert same_text(stored, fresh, tolerances(cell)) == same


def test_a_number_that_no_cell_shows_is_found():
    cell = nbformat.v4.new_code_cell("print(x)")
    cell.outputs = [nbformat.v4.new_output("stream", text="accuracy 0.8988")]
    assert unprinted("accuracy .90, .899 and 0.8988 (section 3.2)", [cell]) == []
    assert unprinted("accuracy 0.91", [cell]) == ["0.91"]
