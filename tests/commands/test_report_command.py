"""`bn-keras report` on whole, damaged, foreign and hostile work directories."""

import json
import pathlib
import shutil
import sys

import pytest
import shell

from bn_keras import experiment
from bn_keras.__main__ import main
from bn_keras.plan import make_plan
from bn_keras.report import report
from bn_keras.results import DIVERGED

WRONG = (None, True, -1, 10**400, 1e308, "x", "\ud800", "\x1b[31m", [], {}, [[1]], {"a": {}},
         {"\ud800\x1b[1m$[red]": 1.5}, {"x": [[0, 1e308], [5, -1e308]]}, {"accuracy/train": []})
BROKEN = (b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000,
          b"9" * 5000, b"NaN", "folder", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shell.finished(tmp_path_factory.mktemp("report"))


@pytest.fixture
def without_pictures(monkeypatch):
    """And as in a process of its own, which has not loaded TensorFlow."""
    monkeypatch.setattr(report, "_write_pictures", lambda *_: None)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


@pytest.mark.slow
def test_report_prints_and_draws_a_work_directory_again(folder, capsys):
    assert main(["report", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "At learning rate 0.05 (adam, 20 steps)" in output and "missing" not in output
    assert str(folder / "picture.png") in output
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "results.json").read_text())
    assert [(run["arm"], run["seed"]) for run in written["rows"]] == [
        ("none", 0), ("none", 1), ("batch", 0), ("batch", 1)
    ]


@pytest.mark.parametrize(
    "arguments, expected",
    [([], "received nothing; expected one WORK_DIR"), (["a", "b"], "received a b; expected one"),
     (["--hlep"], "received --hlep; expected one WORK_DIR"),
     (["/nonexistent"], "/nonexistent: no work directory of this version's train command")],
)
def test_what_is_no_work_directory_gets_one_line(arguments, expected, capsys):
    assert main(["report", *arguments]) == 2
    errors = capsys.readouterr().err
    assert expected in errors and errors.count("\n") == 1


def test_a_folder_of_an_older_version_gets_one_sentence_and_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "plan.json").write_text('[{"model": "mnist_cnn", "normalizer": "batch"}]')
    (tmp_path / "study.json").write_text('{"name": "pitfalls"}')
    before = sorted(tmp_path.iterdir())
    assert main(["report", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors == (
        f"bn-keras report: {tmp_path}: no work directory of this version's train command (the "
        "plan has other parts than study, quick, numbers, axes, runs)\n"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_a_study_that_no_imported_module_registers_gets_the_remedy(tmp_path, capsys):
    (tmp_path / "plan.json").write_text(
        json.dumps({**json.loads(make_plan("comparison", {}).to_json()), "study": "own_study"})
    )
    assert main(["report", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "unknown study 'own_study'; known: " in errors and errors.count("\n") == 1
    assert "once its module is imported: call bn_keras.experiment.report(Store(folder))" in errors


def test_missing_and_unreadable_runs_are_named(folder, without_pictures, monkeypatch, capsys):
    runs = folder / "runs" / "batch"
    read = pathlib.Path.read_text

    def forbidden(path, **settings):
        if path == folder / "runs" / "none" / "seed_0.json":
            raise PermissionError(13, "Permission denied")
        return read(path, **settings)

    with shell.damaged(runs / "seed_0.json", None), shell.damaged(runs / "seed_1.json", b"{"):
        monkeypatch.setattr(pathlib.Path, "read_text", forbidden)
        assert main(["report", str(folder)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 runs are missing:" in output
    for told in ("none, seed 0 (", "Permission denied", "batch, seed 0 (not finished)",
                 "batch, seed 1 ("):
        assert told in output
    missing = json.loads((folder / "results.json").read_text())["missing"]
    assert list(missing) == ["none, seed 0", "batch, seed 0", "batch, seed 1"]
    assert "seed_1.json cannot be read: " in missing["batch, seed 1"]


def test_a_report_that_cannot_be_written_is_one_line_and_status_1(
    folder, without_pictures, capsys
):
    (folder / "results.csv").unlink(missing_ok=True)
    (folder / "results.csv" / "inside").mkdir(parents=True)
    assert main(["report", str(folder)]) == 1
    shutil.rmtree(folder / "results.csv")
    errors = capsys.readouterr().err
    assert "bn-keras report: the report cannot be written: [Errno 21] Is a directory" in errors
    assert errors.count("\n") == 1


def test_no_readable_run_is_one_line_with_the_reasons(tmp_path, capsys):
    folder = shell.finished(tmp_path, seeds=1)
    for path in folder.rglob("seed_0.json"):
        path.write_text("{")
    assert main(["report", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert "not one of its 2 runs can be reported (" in errors and errors.count("\n") == 1


def changes(content, values):
    """Texts of a JSON object with a field missing or replaced, and what is no JSON at all."""
    yield from BROKEN
    yield from changed_fields(content, values, 1)


def changed_fields(content, values, every):
    """The object with each field missing, and replaced by each or every so-manieth of the values.

    Fields take turns, so that another field of its kind gets a value that one does not get.
    """
    for place, name in enumerate(content):
        yield {key: content[key] for key in content if key != name}
        yield from ({**content, name: value} for value in values[place % every::every])


def survives(work_dir, name, content, capsys):
    """Reports with a changed file; whatever it is, that ends with a report or in one line."""
    if isinstance(content, (dict, list)):
        content = json.dumps(content).encode()
    with shell.damaged(work_dir / name, content):
        status = main(["report", str(work_dir)])
    output, errors = capsys.readouterr()
    assert (status == 0 and not errors) or (status == 2 and errors.count("\n") == 1), content
    assert all(character.isprintable() or character == "\n" for character in output + errors)
    return status


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs/batch/seed_0.json", "plan.json"])
def test_no_damage_of_a_file_breaks_the_report(name, tmp_path, without_pictures, capsys):
    work_dir = shell.finished(tmp_path)
    content = json.loads((work_dir / name).read_text())
    found = [survives(work_dir, name, changed, capsys) for changed in changes(content, WRONG[:4])]
    # A plan may be the quick one of numbers as well: two changes damage nothing.
    assert len(found) > 25 and found.count(2 if name == "plan.json" else 0) >= len(found) - 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs/batch/seed_0.json", "plan.json"])
def test_no_damage_of_any_setting_breaks_the_report(name, tmp_path, without_pictures, capsys):
    work_dir = shell.finished(tmp_path)
    content = json.loads((work_dir / name).read_text())
    first = content["config"] if "config" in content else content["runs"][0]
    for settings in changed_fields(first, WRONG, 3):
        whole = {"config": settings} if "config" in content else {
            "runs": [settings, *content["runs"][1:]]
        }
        survives(work_dir, name, {**content, **whole}, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "curves",
    [{}, {"accuracy/validation": []}, {"accuracy/validation": [[0, None]]},
     {"accuracy/validation": [[5, 0.1], [5, 0.2], [1, 0.3], [2**31, 1]]},
     {"loss/train": [[0, 1e308], [5, -1e308]], "accuracy/train": [[0, 1e-320]]},
     {"\ud800\x1b[1m$[red]": [[0, 1]]}],
)
def test_pictures_are_drawn_of_any_curve(curves, tmp_path, capsys):
    work_dir = shell.finished(tmp_path, seeds=1)
    name = "runs/batch/seed_0.json"
    content = {**json.loads((work_dir / name).read_text()), "curves": curves}
    assert survives(work_dir, name, content, capsys) == 0


@pytest.mark.slow
def test_names_that_steer_terminals_or_pictures_are_printed_as_they_are(tmp_path, capsys):
    """Escape codes of a CSV header, markup and mathematics in paths: from the data to a picture."""
    folder = tmp_path / "[red]a b$x$^{\x1b[31m"
    folder.mkdir()
    csv = shell.write_csv(folder / "$\\frac$[bold].csv", header="label" + ",\x1b[2J$[red]" * 16)
    plan = shell.plan(csv, seeds=1)
    work = experiment.prepare(plan, folder / "runs")
    for config in plan.runs:
        status = DIVERGED if config.normalizer == "none" else "ok"
        work.store.add(shell.result(config, work.load(config).digest(), status))
    assert main(["report", str(work.store.work_dir)]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output and "[red]a b$x$^{\\x1b[31m" in output
    assert "1 diverged" in output
    assert "tensorboard --logdir '" in output, "a folder with a space is quoted"
    for link in ("?runColorGroup=regex%3A(%5E%5B%5E%2F%5D%2B)&smoothing=0#timeseries\n",
                 "#custom_scalars&regexInput=over_seeds&_smoothingWeight=0\n"):
        assert f"http://localhost:6006/{link}" in output
    assert (work.store.work_dir / "picture.png").is_file()
