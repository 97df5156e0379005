"""Verbs that take a finished model: what they read, refuse and write."""

import json
import os
import pathlib
import zipfile

import keras
import numpy as np
import pytest

from bn_keras.registry import COMMANDS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model().save("net.keras")
    return tmp_path


def model():
    keras.utils.set_random_seed(3)
    net = keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Conv2D(2, 5, strides=4, name="conv"),
        keras.layers.BatchNormalization(name="bn"), keras.layers.Flatten(), keras.layers.Dense(10),
    ])
    bn = net.get_layer("bn")
    bn.moving_mean.assign([0.3, -0.1])
    bn.moving_variance.assign([0.5, 2.0])
    return net


def call(verb, *arguments):
    return COMMANDS.get(verb)(list(arguments))


@pytest.mark.slow
def test_a_new_model_is_written_and_the_certificate_printed(folder, capsys):
    before = (folder / "net.keras").read_bytes()
    assert call("fold", "net.keras") == 0
    told = capsys.readouterr().out
    assert "folded  into conv" in told and told.endswith("written to net.fold.keras\n")
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype("float32")
    folded = keras.models.load_model("net.fold.keras")
    np.testing.assert_allclose(folded(x), model()(x), rtol=1e-4, atol=1e-5)
    assert len(folded.layers) == 3 and (folder / "net.keras").read_bytes() == before
    assert sorted(os.listdir()) == ["net.fold.keras", "net.keras"]


@pytest.mark.slow
def test_data_and_json(folder, capsys):
    assert call(
        "fold", "net.keras", "--output=o.keras", "--dataset=mnist", "--examples=50", "--json"
    ) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == "o.keras" and told["rows"][0]["fate"] == "folded"
    assert told["measured"].startswith("given inputs of shape (32, 28, 28, 1)")
    assert 0 < told["relative"] < 1e-5


def test_a_function_of_ones_own_gives_the_model(folder, capsys):
    (folder / "my_net.py").write_text(
        "import keras\ndef make():\n    return keras.models.load_model('net.keras')\n"
        "def nothing():\n    pass\n"
        "def unbuilt():\n    return keras.Sequential([keras.layers.Dense(2)])\n"
        "def broken():\n    return 1 / 0\n"
    )
    assert call("fold", "my_net.py:make") == 0
    assert "written to make.fold.keras" in capsys.readouterr().out
    for name, message in (
        ("nothing", "gives a NoneType; expected a file that model.save"),
        ("unbuilt", "is not built; expected one that was called on data"),
        ("broken", "raised ZeroDivisionError: division by zero"),
        ("other", "has no 'other'"),
    ):
        assert call("fold", f"my_net.py:{name}", "--output=x.keras") == 2
        assert message in capsys.readouterr().err
    assert not os.path.exists("x.keras")


def test_no_file_is_lost(folder, capsys, monkeypatch):
    (folder / "kept.keras").write_text("mine")
    for arguments, message in (
        (["--output=kept.keras"], "kept.keras is there already; expected another --output, or"),
        (["--output=net.keras", "--force"], "is the given model, which stays as it is"),
        (["--output=a/b.keras"], "there is no folder a"),
        (["--output=b.h5"], "expected a name that ends in .keras"),
    ):
        assert call("fold", "net.keras", *arguments) == 2
        assert message in capsys.readouterr().err

    def half(self, path, *_, **__):
        with open(path, "wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", half)
    assert call("fold", "net.keras", "--output=kept.keras", "--force") == 130
    assert (folder / "kept.keras").read_text() == "mine"
    assert sorted(os.listdir()) == ["kept.keras", "net.keras"]


def bomb():
    with zipfile.ZipFile("bad.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}", bytes(100 * 2**20))


def lambda_layer():
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save("bad.keras")


