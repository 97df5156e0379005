"""Data: the shipped files against published sums, IDX files of every name, good and broken."""

import gzip
import re
import shutil
import struct
import tracemalloc
import zlib

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sizes_are_adjustable_and_the_splits_do_not_overlap():
    splits = data.load("mnist", train_size=100, validation_size=50, test_size=30)
    whole = data.load("mnist")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (100, 50, 30)
    np.testing.assert_array_equal(splits.validation.images, whole.validation.images[:50])
    np.testing.assert_array_equal(splits.train.images[0], whole.validation.images[50])


@pytest.mark.slow
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


# --- names of IDX files -------------------------------------------------------------------------


def rename(folder, pattern, replacement):
    for path in sorted(folder.iterdir()):
        path.rename(folder / re.sub(pattern, replacement, path.name))


NAMES = {
    "dots": (r"-(idx\d)", r".\1"),
    "dots and gzip": (r"-(idx\d.*?)(\.gz)?$", r".\1\2"),
    "EMNIST": (r"^(train|t10k)", r"emnist-letters-\1"),
    "EMNIST's test": (r"^(train|t10k)(.*)", lambda m: f"emnist-letters-{m[1][:5]}{m[2]}".replace(
        "t10k", "test")),
    "underscores": ("-", "_"),
    "gzip without its suffix": (r"\.gz$", ""),
    "plain with the suffix": (r"^(t10k.*)$", r"\1.gz"),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_names_that_tools_give_idx_files_are_known(case, folder):
    expected = data.load(f"idx:{folder}", validation_size=5)
    before = sorted(path.name for path in folder.iterdir())
    rename(folder, *NAMES[case])
    assert sorted(path.name for path in folder.iterdir()) != before
    splits = data.load(f"idx:{folder}", validation_size=5)
    assert splits.digest() == expected.digest() and not splits.notes


def test_of_several_sets_in_a_folder_one_is_named(folder):
    expected = data.load(f"idx:{folder}", validation_size=5)
    for path in sorted(folder.iterdir()):
        shutil.copy(path, folder / f"emnist-letters-{path.name}")
        path.rename(folder / f"emnist-digits-{path.name}")
    with pytest.raises(DataError, match="holds the sets emnist-digits, emnist-letters; name one"):
        data.load(f"idx:{folder}", validation_size=5)
    splits = data.load("idx:emnist-letters", str(folder), validation_size=5)
    assert splits.digest() == expected.digest()
    with pytest.raises(DataError, match="emnist-byclass: no such folder"):
        data.load(f"idx:{folder}/emnist-byclass")


def test_the_usual_names_come_before_others_and_unpacked_files_before_packed_ones(folder):
    expected = data.load(f"idx:{folder}", validation_size=5)
    for path in sorted(folder.iterdir()):
        (folder / f"other-{path.name}").write_bytes(b"")
        if path.suffix != ".gz":
            path.with_name(f"{path.name}.gz").write_bytes(b"")
    assert data.load(f"idx:{folder}", validation_size=5).digest() == expected.digest()


def test_a_missing_idx_file_is_named_with_what_the_folder_holds(folder):
    path = folder / FILES["test images"]
    path.rename(folder / "images \x1b[31m")
    path.mkdir()
    with pytest.raises(DataError) as refusal:
        data.load(f"idx:{folder}")
    message = str(refusal.value)
    assert f"{path}[.gz]: missing (test images)" in message
    assert r"the folder holds images \x1b[31m, t10k-images-idx3-ubyte" in message
    assert message.isprintable()


def test_a_folder_without_idx_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="missing .train images.; the folder holds nothing;"):
        data.load(f"idx:{tmp_path}")
    for number in range(20):
        (tmp_path / f"file{number:02}").touch()
    with pytest.raises(DataError, match="holds file00, .*, file07, …; name a folder"):
        data.load(f"idx:{tmp_path}")
    with pytest.raises(DataError, match="file03: not a folder"):
        data.load(f"idx:{tmp_path}/file03")
    with pytest.raises(DataError, match="no folder named"):
        data.load("idx:")


@pytest.mark.parametrize("dataset", ["idx:folder", "mnist"])
def test_files_that_may_not_be_read_are_named(dataset, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    where = mnist.SHIPPED if dataset == "mnist" else folder
    monkeypatch.setattr("io.open", refuse)  # pathlib's
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=f"{where}/train-.*: cannot be read .*Permission denied"):
        data.load(dataset.replace("folder", str(folder)))
    monkeypatch.setattr("os.listdir", refuse)
    if dataset != "mnist":
        with pytest.raises(DataError, match=f"{folder}: cannot be read .*Permission denied"):
            data.load(f"idx:{folder}")


# --- sizes and labels of IDX files --------------------------------------------------------------


