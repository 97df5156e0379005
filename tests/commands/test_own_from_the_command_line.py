"""Nets and data of one's own from the command line, sweeps, and what a dry run tells."""

import html
import json
import re
import shlex

import keras
import numpy as np
import pytest

import bn_keras
from bn_keras.__main__ import main

NET = """
import keras

def build(normalizer, classes):
    return keras.Sequential([
        keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(6), normalizer(),
        keras.layers.Dense(classes),
    ])

def of_numbers(normalizer):
    return keras.Sequential([keras.Input((1,)), normalizer(), keras.layers.Dense(1)])

def raises(normalizer):
    raise KeyError("no such thing")
"""
DATA = """
import numpy as np

def load():
    x = np.random.default_rng(0).normal(size=(80, 4, 4, 1))
    return x, (x[:, 0, 0, 0] > 0).astype(int)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "my_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["train", "--model=my_net.py:build", "--dataset=my_data.py:load", "--steps=4", "--seeds=1",
         "--batch_size=8", "--eval_interval=2"]


@pytest.mark.slow
def test_a_net_and_data_of_ones_own_are_compared_and_repeated_by_the_command_told(folder, capsys):
    assert main([*FLAGS, "--learning_rate=0.01,0.1"]) == 0
    output = capsys.readouterr().out
    assert "batch is best at learning_rate=" in output and "my_net.py_build" in output
    work_dir, = (folder / "runs").iterdir()
    told = (work_dir / "report.html").read_text()
    assert "--learning_rate=0.01,0.1" in told and f"--model={folder}/my_net.py:build" in told
    found = json.loads((work_dir / "results.json").read_text())
    assert {run["status"] for run in found["runs"]} == {"ok"} and len(found["runs"]) == 4
    assert main([*FLAGS, "--learning_rate=0.01,0.1"]) == 0
    assert "4 of 4 runs are stored" in capsys.readouterr().out


@pytest.mark.slow
def test_a_path_with_an_at_sign_is_a_path(folder, capsys):
    place = folder / "me@home"
    place.mkdir()
    x = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype("float32")
    y = np.arange(60) % 2
    np.savez(place / "mine@work.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    (place / "my_net.py").write_text(NET)
    flags = [*FLAGS[:1], "--model=me@home/my_net.py:build", "--dataset=npz:me@home/mine@work.npz",
             "--is_bn"]
    assert main([*flags, *FLAGS[3:]]) == 0
    assert "my_net.py:build" in (next((folder / "runs").iterdir()) / "report.html").read_text()


@pytest.mark.slow
def test_a_changed_net_is_another_one(folder, capsys):
    assert main([*FLAGS, "--is_bn"]) == 0
    (folder / "my_net.py").write_text(NET.replace("Dense(6)", "Dense(5)"))
    assert main([*FLAGS, "--is_bn"]) == 0
    assert len(list((folder / "runs").iterdir())) == 2


@pytest.mark.slow
def test_a_dry_run_tells_the_plan_and_keeps_nothing(folder, capsys):
    assert main([*FLAGS, "--sweep=learning_rate=0.01:1:3log", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "6 arms, 1 seeds each from 0: 6 runs, of which 0 are stored in" in output
    assert "about " in output and "nothing was kept" in output
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("flag, message", [
    ("--model=my_net.py:raises", "building it raised KeyError: 'no such thing' ("),
    ("--model=my_net.py:biuld",
     "has no 'biuld'; it defines build, of_numbers, raises (did you mean 'build'?)"),
    ("--model=my_nets.py:build", "my_nets.py: no such file (did you mean 'my_net.py'?)"),
    ("--model=net.keras", "model='net.keras': No such file or directory; expected a file that"),
    ("--model=applications:MobileNetV9", "did you mean 'MobileNetV2'?"),
    ("--dataset=my_data.py:laod", "has no 'laod'; it defines load"),
])
def test_what_cannot_be_found_or_built_is_refused_in_one_line(folder, flag, message, capsys):
    given = [text for text in FLAGS if text.split("=")[0] != flag.split("=")[0]]
    assert main([*given, flag]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_a_file_that_is_no_model_is_refused_in_one_line(folder, capsys):
    (folder / "net.keras").write_bytes(b"PK\x03\x04 nothing")
    assert main([*FLAGS[:1], "--model=net.keras", *FLAGS[2:]]) == 2
    errors = capsys.readouterr().err
    assert "cannot be loaded" in errors and errors.count("\n") == 1


COMPILED = {
    "another rate": (lambda: keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True),
                     ["--learning_rate=0.1"], 0.1, "SGD(use_ema=True, momentum=0.9), else with"),
    "scaled": (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25)), [], 0.25,
               "LossScaleOptimizer(SGD()), else with"),
}


def save(folder, optimizer, loss="sparse_categorical_crossentropy"):
    model = keras.Sequential([
        keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(6),
        keras.layers.BatchNormalization(), keras.layers.Dense(2, "softmax"),
    ])
    model.compile(optimizer, loss)
    model.save(folder / "net.keras")
    return model


def runs_of(folder):
    return json.loads((folder / "results.json").read_text())["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_a_file_is_trained_with_the_optimizer_that_it_was_compiled_with(folder, capsys, case):
    make, flags, rate, described = COMPILED[case]
    model = save(folder, make())
    flags = ["train", "--model=net.keras", "--is_bn", *FLAGS[2:], *flags]
    assert main(flags) == 0
    work_dir, = (folder / "runs").iterdir()
    run, = runs_of(work_dir)
    assert run["config"]["learning_rate"] == rate
    content = json.loads((work_dir / "results.json").read_text())
    assert any(f"Optimizer: {described}" in note for note in content["notes"])
    # From Python the same model has the same results.
    rates = {"learning_rate": rate} if flags[-1].startswith("--learning_rate") else {}
    report = bn_keras.compare(
        model, "my_data.py:load", ["batch"], steps=4, seeds=1, batch_size=8, eval_interval=2,
        progress=False, logdir=folder / "python", **rates,
    )
    assert report.results[0].metrics["test_loss"] == run["metrics"]["test_loss"]
    assert any(f"Optimizer: {described}" in note for note in report.notes)
    page = html.unescape((work_dir / "report.html").read_text())
    assert "(optimizer as compiled, 4 steps)" in page and "(net.keras" not in page
    # The command in the page goes on with the same runs.
    told = re.search(r"bn-keras (train [^<]*net\.keras[^<]*)", page).group(1)
    capsys.readouterr()
    assert "--optimizer=" in told and main(shlex.split(told)) == 0
    assert "1 of 1 runs are stored" in capsys.readouterr().out


@keras.saving.register_keras_serializable("mine")
def first_output(labels, outputs):
    return keras.ops.square(keras.ops.cast(labels, "float32") - outputs[:, 0])


@keras.saving.register_keras_serializable("mine")
class Slower(keras.optimizers.SGD):
    pass


LOADS = """
import keras

