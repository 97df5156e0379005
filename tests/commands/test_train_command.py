"""`train` from flags to report: at once with results that are made up, and slowly in processes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from make import ROOT
from processes import ENVIRONMENT, Program
from shell import flags, write_csv

from bn_keras import experiment
from bn_keras.__main__ import main
from bn_keras.commands.console import make_console
from bn_keras.commands.report import show
from bn_keras.results import Store

TRAIN = ROOT / "train.py"


@pytest.fixture
def csv(tmp_path):
    return write_csv(tmp_path / "data.csv")


def in_process(csv, capsys, *more, **changes):
    """(status, output, errors) of the small comparison."""
    status = main(["train", *flags(csv, csv.parent / "runs", **changes), *more])
    return (status, *capsys.readouterr())


def work_dir(folder):
    (path,) = folder.iterdir()
    return path


def test_each_run_of_a_stack_gets_its_own_line_with_its_own_outcome(csv, trained, capsys):
    status, output, errors = in_process(csv, capsys)
    assert (status, errors) == (0, "")
    assert {len(stack) for stack in trained.last.stacks} == {2}
    lines = output.splitlines()
    for line in ("none/seed_0: ok after 20 steps, validation accuracy 0.400",
                 "none/seed_1: diverged after 20 steps, validation accuracy –",
                 "batch/seed_0: ok after 20 steps, validation accuracy 0.900",
                 "batch/seed_1: ok after 20 steps, validation accuracy 0.900"):
        assert lines.count(line) == 1
    assert "4 to train, 2 at a time; loading TensorFlow" in lines
    assert "1 diverged" in output


@pytest.mark.slow
def test_the_same_command_trains_nothing_and_changed_data_everything(csv, trained, capsys):
    in_process(csv, capsys)
    trained.last = None
    status, output, _ = in_process(csv, capsys)
    assert status == 0 and "4 of 4 runs are stored" in output and trained.last is None
    _, output, _ = in_process(csv, capsys, seeds=3)
    assert "4 of 6 runs are stored" in output and "2 to train" in output
    write_csv(csv, value=7)
    _, output, _ = in_process(csv, capsys)
    assert "4 to train" in output and "of 4 runs are stored" not in output
    assert "6 stored runs were trained on other data and are dropped" in output


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [("--is_bn", "--nois_bn"), ("--nois_bn", "--is_bn")])
def test_one_arm_after_the_other_makes_one_report(first, second, csv, trained, capsys):
    in_process(csv, capsys, first)
    status, output, _ = in_process(csv, capsys, second)
    assert status == 0 and "2 to train" in output and "To compare, train" not in output
    path = work_dir(csv.parent / "runs")
    rows = json.loads((path / "results.json").read_text())["rows"]
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("none", 0), ("none", 1), ("batch", 0), ("batch", 1)
    ]
    assert "4 of 4 runs are stored" in in_process(csv, capsys)[1]


def test_a_full_disk_stops_the_command_and_no_run_is_called_ok_that_is_not_stored(
    csv, trained, monkeypatch, capsys
):
    add, added = Store.add, []

    def full_after_one(store, result):
        if added:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        added.append(result)
        add(store, result)

    monkeypatch.setattr(Store, "add", full_after_one)
    status, output, errors = in_process(csv, capsys)
    assert status == 1 and output.count(": ok") + output.count(": diverged") == 1
    assert "No space left on device; finished runs are kept in " in errors
    assert errors.count("\n") == 1 and "runs/" in errors


@pytest.mark.parametrize("results", [0, 1])
def test_ctrl_c_reports_what_is_finished(results, csv, trained, monkeypatch, capsys):
    train = experiment.train

    def stopped(*arguments):
        found = train(*arguments)
        for _ in range(results):
            yield next(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", stopped)
    status, output, errors = in_process(csv, capsys)
    assert (status, errors) == (130, "")
    if results:
        assert "stopped: 1 of 4 runs are finished and kept; the same command" in output
        assert "3 of 4 runs are missing" in output
    else:
        assert output.endswith("stopped before the first run was finished; nothing to report\n")


def test_a_narrow_terminal_loses_nothing(csv, trained, capsys):
    in_process(csv, capsys)
    store = Store(work_dir(csv.parent / "runs"))
    report = experiment.report(store)
    told = []
    for width in (100, 60, 20):
        console = make_console()
        console.width = width
        show(console, store, report)
        output = capsys.readouterr().out
        told.append(sorted(set("".join(c if c.isalnum() else " " for c in output).split())))
    assert set(told[0]) <= set(told[1])
    assert "".join(str(store.work_dir)) in output, "paths are not wrapped"


def test_images_too_small_for_the_model_are_refused_in_one_line(csv, capsys):
    """Known once the model is built, which the real runner does."""
    status, output, errors = in_process(csv, capsys, "--model=conv_bn_relu", seeds=1)
    assert status == 2 and errors.count("\n") == 1 and ": ok" not in output
    assert "model='conv_bn_relu' cannot be built for images of shape (4, 4, 1)" in errors


@pytest.mark.slow
def test_the_command_ends_well_in_a_plain_terminal_and_a_hostile_folder(tmp_path):
    """One process: no UTF-8, no colours, and names that rich and matplotlib could take for more."""
    folder = tmp_path / "[red]a b $x$^{"
    folder.mkdir()
    csv = write_csv(folder / "$\\frac$ [bold].csv")
    done = subprocess.run(
        [sys.executable, TRAIN, *flags(csv, folder / "runs", measure=("histograms", "penalty"))],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C"},
        capture_output=True, text=True,
    )
    output = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    path = work_dir(folder / "runs")
    assert output.isascii() and f"tensorboard --logdir '{path / 'tensorboard'}'" in output
    assert "4 to train, 2 at a time" in output or "4 to train, 1 at a time" in output
    runs = json.loads((path / "results.json").read_text())["runs"]
    assert runs[0]["start"] == runs[2]["start"], "the arms started from different weights"
    for result in runs:
        name = f"{result['config']['arm']}/seed_{result['config']['seed']}"
        assert output.count(f"{name}: ok after 20 steps, validation accuracy 0.") == 1
        rows = (path / "runs" / f"{name}.csv").read_text().splitlines()
        assert rows[0].startswith("step,") and "loss_train" in rows[0] and len(rows) >= 3
        assert list((path / "tensorboard" / name).iterdir())
        assert result["metrics"]["penalty"] is not None
    for name in ("comparison", "none/over_seeds", "batch/over_seeds"):
        assert list((path / "tensorboard" / name).iterdir())
    assert (path / "picture.png").read_bytes().startswith(b"\x89PNG")


def numbers(path):
    """All that a report's JSON says, without times."""
    content = json.loads((path / "results.json").read_text())
    for part in (*content["runs"], *content["arms"]):
        del part["seconds"]
    return content


