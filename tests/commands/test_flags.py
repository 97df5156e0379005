"""Flags: what they accept, which runs they make, and how they refuse."""

import json
import re
import subprocess
import sys

import pytest
import shell
from processes import ENVIRONMENT

from bn_keras import plan as plans
from bn_keras.__main__ import main
from bn_keras.commands import flags, train
from bn_keras.config import RUN_FIELDS, ConfigError
from bn_keras.data import mnist
from bn_keras.diagnostics import pitfalls
from bn_keras.registry import NORMALIZERS, PROBES

BAD = {
    "--is_bn=maybe": "flag --is_bn=maybe: received 'maybe'; expected true or false",
    "--learning_rate=0": "received '0'; expected a number greater than 0",
    "--learning_rate=-1": "received '-1'; expected a number greater than 0",
    "--learning_rate=nan": "received 'nan'; expected a number greater than 0",
    "--learning_rate=abc": "received 'abc'; expected a number greater than 0",
    "--model=mnist_cn": "unknown model 'mnist_cn'; known: bad_init_mlp, ",
    "--dataset=mnits": "unknown dataset 'mnits'; known: ",
    "--study=pitfals": "unknown study 'pitfals'; known: bad_init_regression, ",
    "--normalizer=btach": "unknown normalizer 'btach'; known: activated, batch, ",
    "--normalizer=batch,lyer": "unknown normalizer 'lyer'",
    "--normalizer=": "received ''; expected names with commas between",
    "--optimizer=adma": "unknown optimizer 'adma'; known: adam, ",
    "--loss=softmx": "unknown loss 'softmx'; known: clipped_softmax, sigmoid, softmax, ",
    "--activation=rlu": "received 'rlu'; expected one of relu, ",
    "--measure=penlty": "unknown probe 'penlty'; known: batch_statistics, ",
    "--measure=penalty:l2": "measure='penalty:l2': expected penalty",
    "--measure=pitfalls:corect": "measure='pitfalls:corect': expected pitfalls, pitfalls:correct, ",
    "--measure=pitfall_curve": "measure='pitfall_curve': expected pitfall_curve:correct, ",
    "--seeds=0": "received '0'; expected a whole number from 1 to 10,000",
    "--seeds=1.5": "received '1.5'; expected a whole number from 1 to 10,000",
    "--seeds=10001": "received '10001'; expected a whole number from 1 to 10,000",
    "--steps=1000001": "received '1000001'; expected a whole number from 1 to 1,000,000",
    "--epochs=10001": "received '10001'; expected a number greater than 0 and at most 10,000",
    "--epochs=1e999": "received '1e999'; expected a number greater than 0 and at most 10,000",
    "--epochs=5000": "steps of training; expected a whole number from 1 to 1,000,000",
    "--first_seed=2147483647": "seed=2147483648: expected a whole number from 0 to 2,147,483,647",
    "--batch_size=70000": "batch_size=70000: the dataset has 55000 training images; expected",
    "--logdir=/dev/null/x": "logdir='/dev/null/x': cannot be written to (Not a directory); name",
    "--data_dir=/nonexistent": "/nonexistent: no such folder; ",
    "--dataset=idx:": "expected idx:FOLDER",
    "--dataset=quadratic":
        "loss='sigmoid' of model='mnist_cnn' with dataset='quadratic', whose labels are numbers; "
        "expected a model for numbers, such as bad_init_mlp, or loss='squared'",
    "--sedes=3": "Unknown command line flag 'sedes'. Did you mean: seeds ?",
    "--nois_bn=3": "does not take an argument",
    "--flagfile=/nonexistent":
        "train: --flagfile: [Errno 2] No such file or directory: '/nonexistent'; expected a file",
    "--loss=squared": "loss='squared' of model='mnist_cnn' with dataset='mnist', whose labels are",
    "--study=bad_init_regression --loss=softmax":
        "loss='softmax' of model='bad_init_mlp' with dataset='quadratic', whose labels are numbers",
    "--dataset=quadratic --validation_size=3000":
        "validation_size=3000: the dataset has 2200 training images; expected at least 1 and at ",
    "--image_size=32": "image_size=32: dataset 'mnist' comes as it is; leave image_size out, or ",
    "--image_size=5000": "received '5000'; expected a whole number from 1 to 4,096",
    "is_bn": "unexpected argument 'is_bn'; expected flags like --seeds=3 (did you mean '--is_bn'?)",
    "--quick": "--quick without --study: expected a study, such as --study=learning_rates",
    "--steps=5 --epochs=1": "--steps=5 and --epochs=1.0: expected one of them",
    "--is_bn --normalizer=none": "--is_bn=True with --normalizer=none: expected a normalizer",
    "--study=pitfalls --is_bn": "--is_bn with --study=pitfalls: a study has arms of its own",
    "--study=pitfalls --arms=CN": "received the arm 'CN'; expected some of: ",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_input_gets_one_line_and_status_2(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main(["train", *given.split()])
    output, errors = capsys.readouterr()
    assert (status, output) == (2, "")
    assert BAD[given] in errors and errors.count("\n") == 1
    assert errors.startswith("bn-keras train: ")
    assert not any(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("change", ["missing", "truncated", "altered"])
def test_a_damaged_data_file_is_named_before_anything_is_written(change, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in mnist.SHA256:
        content = (mnist.SHIPPED / name).read_bytes()
        if name.startswith("t10k-images"):
            content = {"missing": None, "truncated": content[:1000],
                       "altered": content[:-1] + b"?"}[change]
        if content is not None:
            (folder / name).write_bytes(content)
    assert main(["train", f"--data_dir={folder}", f"--logdir={tmp_path / 'runs'}"]) == 2
    errors = capsys.readouterr().err
    assert "t10k-images-idx3-ubyte" in errors and "--data_dir" in errors
    assert errors.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_help_and_mistakes_answer_at_once_and_load_nothing_heavy():
    """In one process that does nothing else; half a second is what an idle machine takes twice."""
    code = (
        "import atexit, gc, json, sys, time\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from bn_keras.__main__ import main\n"
        "for given in (['--help'], ['train', '--help'], ['train', '--is_bn=maybe'], ['trian'],\n"
        "              ['train', '--measure=pitfalls:corect'], ['report', '/nonexistent']):\n"
        "    main(given)\n"
        "heavy = ('tensorflow', 'keras', 'matplotlib', 'scipy', 'rich')\n"
        "loaded = [name for name in heavy if name in sys.modules]\n"
        "print(json.dumps([loaded, time.process_time()]))\n"
        "sys.argv[1:] = ['--version']\n"
        "main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=ENVIRONMENT,
    )
    *_, told, _, searched_no_more = process.stdout.splitlines()
    loaded, seconds = json.loads(told)
    assert loaded == [] and seconds < 1 and searched_no_more == "True"
    assert re.search(
        r"unknown verb 'trian'; known: conformance, .*, train, \S+ \(did you mean 'train'\?\)",
        process.stderr,
    )
    for name, field in RUN_FIELDS.items():
        if name not in ("seed", "arm"):
            assert f"  --{name}" in process.stdout and field.metadata["why"] in process.stdout
    assert ", ".join(NORMALIZERS.names()) in process.stdout
    default = RUN_FIELDS["learning_rate"].default
    assert f"--learning_rate={default}" in process.stdout


def made(*arguments):
    """The plan that flags make."""
    return train._plan(flags.parse(["train", *arguments]))


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
    runs = made("--seeds=1", *arguments).runs
    assert [(run.normalizer, run.seed) for run in runs] == [(name, 0) for name in expected]


def test_seeds_count_up_from_the_first():
    assert [run.seed for run in made("--is_bn", "--seeds=2", "--first_seed=5").runs] == [5, 6]


def test_a_flagfile_gives_flags_and_later_ones_win(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--seeds=2\n--learning_rate=0.5\n--is_bn\n")
    runs = made(f"--flagfile={path}", "--learning_rate=0.25").runs
    assert [(run.seed, run.learning_rate) for run in runs] == [(0, 0.25), (1, 0.25)]


def test_measure_takes_probes_with_their_arguments():
    plan = made("--measure=penalty,pitfalls:correct", "--seeds=1")
    assert {run.measure for run in plan.runs} == {("penalty", "pitfalls:correct")}
    assert {run.measure for run in made("--measure=", "--seeds=1").runs} == {()}


def test_the_arguments_that_probes_declare_are_those_that_they_know():
    known = tuple(pitfalls.EVALUATIONS)
    assert PROBES.properties("pitfalls")["arguments"] == ("", *known)
    assert PROBES.properties("pitfall_curve")["arguments"] == known


def test_data_are_the_same_from_every_working_directory(tmp_path, monkeypatch):
    shell.write_csv(tmp_path / "digits.csv")
    monkeypatch.chdir(tmp_path)
    for arguments in (["--dataset=csv:digits.csv"], ["--dataset=csv:digits.csv", "--data_dir=."]):
        plan = made("--seeds=1", *arguments)
        assert {(run.dataset, run.data_dir) for run in plan.runs} == {
            (f"csv:{tmp_path / 'digits.csv'}", None)
        }


def test_a_folder_alone_leaves_a_study_its_own_dataset(tmp_path):
    runs = made("--study=bad_init_regression", "--quick", f"--data_dir={tmp_path}").runs
    assert {(run.dataset, run.data_dir) for run in runs} == {("quadratic", str(tmp_path))}


def test_a_setting_that_the_arms_vary_is_refused():
    with pytest.raises(ConfigError, match="learning_rate: the arms of this study differ in it"):
        made("--study=learning_rates", "--learning_rate=1")


def test_every_registered_setting_is_a_flag():
    known = {name for group in flags.flag_groups().values() for name in group}
    assert set(plans.REGISTRIES) < known