def truncated():
    whole = pathlib.Path("net.keras").read_bytes()
    pathlib.Path("bad.keras").write_bytes(whole[: len(whole) // 2])


def no_model():
    with zipfile.ZipFile("bad.keras", "w") as archive:
        archive.writestr("config.json", "{}")


BAD = {
    bomb: "bytes that grow to 314572800",
    lambda_layer: "cannot be loaded",
    truncated: "not a .keras file",
    no_model: "cannot be loaded",
    lambda: os.mkdir("bad.keras"): "a folder; expected",
    lambda: None: "there is no such file",
}


@pytest.mark.slow
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_a_damaged_or_hostile_file_is_refused_in_a_line(folder, capsys, make):
    make()
    assert call("fold", "bad.keras") == 2
    told = capsys.readouterr().err
    assert told.startswith("bn-keras fold: bad.keras: ") and BAD[make] in told
    assert told.count("\n") == 1 and not os.path.exists("bad.fold.keras")


def test_data_that_are_not_there_are_refused_before_the_model_is_loaded(folder, capsys):
    assert call("fold", "nothing.keras", "--dataset=npz:none.npz") == 2
    assert "none.npz" in capsys.readouterr().err
    for flag in ("--batch_size=0", "--examples=x", "--pixels=grey"):
        assert call("fold", "net.keras", flag) == 2
        assert flag.partition("=")[2] in capsys.readouterr().err


def late(path):
    """A net whose moving statistics are far off, with labels that it is right about otherwise."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(8, name="dense"),
        keras.layers.BatchNormalization(momentum=0.5, name="bn"), keras.layers.ReLU(),
        keras.layers.Dense(3, name="logits"),
    ])
    x = np.random.default_rng(0).normal(2, 1, (600, 4)).astype("float32")
    y = x[:, :3].argmax(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(0.02)
    optimizer.build(net.trainable_variables)  # before fit: else it traces its step twice
    net.compile(optimizer, loss, metrics=["accuracy"])
    net.fit(x, y, batch_size=50, epochs=12, verbose=0)
    net.get_layer("bn").moving_mean.assign_add([5.0] * 8)
    net.save(path)
    np.savez("data.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])


@pytest.mark.slow
def test_two_commands_find_the_fault_and_mend_it(folder, capsys):
    late("late.keras")
    flags = ["late.keras", "--dataset=npz:data.npz", "--pixels=raw"]
    assert call("doctor", *flags, "--picture=late.png") == 1
    told = capsys.readouterr().out
    assert "costs accuracy (averages_lag): The moving averages of 1 of 1 BN layers (bn)" in told
    command = next(line for line in told.splitlines() if line.startswith("as a command: "))
    words = command.removeprefix("as a command: ").split()
    assert words == ["bn-keras", "recalibrate", *flags]
    assert (folder / "late.png").read_bytes().startswith(b"\x89PNG")
    assert call(*words[1:]) == 0
    assert "bn" in capsys.readouterr().out
    with np.load("data.npz") as data:
        x, y = data["x_test"], data["y_test"]
    late_one, mended = (
        keras.models.load_model(name).evaluate(x, y, verbose=0)[1]  # compiled as it was
        for name in ("late.keras", "late.recalibrate.keras")
    )
    assert late_one < 0.8 < 0.9 < mended
    assert call("doctor", "late.recalibrate.keras", *flags[1:], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and "averages_lag" in found["looked"]
    assert call("gap", *flags, "--json") == 0
    lag = json.loads(capsys.readouterr().out)["terms"]["lag"]
    assert lag["value"] > 0.5 and lag["low"] > 0
    assert call("doctor", "late.keras", "--only=averages_lag") in (0, 2)
    assert "not looked: averages_lag: no data" in capsys.readouterr().out


@pytest.mark.slow
def test_info_freeze_unfreeze_and_exchange(folder, capsys):
    def modes(path):
        assert call("info", path, "--json") == 0
        row, = json.loads(capsys.readouterr().out)
        return row["path"], row["kind"], row["mode"]

    assert modes("net.keras") == ("bn", "BatchNormalization", "batch")
    assert call("freeze", "net.keras", "--layers=b.$") == 0
    assert "leaves the averages alone, trains gamma and beta" in capsys.readouterr().out
    assert modes("net.freeze.keras") == ("bn", "FrozenBatchNorm", "averages")
    assert call("unfreeze", "net.freeze.keras", "--output=thawed.keras") == 0
    capsys.readouterr()
    assert modes("thawed.keras") == ("bn", "BatchNormalization", "batch")
    for layers in ("norm", "inf"):
        assert call("freeze", "net.keras", f"--layers={layers}", "--output=x.keras") == 2
    assert "matches no batch normalization; known: bn" in capsys.readouterr().err
    assert call("exchange", "net.keras", "--to=group", "--set", "groups=2") == 0
    assert "GroupNorm" in capsys.readouterr().out
    assert keras.models.load_model("net.exchange.keras").get_layer("bn").groups == 2
    assert call("exchange", "net.keras", "--to=group", "--set", "groups", "--output=x.keras") == 2
    assert "received 'groups'; expected NAME=VALUE" in capsys.readouterr().err
    assert not os.path.exists("x.keras")


@pytest.mark.slow
def test_every_command_that_the_doctor_prints_is_understood(folder, capsys):
    from bn_keras.commands import doctor
    from bn_keras.diagnostics.findings import inputs, modes, statistics, training

    remedies = [modes.FREEZE, training.FREEZE, inputs.CONVERT, *(
        line.format(of) for line in (statistics.RECALIBRATE, statistics.IN_ONE_PASS)
        for of in ("train", "data")
    )]
    assert set(doctor.VERBS) == {line.rpartition(" = ")[2] for line in remedies}
    for verb, *flags in doctor.VERBS.values():
        if verb == "recalibrate":
            flags += ["--dataset=mnist", "--examples=64"]
        assert call(verb, "net.keras", *flags, "--output=new.keras", "--force") == 0, (verb, flags)
        assert os.path.exists("new.keras")
        capsys.readouterr()
