"""Data that do not fit in memory: streamed from files that leave nothing behind, with equal digits.

The bounds of memory and of a piece are lowered, so that small data take many pieces.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from make import ROOT, normal

import bn_keras
from bn_keras import loop, on_disk
from bn_keras.data import from_python, scratch
from bn_keras.data.nests import leaves
from bn_keras.data.reading import tf_data
from bn_keras.data.splits import DataError, make_splits

X = normal((150, 6))
Y = (X[:, 0] > 0).astype(np.int64)
PIECE = 1000  # bytes


@pytest.fixture
def lowered(monkeypatch):
    monkeypatch.setattr(tf_data, "MAX_BYTES", 2500)  # the labels of 150 examples have 2400
    monkeypatch.setattr(on_disk, "PIECE_BYTES", PIECE)


def slices(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(200).batch(8)


def build(normalizer):
    return keras.Sequential([
        keras.Input((6,)), keras.layers.Dense(6), normalizer(), keras.layers.ReLU(),
        keras.layers.Dense(2),
    ])


def build_of_two(normalizer):
    left, right = keras.Input((6,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([normalizer()(left), right])
    return keras.Model({"left": left, "right": right}, keras.layers.Dense(2)(joined))


PROBES = ("population_loss", "predicted_classes", "one_at_a_time", "landscape", "no_gradient",
          "pitfalls", "layers", "units")
CASES = {
    "one net, one-hot labels": (build, lambda: slices(X.astype(np.float64), np.eye(2)[Y]), ()),
    "several inputs": (build_of_two, lambda: slices({"left": X, "right": X[:, :2]}), PROBES[:3]),
    "a stack": ("ioffe_mlp", slices, PROBES),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["several inputs", "a stack"])
def test_streamed_data_give_the_results_of_the_same_data_in_memory(case, tmp_path, monkeypatch):
    model, data, measure = CASES[case]

    def compare(folder):
        return bn_keras.compare(
            model, data(), ["batch"], seeds=2, steps=4, batch_size=16, progress=False,
            validation_size=60, curve_size=40, eval_interval=2, log_interval=2, measure=measure,
            workers=1, logdir=tmp_path / folder,
        )

    resident = compare("resident")
    monkeypatch.setattr(tf_data, "MAX_BYTES", 3000)
    monkeypatch.setattr(on_disk, "PIECE_BYTES", PIECE)
    streamed = compare("streamed")
    assert len(streamed.results) == 2
    for one, other in zip(resident.results, streamed.results):
        assert "read into memory: 150 examples" in " ".join(one.notes)
        assert "streamed from disk: 150 examples" in " ".join(other.notes)
        assert (one.start, one.data, one.metrics, one.curves) == (
            other.start, other.data, other.metrics, other.curves)
        assert one.metrics["test_loss"] > 0


@pytest.mark.parametrize("case", CASES)
def test_streamed_sets_are_those_that_memory_holds(case, request):
    _, data, _ = CASES[case]
    resident = make_splits(from_python(data()))
    request.getfixturevalue("lowered")
    streamed = make_splits(from_python(data()))
    assert streamed.digest() == resident.digest()  # so a stored result is found again
    for _, array in leaves(streamed.validation.images):
        assert isinstance(array, np.memmap)


def on_file(tmp_path, array, mode="r"):
    np.save(tmp_path / "array.npy", array)
    return np.load(tmp_path / "array.npy", mmap_mode=mode)


def stack_of_two():
    return keras.Sequential([
        keras.Input((2, 6)), keras.layers.BatchNormalization(),
        keras.layers.EinsumDense("bri,rio->bro", (2, 2)),
    ])


@pytest.mark.slow
def test_weights_and_losses_are_those_of_data_in_memory_also_under_xla(tmp_path, monkeypatch):
    file = on_file(tmp_path, X)
    labels = Y.astype(np.int32)
    task = loop.Task(lambda labels, outputs: keras.losses.sparse_categorical_crossentropy(
        labels, outputs, from_logits=True))
    indices = np.random.default_rng(0).integers(0, 150, (7, 16, 2))
    found, pieces = [], []
    monkeypatch.setattr(on_disk, "PIECE_BYTES", 2 * 16 * 2 * X[0].nbytes)  # two steps
    for data in (X, file):
        keras.utils.set_random_seed(0)
        net = stack_of_two()
        trainer = loop.Trainer(
            net, task, keras.optimizers.SGD(0.5), data, labels, runs=2, jit_compile=True
        )
        trainer.reset([v.numpy() for v in net.variables], [0.1, 0.5])
        steps = trainer.train(indices)
        pieces.append([len(part[-1]) for part in trainer._parts(indices)])
        evaluate = loop.Evaluator(lambda x, net=net: net(x, training=False), task, X, labels, 2)
        found.append([
            steps.loss, steps.accuracy, steps.gradient_norm, *evaluate(data, labels, 7),
            *(v.numpy() for v in net.variables),
        ])
    assert pieces == [[7], [2, 2, 2, 1]]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.ptp(found[0][0]) > 0


def mapped(folder):
    """How many files of a folder are mapped, those without a name included."""
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files here")
    return maps.read_text().count(str(folder))


def test_no_file_is_left_even_while_the_data_are_read(lowered, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = from_python((slices(), slices()))
    assert isinstance(source.train.images, np.memmap) and not os.listdir(tmp_path)
    assert mapped(tmp_path) == 2
    splits = make_splits(source)
    del source
    assert mapped(tmp_path) == 2  # those of the shuffled sets
    with pytest.raises(ValueError, match="read-only"):
        splits.train.images[0] = 0
    del splits
    assert not mapped(tmp_path)
    calls = []

    def append(self, rows):
        calls.append(rows)
        if len(calls) > 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(scratch.File, "append", append)
    with pytest.raises(KeyboardInterrupt):
        from_python((slices(), slices()))
    assert not os.listdir(tmp_path) and not mapped(tmp_path)


def unfinished():
    while True:
        yield X[0], 0


NO_ROOM = r"train: no room .*: [\d,]+ bytes are written, .* are free in .*TMPDIR.*\.take"


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_error_also_by_data_without_an_end(lowered, monkeypatch):
    monkeypatch.setattr(tf_data, "MAX_BYTES", 10_000)
    free = iter(range(scratch.RESERVE + 30_000, 0, -3000))
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage(next(free)))
    endless = tf.data.Dataset.from_generator(unfinished, output_signature=(
        tf.TensorSpec((6,), tf.float32), tf.TensorSpec((), tf.uint8)))
    with pytest.raises(DataError, match=NO_ROOM):
        from_python((endless, (X, Y)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full here")
def test_a_disk_that_is_full_at_once_is_told_too(lowered, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "w+b"))
    with pytest.raises(DataError, match=NO_ROOM):
        from_python((slices(), slices()))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4"])
def test_a_file_of_the_users_own_is_streamed_and_not_copied(lowered, tmp_path, dtype):
    array = np.round(X * 9 + 100).astype(dtype)
    file = on_file(tmp_path, array)
    source, resident = from_python((file, Y, file, Y)), from_python((array, Y, array, Y))
    given = source.train.images
    assert isinstance(given, np.memmap)
    assert np.shares_memory(given, file) == (dtype in ("uint8", "float32"))
    assert "train: inputs are streamed from disk: 150 examples" in " ".join(source.notes)
    assert type(source.train.labels) is np.ndarray
    splits = make_splits(source)
    assert isinstance(splits.train.images, np.memmap)
    assert splits.digest() == make_splits(resident).digest()
    drawn = make_splits(from_python((file, Y)))
    assert drawn.digest() == make_splits(from_python((array, Y))).digest()


def test_what_numpy_makes_of_a_mapping_lies_in_memory(lowered, tmp_path):
    array = on_file(tmp_path, X)
    assert on_disk.is_on_disk(array[2:]) and not on_disk.is_on_disk(array.astype("float64"))
    assert not any("streamed" in note for note in from_python((array * 2, Y)).notes)


def test_a_file_in_fortran_order_is_refused(lowered, tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(X))
    with pytest.raises(DataError, match="data: train inputs are a file in Fortran order.* C order"):
        from_python((np.load(tmp_path / "x.npy", mmap_mode="r"), Y))


def test_a_file_that_has_lost_its_end_is_told(lowered, tmp_path):
    """To read behind the end would end the process by a signal."""
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = from_python((x, Y))
    os.truncate(tmp_path / "x.npy", 200)
    for read in (lambda: from_python((x, Y)), lambda: on_disk.gather(x, np.arange(3)),
                 lambda: on_disk.rows(x, 0, 2)):
        with pytest.raises(OSError, match=r"x\.npy: this file has 200 bytes; expected at least"):
            read()
    assert np.isfinite(on_disk.rows(source.train.images, 0, 2)).all()  # the shuffled copy is whole


def test_changes_that_a_mapping_keeps_to_itself_are_read(lowered, tmp_path):
    file = on_file(tmp_path, X, mode="c")
    file[3] = 7
    on_disk.gather(file, np.arange(150))
    assert (on_disk.gather(file, np.array([3, 0]))[0] == 7).all()
    file[4, 1] = np.nan
    with pytest.raises(DataError, match="train input 4 holds NaN"):
        from_python((file, Y))


def test_texts_and_large_numbers_of_a_streamed_dataset_are_told(lowered):
    texts = slices(np.array(["a", "b"] * 75)[:, None].repeat(6, 1))
    with pytest.raises(DataError, match="train: reading this dataset raised .*expected numbers"):
        from_python((texts, texts))
    large = slices(np.arange(150)[:, None] + 2**24)
    source = from_python((large, large))
    assert len([note for note in source.notes if "as float32 the number" in note]) == 2


PEAK = """
    import resource, sys
    import bn_keras, keras, tensorflow as tf
    from bn_keras import on_disk
    from bn_keras.data.reading import tf_data

    tf_data.MAX_BYTES, on_disk.PIECE_BYTES = 5 * 10**6, 4 * 10**6

    def build(normalizer):
        return keras.Sequential([keras.Input((2500,)), normalizer(), keras.layers.Dense(2)])

    def batch(number):
        x = tf.random.stateless_normal((500, 2500), tf.stack([number, 0]))
        return x, tf.cast(x[:, 0] > 0, tf.int64)

    for examples in (1_000, 10_000):  # 10 and 100 MB
        data = tf.data.Dataset.range(examples // 500).map(batch).unbatch().batch(500)
        report = bn_keras.compare(
            build, data, ["batch"], seeds=1, steps=20, batch_size=64, progress=False,
            measure=["population_loss"], logdir=sys.argv[1] + str(examples),
        )
        assert "streamed" in report.results[0].notes[0]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
"""


@pytest.mark.slow
def test_ten_times_the_data_do_not_need_more_memory(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is measured in other units here")
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / "runs")]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not ended.returncode, ended.stderr
    small, large = map(int, ended.stdout.split())
    assert large < small + 100, "megabytes; in memory it is more than 300"
