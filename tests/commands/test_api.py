"""`bn_keras.run` and `bn_keras.load`, with made-up results at once and slowly with real ones."""

import doctest
import json
import subprocess
import sys

import pytest
import shell
from processes import ENVIRONMENT

import bn_keras
from bn_keras import api, experiment
from bn_keras.config import ConfigError
from bn_keras.data import DataError
from bn_keras.registry import UnknownName


@pytest.fixture
def csv(tmp_path):
    return shell.write_csv(tmp_path / "data.csv")


def call(csv, study="comparison", **changes):
    settings = {**shell.SETTINGS, "dataset": f"csv:{csv}", "seeds": 2, "progress": False,
                "logdir": csv.parent / "runs", **changes}
    return bn_keras.run(study, **settings)


def ends(report):
    return [(row.arm, row.seed, row.status) for row in report.rows]


@pytest.mark.slow
def test_run_trains_stores_and_reports_and_prints_nothing_unless_asked(csv, trained, capsys):
    report = call(csv)
    assert ends(report) == [
        ("none", 0, "ok"), ("none", 1, "diverged"), ("batch", 0, "ok"), ("batch", 1, "ok")
    ]
    work_dir, = (csv.parent / "runs").iterdir()
    assert (work_dir / "results.json").is_file() and not any(capsys.readouterr())
    trained.last = None
    assert ends(call(csv, progress=True)) == ends(report) and trained.last is None
    assert "4 of 4 runs are stored in" in capsys.readouterr().out


@pytest.mark.slow
def test_progress_is_a_line_for_each_run(csv, trained, capsys):
    call(csv, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert "4 to train, 2 at a time; loading TensorFlow" in lines
    assert "none/seed_1: diverged after 20 steps, validation accuracy –" in lines


def test_the_command_and_the_call_share_a_folder(csv, trained, monkeypatch, capsys):
    from bn_keras.__main__ import main

    monkeypatch.chdir(csv.parent)
    call(csv, dataset="csv:data.csv")
    assert main(["train", *shell.flags(csv, csv.parent / "runs")]) == 0
    assert "4 of 4 runs are stored" in capsys.readouterr().out


@pytest.mark.slow
def test_arms_of_the_comparison_are_normalizers_and_of_a_study_its_own(csv, trained):
    assert [arm.name for arm in call(csv, arms=["layer", "none"]).arms] == ["none", "layer"]
    found = bn_keras.run("bn_and_dropout", arms=["BN"], seeds=1, progress=False,
                         logdir=csv.parent / "more", train_size=64, batch_size=8)
    assert {run.arm for run in found.plan.runs} == {"BN"}


@pytest.mark.parametrize("changes, error, message", [
    ({"study": "comparisn"}, UnknownName, "unknown study 'comparisn'; .*did you mean 'comparison'"),
    ({"lerning_rate": 1.0}, ConfigError, "unknown setting 'lerning_rate' .did you mean 'learning"),
    ({"learning_rate": "1"}, ConfigError, "learning_rate='1': expected a number greater than 0"),
    ({"normalizer": "group"}, ConfigError, r"'group': expected arms .* arms=\['none', 'group'\]"),
    ({"arms": "none"}, ConfigError, "'none': expected a sequence of names"),
    ({"arms": ["nonne"]}, UnknownName, "unknown normalizer 'nonne'"),
    ({"seed": 3}, ConfigError, "seed=3: expected seeds and first_seed"),
    ({"seeds": 0}, ConfigError, "seeds=0: expected a whole number from 1"),
    ({"first_seed": "0"}, ConfigError, "first_seed='0': expected a whole number from 0"),
    ({"workers": 0}, ConfigError, "workers=0: expected a whole number from 1"),
    ({"quick": 1}, ConfigError, "quick=1: expected True or False"),
    ({"dataset": 3}, ConfigError, "dataset=3: expected a text"),
    ({"dataset": "mnits"}, UnknownName, "unknown dataset 'mnits'"),
    ({"dataset": "csv:/nonexistent"}, DataError, "/nonexistent"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_mistakes_get_the_message_of_the_command(changes, error, message, csv, trained):
    with pytest.raises(error, match=message):
        call(csv, **changes)
    assert not (csv.parent / "runs").exists()


def test_ctrl_c_keeps_what_is_done_and_reaches_the_caller(csv, trained, monkeypatch, capsys):
    train = experiment.train

    def interrupted(*arguments):
        for number, result in enumerate(train(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "train", interrupted)
        call(csv, progress=True)
    assert "stopped; finished runs are kept in" in capsys.readouterr().out
    work_dir, = (csv.parent / "runs").iterdir()
    kept = list(work_dir.rglob("seed_*.json"))
    assert kept and (work_dir / "results.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    assert len(ends(call(csv))) == 4
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.slow
def test_load_reads_a_work_directory_and_writes_nothing(tmp_path):
    folder = shell.finished(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (folder / "runs/batch/seed_1.json").rename(tmp_path / "elsewhere")
    report = bn_keras.load(str(folder))
    (tmp_path / "elsewhere").rename(folder / "runs/batch/seed_1.json")
    assert [row[:2] for row in ends(report)] == [("none", 0), ("none", 1), ("batch", 0)]
    assert report.missing == {"batch, seed 1": "not finished"}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")}.keys() == before.keys()
    written = experiment.report(experiment.Store(folder))
    assert json.loads(bn_keras.load(folder).to_json()) == json.loads(written.to_json())


@pytest.mark.parametrize("place", ["no folder", "an empty folder"])
def test_load_refuses_what_is_no_work_directory(place, tmp_path):
    path = tmp_path / "nothing" if place == "no folder" else tmp_path
    with pytest.raises(ValueError, match=f"{path}: no work directory of this version's"):
        bn_keras.load(path)


@pytest.mark.slow
def test_load_and_the_forms_of_a_report_need_no_tensorflow(tmp_path):
    folder = shell.finished(tmp_path, seeds=1)
    code = (
        "import sys, bn_keras\n"
        "report = bn_keras.load(sys.argv[1])\n"
        "str(report), report.to_markdown(), report.to_latex(), report.to_json()\n"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib', 'pandas')\n"
        "       if name in sys.modules])\n"
        "report.frame(), report.curves(), report._repr_html_()\n"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib.pyplot')\n"
        "       if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True,
                          text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stdout + done.stderr


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(api)
    assert (failed, tried) == (0, 4)


@pytest.mark.slow
def test_a_notebook_gets_lines_of_progress_a_report_and_one_picture(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    cells = [
        "import bn_keras\nreport = bn_keras.run('comparison', seeds=1, steps=2, model='ioffe_mlp', "
        "batch_size=8, train_size=64, validation_size=32, test_size=32, measure=())\nreport",
        "report.figure()",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}},
        coalesce_streams=True,
    ).execute(env={**ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "3"})
    first, second = [cell.outputs for cell in notebook.cells]
    lines = "".join(one.text for one in first if one.get("name") == "stdout").splitlines()
    assert len(lines) == 3 and lines[1].startswith("none/seed_0: ok after 2 steps"), lines
    result = first[-1]
    assert result.output_type == "execute_result"
    assert result.data["text/plain"] == "<Report on comparison: 2 arms, 2 of 2 runs>"
    assert result.data["text/html"].startswith('<div class="bn-keras-report">')
    shown, = second
    assert {"image/png", "text/plain"} == set(shown.data)