def test_test_images_of_another_size_are_refused_with_both(folder):
    (folder / FILES["test images"]).write_bytes(idx_file(np.zeros((8, 5, 4))))
    with pytest.raises(DataError) as refusal:
        data.load(f"idx:{folder}")
    assert (
        "train-images-idx3-ubyte.gz: (4, 5) pixels an image, but (5, 4) in t10k-images-idx3-ubyte"
        in str(refusal.value)
    )


HEAD = struct.pack(">HBBIII", 0, 8, 3, 8, 4, 5)


@pytest.mark.parametrize(
    "head, message",
    [
        (HEAD, "holds more than 160 values; its header announces 160"),
        (b"", "starts with 00000000"),
        (struct.pack(">HBBIII", 0, 8, 3, 100 * 2**20, 32, 32), "expected 1 to 4294967296 in a"),
        (gzip.compress(HEAD + bytes(160)), "holds more than 160 values"),
    ],
    ids=["few announced", "zeros", "all announced", "behind a gzip"],
)
def test_a_file_of_100_gb_is_refused_at_once(head, message, folder):
    path = folder / FILES["test images"]
    path.write_bytes(head)
    with open(path, "r+b") as stream:
        stream.truncate(100 * 2**30)  # sparse: it takes no space
    tracemalloc.start()
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{message}"):
        data.load(f"idx:{folder}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, message",
    [
        ((8, 4, 5), "holds more than 160 values"),
        ((8, 3000, 3000), "72000000 values; expected 1 to 67108864 in a file of"),
        ((2**16, 2**10, 2**10), "68719476736 values; expected 1 to 67108864 in a file of"),
    ],
    ids=["few announced", "all announced", "more announced"],
)
def test_a_gzip_bomb_is_refused_by_its_header(shape, message, folder):
    path = folder / FILES["test images"]
    packer = zlib.compressobj(wbits=31)
    content = packer.compress(struct.pack(">HBBIII", 0, 8, 3, *shape))
    zeros = bytes(2**20)
    content += b"".join(packer.compress(zeros) for _ in range(70)) + packer.flush()
    path.write_bytes(content)
    assert len(content) < 2**18
    tracemalloc.start()
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{message}"):
        data.load(f"idx:{folder}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_blank_images_are_no_gzip_bomb(folder):
    blank = np.zeros((8, 4, 5))
    (folder / FILES["test images"]).write_bytes(gzip.compress(idx_file(blank)))
    assert not data.load(f"idx:{folder}", validation_size=5).test.images.any()


def write_labels(folder, train, test):
    (folder / f"{FILES['train labels']}.gz").write_bytes(gzip.compress(idx_file(np.array(train))))
    (folder / FILES["test labels"]).write_bytes(idx_file(np.array(test)))


@pytest.mark.parametrize(
    "train, test, classes, said",
    [
        (np.arange(20) % 3, np.arange(8) % 3, 3, None),
        (np.arange(20) % 2, np.arange(8) % 3, 3, None),
        (np.arange(20) % 3 + 1, np.arange(8) % 3 + 1, 3, "1 to 3; .* classes 0 to 2"),
        (np.arange(20) % 2 * 7, np.arange(8) % 2 * 7, 2, "0, 7; .* classes 0 to 1"),
        (np.arange(20) % 4 + 1, np.arange(8) % 2 * 8 + 1, 5, "1 to 4, 9; .* classes 0 to 4"),
        (np.arange(20) * 2, np.arange(8) * 2, 20, "0, 2, 4, 6, 8, 10, 12, …, 38; .* 0 to 19"),
    ],
    ids=["from 0", "one of test alone", "from 1", "a gap", "gap and from 1", "many gaps"],
)
def test_labels_become_classes_from_0_and_a_change_is_said(train, test, classes, said, folder):
    write_labels(folder, train, test)
    splits = data.load(f"idx:{folder}", validation_size=20 - 1)
    assert splits.classes == classes
    found = np.unique(np.concatenate([train, test]))
    np.testing.assert_array_equal(np.sort(found[splits.test.labels]), np.sort(test))
    labels = np.concatenate([splits.validation.labels, splits.train.labels])
    assert sorted(found[labels]) == sorted(train)
    assert splits.test.labels.dtype == splits.train.labels.dtype == np.int32
    if said is None:
        assert splits.notes == ()
    else:
        (note,) = splits.notes
        assert re.search(f"{folder}: its labels are {said}", note) and note.isprintable()


def test_labels_of_one_class_are_refused(folder):
    write_labels(folder, [7] * 20, [7] * 8)
    with pytest.raises(DataError, match=f"{folder}: every label is 7; expected .* two classes"):
        data.load(f"idx:{folder}")