@keras.saving.register_keras_serializable("mine")
def first_output(labels, outputs):
    return keras.ops.square(keras.ops.cast(labels, "float32") - outputs[:, 0])

def make():
    model = keras.models.load_model("net.keras", compile=False)
    model.compile(keras.optimizers.RMSprop(), first_output)
    return model

def fails():
    raise KeyError("no such thing")
"""


@pytest.fixture
def unknown(folder, monkeypatch):
    """A file of a model with a loss and an optimizer that no process but this one knows."""
    save(folder, Slower(0.05), first_output)
    names = [name for name in keras.saving.get_custom_objects() if name.startswith("mine>")]
    assert len(names) == 2
    for name in names:
        monkeypatch.delitem(keras.saving.get_custom_objects(), name)
    return ["train", "--model=net.keras", *FLAGS[2:], "--is_bn"]


def test_a_loss_or_an_optimizer_that_is_not_known_here_is_named(unknown, capsys):
    for flag, part, name in (("--optimizer=sgd", "loss", "mine>first_output"),
                             ("--loss=softmax", "optimizer", "Slower")):
        assert main([*unknown, flag]) == 2
        errors = capsys.readouterr().err
        assert f"its {part} {name!r}, with which it was compiled, cannot be made" in errors
        assert f"--{part}=NAME, or my_net.py:make" in errors and errors.count("\n") == 1
        assert "Full object config" not in errors


@pytest.mark.slow
def test_they_are_replaced_by_flags_or_known_where_a_function_makes_the_model(
    unknown, folder, capsys,
):
    assert main([*unknown, "--loss=softmax", "--optimizer=sgd", "--learning_rate=0.05"]) == 0
    (folder / "my_net.py").write_text(LOADS)
    assert main([unknown[0], "--model=my_net.py:make", *unknown[2:], "--loss=softmax",
                 "--optimizer=sgd", "--learning_rate=0.05"]) == 0
    assert main([unknown[0], "--model=my_net.py:make", *unknown[2:]]) == 0
    told = capsys.readouterr().out
    assert "first_output gets the labels as in fit: class numbers" in " ".join(told.split())
    assert "not the RMSprop that the model was compiled with" in " ".join(told.split())
    losses = [runs_of(place)[0]["metrics"]["test_loss"] for place in
              sorted((folder / "runs").iterdir(), key=lambda place: place.stat().st_mtime)]
    assert losses[0] == losses[1] != losses[2]
    assert main([unknown[0], "--model=my_net.py:fails", *unknown[2:]]) == 2
    assert "raised KeyError: 'no such thing' (" in capsys.readouterr().err


@pytest.mark.slow
def test_another_optimizer_takes_the_place_of_a_files_rate_and_all(folder, capsys):
    save(folder, keras.optimizers.SGD(0.05, momentum=0.9))
    assert main(["train", "--model=net.keras", *FLAGS[2:], "--optimizer=sgd", "--is_bn"]) == 0
    config = runs_of(next((folder / "runs").iterdir()))[0]["config"]
    assert (config["optimizer"], config["learning_rate"]) == ("sgd", 0.001)


@pytest.mark.slow
def test_a_files_schedule_is_refused_unless_a_rate_stands_beside_it(folder, capsys):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    save(folder, keras.optimizers.SGD(decay))
    flags = ["train", "--model=net.keras", *FLAGS[2:], "--is_bn"]
    assert main(flags) == 2
    assert "its learning rate is a schedule, ExponentialDecay; exp" in capsys.readouterr().err
    assert main([*flags, "--learning_rate=0.1"]) == 0


@pytest.mark.slow
def test_numbers_are_compared_by_their_loss_from_the_command_line(folder, capsys):
    flags = ["train", "--model=my_net.py:of_numbers", "--dataset=quadratic", *FLAGS[3:], "--is_bn"]
    assert main(flags) == 0 and "validation loss" in capsys.readouterr().out
