"""`tfds:`: sets that are really prepared on disk, good, damaged, unfit and absent."""

import functools
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from bn_keras import BatchNorm, data, tf_datasets
from bn_keras.data.splits import DataError
from bn_keras.surgery.recalibrate import recalibrate

# TFDS 4.9 opens files and event loops that it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
PREPARED = 500  # images of MNIST, of each split


def store(folder, name, images, labels=None, feature=None, features=None):
    """Prepares a set of three classes by TFDS's own writer; the first 8 examples are its test set.

    Args:
        folder: data_dir.
        images: shape (n, …).
        labels: None counts 0, 1, 2, 0, …
        feature: of the image; None is Image, of the images' shape and type.
        features: of a set whose examples are other than an image and a label.
    """
    import tensorflow_datasets as tfds

    labels = np.arange(len(images)) % 3 if labels is None else labels
    feature = feature or tfds.features.Image(shape=images.shape[1:], dtype=images.dtype)
    columns = {"image": images, "label": labels.astype(np.int64)}
    features = features or {"image": feature, "label": tfds.features.ClassLabel(num_classes=3)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version="1.0.0", data_dir=folder, features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(
                {key: columns[key][:count] for key in features}
            )
            for split, count in (("train", len(images)), ("test", 8))
        },
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 1)).astype(np.uint8)
UNIT = np.random.default_rng(0).random((20, 4, 5, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a small set, tfds:tiny."""
    folder = tmp_path_factory.mktemp("tiny")
    store(folder, "tiny", IMAGES)
    return folder


def by_bytes(images):
    """In an order that does not depend on the reader's."""
    return sorted(image.tobytes() for image in images)


def load(name, folder):
    splits = data.load(f"tfds:{name}", str(folder), validation_size=5)
    return splits, np.concatenate([splits.train.images, splits.validation.images])


def test_every_dataset_is_read_by_iterators_that_end_at_once(tiny, monkeypatch):
    seen, iterate = [], tf.data.Dataset.__iter__

    def iterated(dataset):
        seen.append(dataset.options().autotune.enabled)
        return iterate(dataset)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", iterated)
    load("tiny", tiny)
    assert seen
    x = tf.data.Dataset.from_tensor_slices(np.eye(4, dtype="float32")).batch(2)
    pairs = tf.data.Dataset.zip(x, x.map(lambda rows: rows[:, 0]))
    data.from_python((pairs, pairs))
    recalibrate(keras.Sequential([keras.Input((4,)), BatchNorm()]), x)
    assert len(seen) > 3 and set(seen) == {False}
    options = tf.data.Options()
    options.autotune.enabled = True  # TensorFlow logs a warning where that is changed
    asked_for = x.with_options(options)
    assert tf_datasets.untuned(asked_for) is asked_for


@pytest.mark.slow
def test_a_prepared_set_is_read_as_it_was_written(tiny):
    splits, images = load("tiny", tiny)
    assert by_bytes(images) == by_bytes(IMAGES) and images.dtype == np.uint8
    assert by_bytes(splits.test.images) == by_bytes(IMAGES[:8])
    label_of = {image.tobytes(): number % 3 for number, image in enumerate(IMAGES)}
    for split in (splits.train, splits.validation, splits.test):
        assert [label_of[image.tobytes()] for image in split.images] == split.labels.tolist()
    assert (splits.classes, splits.scale, splits.notes) == (3, 1 / 255, ())


# --- damage -------------------------------------------------------------------------------------

FILES = {
    "records": "tiny-train.tfrecord-00000-of-00001",
    "test records": "tiny-test.tfrecord-00000-of-00001",
    "info": "dataset_info.json",
    "features": "features.json",
}
GARBAGE = np.random.default_rng(1).bytes(500)
DAMAGE = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-5],
    "half": lambda content: content[:len(content) // 2],
    "garbage": lambda content: GARBAGE,
    "text": lambda content: b"\x1b[31mhello",
    "other JSON": lambda content: b"[1, 2]",
    "NUL": lambda content: bytes(len(content)),
}


def damaged(tiny, tmp_path, file, change):
    shutil.copytree(tiny / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "1.0.0" / file
    content = change(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_set_is_refused_with_its_folder_and_the_remedy(file, damage, tiny, tmp_path):
    damaged(tiny, tmp_path, FILES[file], DAMAGE[damage])
    with pytest.raises(DataError) as refusal:
        load("tiny", tmp_path)
    message = str(refusal.value)
    assert message.startswith("tfds:tiny: ") and f"{tmp_path}/tiny" in message
    assert "delete that folder and prepare the set again" in message
    assert "{{" not in message and message.isprintable() and len(message) < 700


@pytest.mark.parametrize(
    "count, message",
    [(30, "cannot be read .*30"), (12, "cannot be read .*12"), (-5, "cannot be read"),
     (0, "cannot be read"), (10**12, "1000000000008 images of shape .* do not fit in memory")],
)
def test_a_count_of_examples_that_is_not_theirs_is_refused(count, message, tiny, tmp_path):
    def change(content):
        assert content.count(b'"20"') == 1
        return content.replace(b'"20"', f'"{count}"'.encode())

    damaged(tiny, tmp_path, FILES["info"], change)
    with pytest.raises(DataError, match=f"tfds:tiny: .*{message}"):
        load("tiny", tmp_path)


# --- pixels and labels of other kinds -----------------------------------------------------------


@pytest.mark.slow
def test_floats_from_0_to_1_stay_as_they_are(tmp_path):
    store(tmp_path, "floats", UNIT)
    splits, images = load("floats", tmp_path)
    assert by_bytes(images) == by_bytes(UNIT)
    assert images.dtype == np.float32 and splits.scale == 1 and splits.notes == ()


@pytest.mark.slow
def test_floats_to_255_are_divided_and_it_is_said(tmp_path):
    store(tmp_path, "floats", UNIT * 255)
    splits, images = load("floats", tmp_path)
    assert 0.9 < images.max() <= 1 and splits.scale == 1
    (note,) = splits.notes
    assert re.match("tfds:floats: its pixels are floats up to 25.*; they are divided by 255", note)


@pytest.mark.slow
@pytest.mark.parametrize(
    "images, received",
    [(UNIT - 0.5, "float32 from -0.49"), (UNIT * 1000, "float32 from .* to 99"),
     (np.where(UNIT > 0.9, np.float32(np.nan), UNIT), "float32 from nan")],
    ids=["negative", "large", "NaN"],
)
def test_floats_of_another_range_are_refused_with_it(images, received, tmp_path):
    store(tmp_path, "floats", images)
    with pytest.raises(DataError, match=f"tfds:floats: its pixels are {received}.*; expected"):
        load("floats", tmp_path)


@pytest.mark.slow
def test_a_set_without_labels_is_refused(tmp_path):
    store(tmp_path, "unlabelled", IMAGES, labels=np.full(20, -1))
    with pytest.raises(DataError, match="tfds:unlabelled: train label 0 is -1; expected 0 to 2"):
        load("unlabelled", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["varying shape", "no image", "text for an image"])
def test_an_unfit_set_is_refused_with_its_features(case, tmp_path):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(num_classes=3)
    features, message = {
        "varying shape": ({"image": tfds.features.Image(shape=(None, None, 1)), "label": label},
                          r"images of shape \(None, None, 1\)"),
        "no image": ({"label": label}, r"features are \['label'\] .* an 'image' of one fixed"),
        "text for an image": ({"image": tfds.features.Text(), "label": label},
                              r"images of shape \(\)"),
    }[case]
    images = IMAGES if case != "text for an image" else np.full(20, b"text")
    store(tmp_path, "unfit", images, feature=label, features=features)
    with pytest.raises(DataError, match=f"tfds:unfit: .*{message}"):
        load("unfit", tmp_path)


# --- sets that are not there --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifar10", r"tfds:cifar10: not prepared in .*download_and_prepare\(\)"),
        ("cifar_10", "no such set .*did you mean .*cifar10"),
        ("", "no set named"),
        ("mnist/nosuchconfig", "tfds:mnist/nosuchconfig: .*expected tfds:NAME or tfds:NAME/CONFIG"),
        ("mnist/a=b", "unexpected keyword argument 'a'"),
        ("mnist:99.0.0", "cannot be loaded at version 99.0.0"),
        ("huggingface:mnist", "huggingface:mnist is not a set of TFDS's own"),
        ("../x", "tfds:../x: "),
        ("~nouser", "tfds:~nouser: "),
        ("a\0b", r"tfds:a\\x00b: "),
    ],
)
def test_a_set_that_is_not_there_is_refused_at_once(name, message, tmp_path):
    with pytest.raises(DataError, match=message) as refusal:
        data.load(f"tfds:{name}", data_dir=str(tmp_path))
    assert "damaged" not in str(refusal.value), "nothing is there that could be"
    assert not any(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("place", ["file/x", "x" * 300], ids=["below a file", "too long"])
def test_mnist_that_cannot_be_prepared_is_refused_with_the_folder(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"tfds:mnist: cannot be prepared in {tmp_path}/{place}"):
        data.load("tfds:mnist", data_dir=str(tmp_path / place))


# --- MNIST, prepared by TFDS's own builder ------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Folder and splits of tfds:mnist, prepared from the first images of the shipped files."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    some = functools.partial(tfds.download.DownloadConfig, max_examples_per_split=PREPARED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download, "DownloadConfig", some)  # all 70,000 take 45 s
        return folder, data.load("tfds:mnist", data_dir=str(folder), validation_size=100)


@pytest.mark.slow
def test_mnist_is_prepared_without_a_network_and_equal_to_the_shipped(mnist):
    folder, splits = mnist
    shipped = data.load("mnist")
    images = np.concatenate([splits.validation.images, splits.train.images])
    labels = np.concatenate([splits.validation.labels, splits.train.labels])
    first = np.concatenate([shipped.validation.images, shipped.train.images])[:PREPARED]
    first_labels = np.concatenate([shipped.validation.labels, shipped.train.labels])[:PREPARED]
    for found, found_labels, wanted, wanted_labels in (
        (images, labels, first, first_labels),
        (splits.test.images, splits.test.labels,
         shipped.test.images[:PREPARED], shipped.test.labels[:PREPARED]),
    ):
        told, expected = (
            sorted((image.tobytes(), int(label)) for image, label in zip(*pairs, strict=True))
            for pairs in ((found, found_labels), (wanted, wanted_labels))
        )
        assert len(told) == PREPARED and told == expected
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert left < 1e6, "the extracted scratch files were left behind"


@pytest.mark.slow
def test_a_damaged_mnist_is_named_with_the_remedy(mnist, tmp_path):
    folder = tmp_path / "tfds"
    shutil.copytree(mnist[0], folder)
    (path,) = folder.rglob("mnist-train.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{folder}.* cannot be read .*prepare the set again"):
        data.load("tfds:mnist", data_dir=str(folder))