@pytest.mark.slow
def test_a_command_that_was_stopped_killed_and_left_alone_ends_as_if_nothing_had_happened(tmp_path):
    """Ctrl-C, then kill -9, then a reader that leaves: the same digits, one process later each."""
    csv = write_csv(tmp_path / "data.csv")
    settings = {"normalizer": ("batch",), "seeds": 3, "steps": 60}
    status, _, errors = Program(TRAIN, *flags(csv, tmp_path / "whole", **settings)).end()
    assert (status, errors) == (0, "")
    again = flags(csv, tmp_path / "again", **settings)

    def started_until(results):
        program = Program(TRAIN, *again)
        while len(list(tmp_path.glob("again/*/runs/*/seed_*.json"))) < results:
            assert program.running(), program.end()
            time.sleep(0.01)
        return program

    program = started_until(1)
    program.signal(signal.SIGINT)
    status, output, errors = program.end()
    done = len(list(tmp_path.glob("again/*/runs/*/seed_*.json")))
    assert (status, errors) == (130, "")
    assert 1 <= done < 6 and f"stopped: {done} of 6 runs are finished and kept" in output
    path = work_dir(tmp_path / "again")

    program = started_until(done + 1)
    program.signal(signal.SIGKILL)
    assert program.end()[0] == -signal.SIGKILL
    for stored in path.rglob("*.json"):
        json.loads(stored.read_text())
    next(path.glob("runs/none/seed_*.json")).unlink()  # as if killed between two of a stack

    process = subprocess.Popen(
        [sys.executable, TRAIN, *again], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert "runs are stored in" in process.stdout.readline()
    process.stdout.close()  # as `head -1` does
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(timeout=300) == 0
    assert len(list(path.glob("runs/*/seed_*.json"))) == 6
    assert numbers(path) == numbers(work_dir(tmp_path / "whole"))


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_one_line_and_status_1(tmp_path):
    """No file may have more than 4 kB: TensorBoard's events are the first to meet the limit."""
    csv = write_csv(tmp_path / "data.csv")
    program = Program(
        TRAIN, *flags(csv, tmp_path / "runs", measure=("histograms",), seeds=1), "--is_bn"
    )
    program.limit(resource.RLIMIT_FSIZE, 4096)
    status, output, errors = program.end()
    assert status == 1 and ": ok" not in output and "Traceback" not in errors
    assert errors.count("\n") == 1 and "; finished runs are kept in " in errors
    assert not list(tmp_path.rglob("seed_0.json"))
