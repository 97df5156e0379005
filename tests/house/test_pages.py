"""README and the pages of docs/ say what is so: links, names, commands, and code that runs."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from make import ROOT

import bn_keras
from bn_keras.commands import flags, train
from bn_keras.registry import COMMANDS, FINDINGS, UnknownName

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Code, and what it prints where the page says so.
PYTHON = re.compile(
    r"^```python\n(.*?)^```$(?:\n\nprints\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
MODEL = """
import keras
import numpy as np
x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
model, replica = (
    keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(),
        keras.layers.ReLU(), keras.layers.Dense(2),
    ]) for _ in range(2)
)
"""
DOCTOR = MODEL + """
x_train, x_validation = x[:6], x[6:]
y_train, y_validation = np.arange(6) % 2, np.arange(2)
"""
# A base inside of a model, as in fine-tuning, and an average of weights that is not compiled yet.
SURGERY = """
import keras
import numpy as np
from keras import layers
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(3, 2, (2000, 8)).astype("float32")
y = (x[:, 0] + x[:, 1] > x[:, 2] + 3).astype("int32")
x_val, y_val = x[1000:], y[1000:]
base = keras.Sequential([
    keras.Input((8,)), layers.Dense(16), layers.BatchNormalization(name="bn_1"), layers.ReLU(),
    layers.Dense(16), layers.BatchNormalization(name="bn_2"),
], name="base")
inputs = keras.Input((8,))
model = keras.Model(inputs, layers.Dense(2)(layers.ReLU()(base(inputs, training=False))))
def compiled(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.get(optimizer)
    optimizer.build(model.trainable_variables)  # before fit: else it traces its step twice
    model.compile(optimizer, loss, metrics=["accuracy"])
compiled(model, "adam")
model.fit(x, y, batch_size=50, epochs=1, verbose=0)
other = keras.models.clone_model(model)
other.set_weights(model.get_weights())
compiled(other, "adam")
other.fit(x, y, batch_size=20, verbose=0)
"""
# Page to what its code takes as given, and to what is made smaller in it.
GIVEN = {
    "README.md": (MODEL, {"seeds=6": "seeds=1", "steps=100": "steps=2", "[0.01, 0.1, 1.0]": "0.1"}),
    "compare.md": ("", {"seeds=6": "seeds=1", "steps=100": "steps=2", "seeds=7": "seeds=1",
                        "steps=50": "steps=2", "[0.01, 0.1, 1.0],": "[0.01, 0.1],"}),
    "callbacks.md": ("", {}),
    "conformance.md": ("", {}),
    "data.md": ("", {}),
    "doctor.md": (DOCTOR, {}),
    "extend.md": ("", {}),
    "fold.md": (MODEL, {}),
    "layer.md": (MODEL, {}),
    "ports.md": ("", {}),
    "report.md": ("", {}),
    "statistics.md": ("", {}),
    "surgery.md": (SURGERY, {
        "model.fit(x, y, valid": "compiled(model, keras.optimizers.SGD(0.1, use_ema=True))\n"
        "model.fit(x, y, verbose=0, valid",
    }),
}
# What they print comes out of training: its words count, and not its numbers. How much a callback
# looks at depends on the clock.
OF_TRAINING, OF_THE_CLOCK = ("surgery.md",), ("callbacks.md",)
NUMBER = re.compile(r"[-+]?\.?\d[\d.e+-]*")
SMALL_LIBRARIES = {"README.md": ("sklearn",), "compare.md": ("sklearn",), "extend.md": ("pandas",),
                   "report.md": ("pandas",)}
# What the pages call one's own.
MY_NET = """
def build(normalizer, input_shape, classes):
    import keras
    return keras.Sequential([keras.Input(input_shape), normalizer(), keras.layers.Dense(classes)])
"""


def text_of(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    prose = FENCE.sub("", text_of(page))
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
            for heading in headings}


def commands():
    """(page, arguments) of every command of bn-keras or train.py in README and docs."""
    found = []
    for page in PAGES:
        text = text_of(page)
        shown = [line for kind, block in FENCE.findall(text) if kind == "bash"
                 for line in block.splitlines()]
        shown += re.findall(r"`((?:python|bn-keras) [^`]*)`", FENCE.sub("", text))
        for line in shown:
            if "NAME" in line or "…" in line:
                continue  # a form, not a command
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"] and words[1:2] == ["train.py"]:
                found.append((page.name, ["train", *words[2:]]))
            elif words[:3] == ["python", "-m", "bn_keras"] or words[:1] == ["bn-keras"]:
                found.append((page.name, words[3 if words[0] == "python" else 1:]))
    return found


COMMAND_LINES = commands()


def test_the_readme_fits_two_screens():
    assert len(text_of(README).splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(FENCE.sub("", text_of(page))):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: no {path}"
        if anchor:
            known = anchors(target)
            assert anchor in known, f"{page.name}: {path} has no #{anchor}, but {sorted(known)}"


def test_every_page_is_in_the_site_and_in_the_index():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    site = set(re.findall(r"[ -]([a-z_]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE))
    index = {path for path, _ in LINK.findall(text_of(ROOT / "docs" / "index.md"))}
    assert len(pages) > 10 and site == pages
    assert pages - {"index.md"} <= index


def test_the_page_on_the_doctor_lists_every_finding():
    text = text_of(ROOT / "docs" / "doctor.md")
    rows = re.findall(r"^\| \[\w+\]\(findings/.*$", text, re.MULTILINE)
    assert sorted(rows) == [
        f"| [{name}](findings/{name}.md) | {told['title']} | {told['severity']} |"
        for name in FINDINGS.names() for told in [FINDINGS.properties(name)]
    ]


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: (\S+)$", text_of(ROOT / "docs" / "reference.md"), re.MULTILINE)
    assert len(shown) == len(set(shown)) > 40
    things = []
    for name in shown:
        try:
            things.append(importlib.import_module(name))
        except ImportError:
            home, _, attribute = name.rpartition(".")
            things.append(getattr(importlib.import_module(home), attribute))
    for name in set(bn_keras.__all__) - {"__version__"}:
        assert any(getattr(bn_keras, name) is thing for thing in things), name


@pytest.mark.parametrize(
    "arguments", [words for _, words in COMMAND_LINES],
    ids=[f"{page} {' '.join(words)}"[:60] for page, words in COMMAND_LINES],
)
def test_commands_are_understood(arguments, tmp_path, monkeypatch):
    assert len(COMMAND_LINES) > 30
    monkeypatch.chdir(tmp_path)
    for name in ("my_net.py", "my_data.py"):
        pathlib.Path(name).write_text(MY_NET)
    verb = arguments[:1]
    if verb == ["train"]:
        options = flags.parse(["train", *arguments[1:]])
        if options is not None:  # None is --help
            assert train._plan(options).runs
    elif not verb[0].startswith("-") and verb != ["VERB"]:
        assert COMMANDS.check(verb[0])


def test_a_misspelt_command_would_be_noticed():
    with pytest.raises(UnknownName, match="tarin"):
        COMMANDS.check("tarin")


def test_pages_with_code_are_known():
    assert {page.name for page in PAGES if "```python" in text_of(page)} == set(GIVEN)


# One page after the other in one process, which imports, draws and traces for the first time once.
IN_ONE_PROCESS = """
import contextlib, runpy, sys
import keras
for folder in sys.argv[1:]:
    keras.utils.clear_session()  # which counts the names of layers anew
    with contextlib.chdir(folder), open("printed", "w") as file, contextlib.redirect_stdout(file):
        runpy.run_path("page.py", run_name="__main__")
"""


def blocks_of(name):
    """The code of a page, and what it prints where the page says so."""
    return PYTHON.findall(text_of(next(page for page in PAGES if page.name == name)))


def script_of(name):
    """The code of a page as a script that marks where each block begins."""
    given, smaller = GIVEN[name]
    script = given + "\n".join(
        f"print('=== block {place} ===')\n{code}"
        for place, (code, _) in enumerate(blocks_of(name))
    )
    for large, small in smaller.items():
        assert large in script, f"{large} is no longer in {name}"
        script = script.replace(large, small)
    return script


def test_code_of_the_pages_calls_only_public_names_of_the_package():
    """In a process of its own a page finds no module that another page has imported."""
    for page in PAGES:
        used = set(re.findall(r"\bbn_keras\.(\w+)\b(?!.* import )", "\n".join(
            code for code, _ in PYTHON.findall(text_of(page)))))
        assert used <= set(bn_keras.__all__), page.name


@pytest.mark.slow
def test_code_of_the_pages_runs_and_prints_what_they_say(tmp_path):
    names = [name for name in GIVEN if all(
        importlib.util.find_spec(library) for library in SMALL_LIBRARIES.get(name, ())
    )]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.py").write_text(script_of(name), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, *names], cwd=tmp_path, timeout=600, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )
    for name in names:
        assert (tmp_path / name / "printed").exists(), f"{name} or before: {ended.stderr[-3000:]}"
        blocks = blocks_of(name)
        output = (tmp_path / name / "printed").read_text("utf-8")
        printed = re.split(r"=== block \d+ ===\n", output)[1:]
        assert blocks and len(printed) == len(blocks), f"{name}: {ended.stderr[-3000:]}"
        for (_, expected), received in zip(blocks, printed, strict=True):
            if name in OF_TRAINING:
                expected, received = (NUMBER.sub("#", text) for text in (expected, received))
            if expected and name not in OF_THE_CLOCK:
                assert received == expected, name
    assert not ended.returncode, ended.stderr[-3000:]
