"""Data: the shipped files against published sums, broken files, real TFDS sets on disk."""

import gzip
import re
import shutil
import struct

import numpy as np
import pytest

from bn_keras import data
from bn_keras.data import mnist
from bn_keras.data.idx import FILES
from bn_keras.data.splits import DataError, Source, Split, make_splits

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.fixture(scope="module")
def shipped():
    return data.load("mnist")


def idx_file(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small data set of four IDX files, train gzipped and test not."""
    rng = np.random.default_rng(0)
    for part, name in FILES.items():
        count = 20 if "train" in part else 8
        array = rng.integers(0, 3, (count, 4, 5) if "images" in part else count)
        content = idx_file(array)
        if "train" in part:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_shipped_mnist_has_the_published_sums_and_counts(shipped):
    train = np.concatenate([shipped.validation.images, shipped.train.images])
    labels = np.concatenate([shipped.validation.labels, shipped.train.labels])
    assert train.shape == (60000, 28, 28, 1) and train.dtype == np.uint8
    assert int(train.sum(dtype=np.int64)) == 1_567_298_545
    assert int(shipped.test.images.sum(dtype=np.int64)) == 264_923_200
    assert np.bincount(labels).tolist() == TRAIN_COUNTS
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "not in the file's order"
    assert len(shipped.train) == 55000 and len(shipped.validation) == 5000
    assert shipped.classes == 10


def test_sizes_are_adjustable_and_the_splits_do_not_overlap():
    splits = data.load("mnist", train_size=100, validation_size=50, test_size=30)
    whole = data.load("mnist")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (100, 50, 30)
    np.testing.assert_array_equal(splits.validation.images, whole.validation.images[:50])
    np.testing.assert_array_equal(splits.train.images[0], whole.validation.images[50])


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"train_size": 60000}, "train_size=60000: .* has 55000"),
        ({"validation_size": 60000}, "validation_size=60000: .* at most 59999"),
        ({"test_size": 10001}, "test_size=10001: .* has 10000"),
    ],
)
def test_asking_for_more_than_there_is_names_both_numbers(sizes, message):
    with pytest.raises(DataError, match=message):
        data.load("mnist", **sizes)


def test_a_set_in_class_order_is_shuffled_before_validation_is_taken():
    labels = np.repeat(np.arange(4), 50).astype(np.int32)
    split = Split(np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1), labels)
    first = make_splits(Source(split, split, 4), validation_size=40)
    again = make_splits(Source(split, split, 4), validation_size=40)
    assert len(np.unique(first.validation.labels)) == 4
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    both = np.concatenate([first.validation.images, first.train.images])
    assert len(np.unique(both)) == 200


@pytest.mark.parametrize("change", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("name", mnist.SHA256)
def test_a_damaged_mnist_file_is_named_with_the_remedy(change, name, tmp_path):
    for file in mnist.SHA256:
        shutil.copy(mnist.SHIPPED / file, tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(content if change == "altered" else content[:-100])
    with pytest.raises(DataError, match=f"{re.escape(str(path.with_suffix('')))}.*--data_dir"):
        data.load("mnist", data_dir=str(tmp_path))


def test_other_bytes_of_the_same_content_are_refused_too(tmp_path):
    for file in mnist.SHA256:
        shutil.copy(mnist.SHIPPED / file, tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match="t10k-labels.*altered or truncated .*f7ae60f92e00"):
        data.load("mnist", data_dir=str(tmp_path))


def test_idx_files_are_read_gzipped_or_not(folder):
    splits = data.load(f"idx:{folder}", validation_size=5)
    assert splits.train.images.shape == (15, 4, 5, 1) and splits.test.images.shape == (8, 4, 5, 1)
    assert splits.classes == 3


BROKEN = {
    "wrong magic": (lambda content: b"\x00\x00\x0b" + content[3:], "starts with 00000b03"),
    "too short": (lambda content: content[:-1], "holds 159 values.*announces 160"),
    "too long": (lambda content: content + b"x", "holds more than 160 values.*announces 160"),
    "no header": (lambda content: content[:7], "7 bytes; expected a header of 16"),
    "empty": (lambda content: b"", "0 bytes"),
    "huge": (lambda content: content[:4] + b"\xff" * 12, "announces the shape"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gz"])
def test_a_broken_idx_file_is_named_with_what_is_wrong(case, gzipped, folder):
    change, message = BROKEN[case]
    path = folder / FILES["test images"]
    content = change(path.read_bytes())
    if gzipped:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        data.load(f"idx:{folder}", validation_size=5)


def test_a_broken_gzip_stream_is_named(folder):
    path = folder / (FILES["train images"] + ".gz")
    for content in (b"\x1f\x8b no gzip", path.read_bytes()[:-12]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: cannot be read"):
            data.load(f"idx:{folder}", validation_size=5)


def test_images_without_their_labels_are_refused(folder):
    (folder / FILES["test labels"]).write_bytes(idx_file(np.zeros(7)))
    with pytest.raises(DataError, match="8 examples, but 7 in t10k-labels-idx1-ubyte"):
        data.load(f"idx:{folder}", validation_size=5)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """MNIST, really prepared by TFDS's own builder from the shipped files."""
    folder = tmp_path_factory.mktemp("tfds")
    return folder, data.load("tfds:mnist", data_dir=str(folder))


# TFDS 4.9 opens files and event loops that it leaves to the garbage collector.
quiet_tfds = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.mark.slow
@quiet_tfds
def test_tfds_mnist_is_prepared_without_a_network_and_equal_to_the_shipped(tfds_folder, shipped):
    folder, splits = tfds_folder
    assert int(splits.test.images.sum(dtype=np.int64)) == 264_923_200
    images = np.concatenate([splits.validation.images, splits.train.images])
    assert int(images.sum(dtype=np.int64)) == 1_567_298_545
    labels = np.concatenate([splits.validation.labels, splits.train.labels])
    assert np.bincount(labels).tolist() == TRAIN_COUNTS
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert left < 30e6, "the extracted scratch files were left behind"


@pytest.mark.slow
@quiet_tfds
def test_a_damaged_tfds_set_is_named_with_the_remedy(tfds_folder, tmp_path):
    folder = tmp_path / "tfds"
    shutil.copytree(tfds_folder[0], folder)
    (path,) = folder.rglob("mnist-train.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{folder}.* cannot be read .*prepare the set again"):
        data.load("tfds:mnist", data_dir=str(folder))


@quiet_tfds
@pytest.mark.parametrize(
    "name, message",
    [
        ("tfds:cifar10", r"tfds:cifar10: not prepared in .*download_and_prepare\(\)"),
        ("tfds:cifar_10", "no such set .*did you mean .*cifar10"),
        ("tfds:", "no set named"),
        ("tfds:mnist/nosuchconfig", "tfds:mnist/nosuchconfig: "),
    ],
)
def test_a_tfds_set_that_is_not_there_is_refused_at_once(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        data.load(name, data_dir=str(tmp_path))
    assert not any(tmp_path.iterdir()), "something was written"


@quiet_tfds
@pytest.mark.parametrize(
    "features, message",
    [
        ({"image": (None, None, 3), "label": 2}, r"images of shape \(None, None, 3\)"),
        ({"text": None, "label": 2}, "an 'image' of one fixed shape"),
    ],
    ids=["varying shape", "no image"],
)
def test_an_unfit_tfds_set_is_refused_with_its_features(features, message, tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    kinds = {}
    for name, value in features.items():
        kinds[name] = (
            tfds.features.ClassLabel(num_classes=value) if name == "label"
            else tfds.features.Text() if name == "text" else tfds.features.Image(shape=value)
        )
    example = {
        "image": np.zeros((4, 4, 3), np.uint8), "label": 1, "text": "a",
    }
    examples = tf.data.Dataset.from_tensors({name: example[name] for name in features})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="unfit", version="1.0.0", data_dir=tmp_path,
        features=tfds.features.FeaturesDict(kinds),
        split_datasets={"train": examples, "test": examples},
    )
    with pytest.raises(DataError, match=message):
        data.load("tfds:unfit", data_dir=str(tmp_path))
