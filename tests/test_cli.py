"""The command as a user runs it, in processes of its own."""

import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from bn_keras import cli
from bn_keras.config import ARM, RUN_FIELDS
from bn_keras.data import mnist
from bn_keras.data.idx import FILES
from bn_keras.registry import NORMALIZERS

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--steps=20", "--seeds=1", "--validation_size=300", "--test_size=200", "--train_size=1000",
         "--eval_interval=10", "--curve_size=100"]


def start(*arguments, code=None, cwd=None):
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "train.py")]), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=environment,
    )


def run(*arguments, **settings):
    process = start(*arguments, **settings)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


BAD = {
    "--is_bn=maybe": "--is_bn=maybe: received 'maybe'; expected true or false",
    "--learning_rate=0": "received '0'; expected a number greater than 0",
    "--learning_rate=-1": "received '-1'; expected a number greater than 0",
    "--learning_rate=nan": "received 'nan'; expected a number greater than 0",
    "--learning_rate=abc": "received 'abc'; expected a number greater than 0",
    "--model=mnist_cn": "unknown model 'mnist_cn'; known: bad_init_mlp, ",
    "--dataset=mnits":
        "unknown dataset 'mnits'; known: csv, idx, mnist, notmnist, quadratic, tfds (did you ",
    "--normalizer=btach": "unknown normalizer 'btach'; known: activated, batch, ",
    "--normalizer=batch,lyer": "unknown normalizer 'lyer'",
    "--optimizer=adma": "unknown optimizer 'adma'; known: adam, ",
    "--loss=softmx": "unknown loss 'softmx'; known: clipped_softmax, sigmoid, softmax, ",
    "--activation=rlu": "received 'rlu'; expected one of relu, ",
    "--seeds=0": "received '0'; expected a whole number of at least 1",
    "--seeds=1.5": "received '1.5'; expected a whole number of at least 1",
    "--batch_size=70000": "batch_size=70000: the dataset has 55000 training images; expected",
    "--logdir=/dev/null/x": "--logdir=/dev/null/x: cannot be written to",
    "--data_dir=/nonexistent": "/nonexistent: no such folder; ",
    "--dataset=idx:": "expected idx:FOLDER",
    "--sedes=3": "Unknown command line flag 'sedes'. Did you mean: seeds ?",
    "--nois_bn=3": "does not take an argument",
    "--flagfile=/nonexistent": "/nonexistent",
    "is_bn": "unexpected argument 'is_bn'; expected flags like --seeds=3 (did you mean --is_bn?)",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_gets_one_line_and_status_2(argument, tmp_path):
    status, output, errors = run(argument, cwd=tmp_path)
    assert (status, output) == (2, "")
    assert BAD[argument] in errors and errors.count("\n") == 1
    assert not any(tmp_path.iterdir()), "something was written"


def test_a_comparison_of_accuracies_refuses_labels_that_are_numbers(tmp_path):
    status, _, errors = run("--dataset=quadratic", "--validation_size=100", cwd=tmp_path)
    assert status == 2 and "--dataset=quadratic: its labels are numbers" in errors
    assert "or --study=bad_init_regression" in errors and errors.count("\n") == 1


def test_steps_and_epochs_together_are_refused(tmp_path):
    status, _, errors = run("--steps=5", "--epochs=1", cwd=tmp_path)
    assert status == 2 and "--steps=5 and --epochs=1.0: expected one of them" in errors


@pytest.mark.parametrize("argument", ["--help", "--is_bn=maybe", "--batch_size=70000"])
def test_help_and_mistakes_do_not_load_tensorflow(argument):
    code = (
        "import sys\nfrom bn_keras import cli\ncli.main(['train.py', *sys.argv[1:]])\n"
        "print('loaded:', [m for m in ('tensorflow', 'keras', 'matplotlib') if m in sys.modules])"
    )
    status, output, _ = run(argument, code=code)
    assert status == 0 and output.endswith("loaded: []\n")


def test_help_names_every_flag_with_default_and_reason():
    status, output, _ = run("--help")
    assert status == 0
    for name, field in RUN_FIELDS.items():
        if name != "seed" and field.metadata["group"] != ARM:
            assert f"--{name}" in output and field.metadata["why"] in output
    assert "--learning_rate=0.05" in output and ", ".join(NORMALIZERS.names()) in output


def arms(*arguments):
    runs = cli.plan(cli.parse_flags(["train.py", *arguments]))
    return [(run.normalizer, run.seed) for run in runs]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["none", "batch"]),
        (["--is_bn"], ["batch"]),
        (["--is_bn=True"], ["batch"]),
        (["--is_bn=true"], ["batch"]),
        (["--nois_bn"], ["none"]),
        (["--is_bn=False"], ["none"]),
        (["--normalizer=group"], ["none", "group"]),
        (["--normalizer=batch,layer,batch"], ["none", "batch", "layer"]),
        (["--normalizer=none"], ["none"]),
        (["--normalizer=keras_batch", "--is_bn"], ["keras_batch"]),
    ],
)
def test_flags_choose_the_arms(arguments, expected):
    assert arms("--seeds=1", *arguments) == [(name, 0) for name in expected]


def test_seeds_count_up_from_the_first():
    assert arms("--is_bn", "--seeds=2", "--first_seed=5") == [("batch", 5), ("batch", 6)]


def test_is_bn_without_a_normalizer_is_refused():
    with pytest.raises(cli.Refusal, match="--normalizer=none: expected a normalizer"):
        arms("--is_bn", "--normalizer=none")
    with pytest.raises(flags.Error, match="--normalizer=: received ''"):
        arms("--normalizer=")


def test_a_flagfile_gives_flags(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--seeds=2\n--learning_rate=0.5\n--is_bn\n")
    runs = cli.plan(cli.parse_flags(["train.py", f"--flagfile={path}", "--learning_rate=0.25"]))
    assert [(run.seed, run.learning_rate) for run in runs] == [(0, 0.25), (1, 0.25)]


@pytest.mark.parametrize("change", ["missing", "truncated", "altered"])
def test_a_damaged_data_file_is_named_before_anything_is_written(change, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in mnist.SHA256:
        content = (mnist.SHIPPED / name).read_bytes()
        if name.startswith("t10k-images"):
            content = {"missing": None, "truncated": content[:1000],
                       "altered": content[:-1] + b"?"}[change]
        if content is not None:
            (folder / name).write_bytes(content)
    status, _, errors = run(f"--data_dir={folder}", f"--logdir={tmp_path / 'runs'}", *SMALL)
    assert status == 2 and "t10k-images-idx3-ubyte" in errors and "--data_dir" in errors
    assert "Traceback" not in errors and not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small comparison of both arms, trained once."""
    folder = tmp_path_factory.mktemp("command")
    return folder, run(f"--logdir={folder}", *SMALL)


def work_dir(folder):
    (path,) = folder.iterdir()
    return path


@pytest.mark.slow
def test_the_command_prints_table_verdict_and_places(finished):
    folder, (status, output, errors) = finished
    assert status == 0, errors
    path = work_dir(folder)
    for text in ("validation", "steps to", "100 one", "At learning rate 0.05",
                 str(path / "accuracy.png"), str(path / "results.json"),
                 f"tensorboard --logdir {path / 'tensorboard'}"):
        assert text in output
    assert "Traceback" not in errors and "cuInit" not in errors


@pytest.mark.slow
def test_every_file_that_is_named_is_there(finished):
    path = work_dir(finished[0])
    runs = json.loads((path / "results.json").read_text())["runs"]
    assert [(run["normalizer"], run["seed"]) for run in runs] == [("none", 0), ("batch", 0)]
    assert runs[0]["start"] == runs[1]["start"], "the arms started from different weights"
    for arm in ("none", "batch"):
        rows = (path / "runs" / arm / "seed_0.csv").read_text().splitlines()
        assert rows[0].startswith("step,loss_train,accuracy_train") and len(rows) == 3
        assert list((path / "tensorboard" / arm / "seed_0").iterdir())
    assert (path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_other_seeds_only_the_rest(finished):
    folder, _ = finished
    stored = {path: path.stat().st_mtime_ns for path in folder.rglob("seed_*.json")}
    code = (
        "import sys\nfrom bn_keras import cli\ncli.main(['train.py', *sys.argv[1:]])\n"
        "print('tensorflow' in sys.modules)"
    )
    status, output, _ = run(f"--logdir={folder}", *SMALL, code=code)
    assert status == 0 and "2 of 2 runs are stored" in output and output.endswith("False\n")
    status, output, _ = run(f"--logdir={folder}", *SMALL, "--seeds=2", "--is_bn")
    assert status == 0 and "1 of 2 runs are stored" in output
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert (work_dir(folder) / "runs" / "batch" / "seed_1.json").is_file()


@pytest.mark.slow
def test_report_draws_a_work_directory_again(finished, tmp_path):
    path = work_dir(finished[0])
    (path / "accuracy.png").unlink()
    code = "import sys\nfrom bn_keras.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    status, output, _ = run("report", str(path), code=code)
    assert status == 0 and "At learning rate" in output and (path / "accuracy.png").is_file()
    status, _, errors = run("report", str(tmp_path), code=code)
    assert status == 2 and "no work directory" in errors and errors.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_keeps_finished_runs_and_the_same_command_goes_on(tmp_path):
    arguments = [f"--logdir={tmp_path}", *SMALL, "--seeds=8", "--steps=60", "--is_bn"]
    process = start(*arguments)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/runs/batch/seed_0.json")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    done = len(list(tmp_path.glob("*/runs/batch/*.json")))
    assert process.returncode == 130 and "Traceback" not in errors
    assert 1 <= done < 8 and f"stopped: {done} of 8 runs are finished and kept" in output
    status, output, _ = run(*arguments)
    assert status == 0 and f"{done} of 8 runs are stored" in output
    assert len(list(tmp_path.glob("*/runs/batch/*.json"))) == 8


@pytest.mark.slow
def test_a_killed_command_leaves_whole_files_only(tmp_path):
    arguments = [f"--logdir={tmp_path}", *SMALL, "--seeds=3", "--is_bn"]
    process = start(*arguments)
    while not list(tmp_path.glob("*/runs/batch/seed_0.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())
    status, output, _ = run(*arguments)
    assert status == 0 and " runs are stored" in output


@pytest.mark.slow
def test_images_too_small_for_the_model_are_refused_in_one_line(tmp_path):
    for part, name in FILES.items():
        shape = (20, 4, 4) if "images" in part else (20,)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (tmp_path / name).write_bytes(header + bytes(np.prod(shape)))
    status, _, errors = run(
        f"--dataset=idx:{tmp_path}", "--model=conv_bn_relu", "--validation_size=5",
        "--batch_size=4", f"--logdir={tmp_path / 'runs'}",
    )
    assert status == 2 and errors.count("\n") == 1
    assert "model='conv_bn_relu' cannot be built for images of shape (4, 4, 1)" in errors


@pytest.mark.slow
def test_a_run_that_diverges_is_counted_and_the_others_go_on(tmp_path):
    status, output, errors = run(
        f"--logdir={tmp_path}", *SMALL, "--model=conv_bn_relu", "--learning_rate=1e30",
        "--optimizer=sgd",
    )
    assert status == 0, errors
    runs = json.loads((work_dir(tmp_path) / "results.json").read_text())["runs"]
    by_arm = {run["normalizer"]: run for run in runs}
    assert by_arm["none"]["status"] == "diverged" and by_arm["none"]["steps"] < 20
    assert "1 diverged" in output
    for run_ in runs:
        assert run_["validation_accuracy"] is not None
        assert not np.isnan(run_["validation_accuracy"])
