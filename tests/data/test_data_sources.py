"""Data that users bring: CSV tables and pickles, good, broken, hostile and random; toy points."""

import copyreg
import csv
import gzip
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from make import ROOT
from pickle_attacks import ARMED, ATTACKS, PATH, STATE, array, dtype, entry, text
from processes import run

from bn_keras import data
from bn_keras.data import not_mnist
from bn_keras.data.reading import files
from bn_keras.data.reading.csv import read_csv
from bn_keras.data.reading.idx import PIECE, read_idx
from bn_keras.data.reading.safe_pickle import NAMES, load_arrays
from bn_keras.data.regression import quadratic
from bn_keras.data.splits import DataError

assert not_mnist  # loaded before a test compares the loaded modules
HERE = pathlib.Path(__file__).parent


# --- csv:PATH ---------------------------------------------------------------------------------


def table(rows=20, side=3, classes=4):
    """Labels in order of class, then pixels that tell every row from every other."""
    values = np.random.default_rng(0).integers(0, 256, (rows, 1 + side * side))
    values[:, 0] = np.arange(rows) * classes // rows
    values[:, 1] = np.arange(rows)
    return values


def write_csv(path, values, **dialect):
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, **dialect)
        writer.writerow(["label"] + [f"pixel{n}" for n in range(values.shape[1] - 1)])
        writer.writerows(values.tolist())
    return path


def test_a_csv_file_is_read_as_it_was_written(tmp_path):
    values = table()
    write_csv(tmp_path / "train.csv", values)
    splits = data.load("csv:train.csv", data_dir=str(tmp_path), validation_size=5)
    assert splits.train.images.shape == (13, 3, 3, 1) and splits.train.images.dtype == np.uint8
    assert (len(splits.validation), len(splits.test), splits.classes) == (5, 2, 4)
    parts = (splits.train, splits.validation, splits.test)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    rows = images[:, 0, 0, 0]
    assert sorted(rows) == list(range(20)), "a row is lost or in two sets"
    np.testing.assert_array_equal(images.reshape(20, 9), values[rows, 1:])
    np.testing.assert_array_equal(labels, values[rows, 0])
    assert labels.dtype == np.int32


def test_the_test_set_of_a_csv_file_is_drawn_and_always_the_same(tmp_path):
    path = write_csv(tmp_path / "train.csv", table(rows=200))
    first, again = (data.load(f"csv:{path}", validation_size=50) for _ in range(2))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    for part in (first.test, first.validation):
        assert len(np.unique(part.labels)) == 4, "cut off a table in order of class"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\r"),
        lambda content: content.rstrip(b"\n"),
        lambda content: content.replace(b",", b", ").replace(b", pixel", b",pixel"),
    ],
    ids=["byte order mark", "CRLF", "CR", "no newline at the end", "spaces"],
)
def test_other_ways_to_write_the_same_table_are_read(change, tmp_path):
    path = write_csv(tmp_path / "train.csv", table(), lineterminator="\n")
    content = path.read_bytes()
    assert change(content) != content
    path.write_bytes(change(content))
    read = read_csv(path)
    np.testing.assert_array_equal(read.labels, table()[:, 0])
    np.testing.assert_array_equal(read.pixels, table()[:, 1:])


HEADER = b"label,pixel0,pixel1,pixel2,pixel3\n"
ROW = b"7,0,1,2,255\n"
FIELD_EXPECTED = "expected a whole number from 0 to 255"
BROKEN_ROWS = {
    "256": (b"7,0,256,2,3\n", f"column 3 (pixel1): received '256'; {FIELD_EXPECTED}"),
    "negative": (b"7,0,1,-2,3\n", f"column 4 (pixel2): received '-2'; {FIELD_EXPECTED}"),
    "float": (b"7,1.0,1,2,3\n", f"column 2 (pixel0): received '1.0'; {FIELD_EXPECTED}"),
    "exponent": (b"7,1e2,1,2,3\n", f"column 2 (pixel0): received '1e2'; {FIELD_EXPECTED}"),
    "NaN": (b"7,0,1,2,nan\n", f"column 5 (pixel3): received 'nan'; {FIELD_EXPECTED}"),
    "missing": (b"7,,1,2,3\n", f"column 2 (pixel0): received ''; {FIELD_EXPECTED}"),
    "quoted": (b'7,"0",1,2,3\n', f"column 2 (pixel0): received '\"0\"'; {FIELD_EXPECTED}"),
    "quoted comma": (b'7,"0,1",2,3\n', f"column 2 (pixel0): received '\"0'; {FIELD_EXPECTED}"),
    "comment": (b"7,0,1,2,3#\n", f"column 5 (pixel3): received '3#'; {FIELD_EXPECTED}"),
    "NUL": (b"7,0,\0001,2,3\n", "column 3 (pixel1): received '\\x001'; " + FIELD_EXPECTED),
    "a label": (b"A,0,1,2,3\n", f"column 1 (label): received 'A'; {FIELD_EXPECTED}"),
    "a letter of another script": ("7,0,1,2,\u0663\n".encode(), "(pixel3): received '\u0663'"),
    "many digits": (b"7," + b"9" * 5000 + b",1,2,3\n", f"received '{'9' * 40}'; {FIELD_EXPECTED}"),
    "blank": (b"\n", "received a blank line; expected 5 columns"),
    "only spaces": (b"  \n", "received a blank line; expected 5 columns"),
    "short": (b"7,0,1,2\n", "received 4 columns; expected 5 columns"),
    "long": (b"7,0,1,2,3,4\n", "received 6 columns; expected 5 columns"),
    "semicolons": (b"7;0;1;2;3\n", "received 1 columns; expected 5 columns"),
    "endless": (b"7,0,1,2," + b"0" * 2**20 + b"\n", "received 1048576 characters or more"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
@pytest.mark.parametrize("row", [2, 9, 14], ids=["first", "middle", "last"])
def test_a_broken_row_is_named_with_its_field(case, row, tmp_path):
    content, message = BROKEN_ROWS[case]
    path = tmp_path / "train.csv"
    path.write_bytes(HEADER + ROW * (row - 2) + content + ROW * (14 - row))
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        read_csv(path)
    assert f"{path}: row {row} (the header is row 1)" in str(refusal.value)
    assert "Mend that row, or name the unpacked train.csv" in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_columns_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"label,p,p,p,p\n" + b"7,1,2,3,x\n")
    with pytest.raises(DataError, match=r"row 2 .*column 5 \(p\): received 'x'"):
        read_csv(path)


BROKEN_CSV = {
    "test.csv": (HEADER.partition(b",")[2] + ROW,
                 "received 'pixel0' as the first column and 'pixel3' as the last; expected 'la"),
    "pandas index": (b",label,a,b,c\n" + b"0," + ROW, "leave it out with index=False"),
    "escape codes": (b"\x1b[2Jlabel,a\n", r"received '\x1b[2Jlabel' as the first column"),
    "only labels": (b"label\n" + b"7\n" * 12, "received 0 columns beside the label; expected a sq"),
    "no square": (b"label,a,b,c\n" + b"7,1,2,3\n" * 12, "received 3 columns beside the label"),
    "three channels": (b"7,1,2,3\n" * 12, "received 3 columns beside the label; expected a square"),
    "only a header": (HEADER, "0 rows of images; expected at least 10"),
    "few rows": (HEADER + 9 * ROW, "9 rows of images; expected at least 10"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\x00" * 9, "a gzip archive; unpack it"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00", "a zip archive; unpack it"),
    "late binary": (HEADER + 5000 * ROW + b"\xff\xfe", "holds bytes that are no text"),
    "UTF-16": (HEADER.decode().encode("utf-16"), "holds bytes that are no text"),
    "one endless line": (b"x" * 2**21, "received 1048576 characters or more"),
    "NUL bytes": (b"\0" * 100, "received '\\x00\\x00"),
}


@pytest.mark.parametrize("case", BROKEN_CSV)
def test_another_file_than_a_table_of_images_is_refused(case, tmp_path):
    content, message = BROKEN_CSV[case]
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{re.escape(message)}"):
        read_csv(path)


def header_of(kind, pixels=9):
    names = [f"pixel{n}" for n in range(pixels)]
    return {
        "quoted": ",".join(f'"{name}"' for name in ["label", *names]),
        "in capitals": ",".join(["Label", *names]),
        "class": ",".join(["class", *names]),
        "pandas numbers": ",".join(str(n) for n in range(pixels + 1)),
        "label last": ",".join([*names, "label"]),
        "class last, quoted": ",".join(f'"{name}"' for name in [*names, "class"]),
        "none": None,
        "escape codes": ",".join(["label", *(f"\x1b[31m{name}" for name in names)]),
    }[kind]


@pytest.mark.parametrize("kind", [
    "quoted", "in capitals", "class", "pandas numbers", "label last", "class last, quoted",
    "none", "escape codes",
])
def test_the_header_and_the_place_of_the_label_may_differ(kind, tmp_path):
    values, header = table(), header_of(kind)
    if "last" in kind:
        values = np.roll(values, -1, axis=1)
    rows = [",".join(map(str, row)) for row in values.tolist()]
    path = tmp_path / "train.csv"
    path.write_text("\n".join([header, *rows] if header else rows) + "\n")
    splits = data.load(f"csv:{path}", validation_size=5)
    expected = data.load(f"csv:{write_csv(tmp_path / 'plain.csv', table())}", validation_size=5)
    assert splits.digest() == expected.digest()
    if kind in ("none", "pandas numbers"):
        (note,) = splits.notes
        assert note.startswith(f"{path}: no header line names its columns, so the first one is")
    else:
        assert splits.notes == ()


def test_a_broken_row_of_a_table_without_header_is_named(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(ROW * 11 + b"7,0,256,2,3\n")
    with pytest.raises(DataError, match=r"row 12 \(there is no header\): column 3: rec.* '256'"):
        read_csv(path)
    path.write_bytes(b"7,0,256,2,3\n" + ROW * 11)
    with pytest.raises(DataError, match=r"row 1 \(there is no header\): column 3: rec.* '256'"):
        read_csv(path)


def test_a_table_without_header_whose_label_cannot_be_first_is_refused(tmp_path):
    values = table()
    values[:, :2] = 0
    path = tmp_path / "train.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in values.tolist()))
    with pytest.raises(DataError, match="every label is 0; .* put a header line on top: pixel0,"):
        data.load(f"csv:{path}")


def test_labels_of_a_table_that_start_at_1_are_renumbered_and_it_is_said(tmp_path):
    values = table()
    expected = data.load(f"csv:{write_csv(tmp_path / 'plain.csv', values)}", validation_size=5)
    values[:, 0] += 1
    splits = data.load(f"csv:{write_csv(tmp_path / 'train.csv', values)}", validation_size=5)
    assert splits.digest() == expected.digest() and splits.classes == 4
    assert splits.notes == (
        f"{tmp_path / 'train.csv'}: its labels are 1 to 4; they are taken as the classes 0 to 3, "
        "in that order.",
    )


def test_text_of_a_table_cannot_reach_the_terminal_as_a_command(tmp_path):
    path = tmp_path / "train \x1b[2J.csv"
    path.write_bytes("label,\x1b]0;a\x07,\u202eb,\x9bc,d\n".encode() + ROW * 12)
    for column in range(1, 5):
        row = ["7", "0", "0", "0", "0"]
        row[column] = "\x1b[31m"
        path.write_bytes("label,\x1b]0;a\x07,\u202eb,\x9bc,d\n".encode() + ",".join(row).encode())
        with pytest.raises(DataError, match=r"train \\x1b\[2J.csv: row 2") as refusal:
            data.load(f"csv:{path}")
        assert str(refusal.value).isprintable()


# --- what csv: and notmnist: share --------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["csv", "notmnist"])
def test_a_path_that_is_no_usable_file_is_refused_at_once(dataset, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"x" * 101)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    for argument, message in {
        "": f"no file named; expected {dataset}:PATH",
        "absent": "absent: no such file; expected .*, named as " + dataset,
        ".": "not a file",
        "pipe": "pipe: not a file",
        "empty": "empty: 0 bytes; expected 1 to 100",
        "large": "large: 101 bytes; expected 1 to 100",
        "a\0b": r"^a\\x00b: not a path",
        "~nosuchuser/file": "there is no user 'nosuchuser' with a home folder",
        "http://x": "not a path",
        "x" * 300: "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            data.load(f"{dataset}:{argument}", data_dir=str(tmp_path))


@pytest.mark.parametrize("dataset", ["csv", "notmnist"])
def test_a_file_that_cannot_be_opened_is_named(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="file: cannot be read .*Permission denied"):
        data.load(f"{dataset}:file", data_dir=str(tmp_path))


# --- notmnist:PATH ------------------------------------------------------------------------------


def letters():
    """A dict as in notMNIST.pickle, and the pixels that it was made from."""
    rng = np.random.default_rng(0)
    arrays, pixels = {}, {}
    for part, count in {"train": 12, "valid": 5, "test": 4}.items():
        pixels[part] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{part}_dataset"] = ((pixels[part] - 127.5) / 255).astype(np.float32)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count).astype(np.int32)
    return arrays, pixels


def write_pickle(folder, arrays, protocol=2):
    path = folder / "notMNIST.pickle"
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_not_mnist_is_read_and_its_own_validation_images_validate(protocol, tmp_path):
    arrays, pixels = letters()
    path = write_pickle(tmp_path, arrays, protocol)
    splits = data.load(f"notmnist:{path}", validation_size=5)
    parts = {"train": splits.train, "valid": splits.validation, "test": splits.test}
    for part, split in parts.items():
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.images, pixels[part][..., np.newaxis])
        np.testing.assert_array_equal(split.labels, arrays[f"{part}_labels"])
    assert splits.classes == 10


def test_every_pixel_value_comes_back_from_its_float(tmp_path, monkeypatch):
    monkeypatch.setattr("bn_keras.data.not_mnist.CHUNK", 3)
    arrays, _ = letters()
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 4, 4)
    for part in ("train", "valid", "test"):
        arrays[f"{part}_dataset"] = ((pixels.astype(np.float32) - 127.5) / 255).astype(np.float32)
        arrays[f"{part}_labels"] = np.arange(16) % 10
    splits = data.load(f"notmnist:{write_pickle(tmp_path, arrays)}", validation_size=16)
    np.testing.assert_array_equal(splits.train.images[..., 0], pixels)


def changed(name, change):
    def apply(arrays):
        arrays[name] = change(arrays[name])
    return apply


def put(value, *place):
    def change(array):
        array = array.copy()
        array[place] = value
        return array
    return change


UNFIT = {
    "no entry": (lambda a: a.pop("valid_labels"),
                 "holds test_dataset, .*; expected valid_labels too"),
    "nothing": (lambda a: a.clear(), "holds nothing; expected train_dataset too"),
    "NaN": (changed("train_dataset", put(np.nan, 7, 3, 4)),
            r"train_dataset\[7, 3, 4\] is nan; expected pixels from -0.5 to 0.5"),
    "infinite": (changed("valid_dataset", put(-np.inf, 1, 0, 0)),
                 r"valid_dataset\[1, 0, 0\] is -inf"),
    "too bright": (changed("test_dataset", put(0.51, 0, 0, 1)),
                   r"test_dataset\[0, 0, 1\] is 0.5"),
    "0 to 255": (changed("train_dataset", lambda a: (a + 0.5) * 255), r"expected pixels from -0.5"),
    "bytes": (changed("train_dataset", lambda a: a.astype(np.uint8)), "train_dataset is uint8"),
    "flat": (changed("test_dataset", lambda a: a.reshape(4, 784)),
             r"test_dataset is float32 of shape \(4, 784\); expected floats of shape \(n, 28"),
    "no images": (changed("train_dataset", lambda a: a[:0]), r"float32 of shape \(0, 28, 28\)"),
    "no pixels": (changed("train_dataset", lambda a: a[:, :0]), r"float32 of shape \(12, 0, 28\)"),
    "another size": (changed("test_dataset", lambda a: a[:, 2:]),
                     r"images of the sizes \[\(26, 28\), \(28, 28\)\]; expected one size"),
    "one label less": (changed("train_labels", lambda a: a[1:]),
                       "12 images in train_dataset but 11 labels in train_labels"),
    "label 10": (changed("test_labels", put(10, 2)), r"test_labels\[2\] is 10; expected 0 to 9"),
    "label -1": (changed("test_labels", put(-1, 3)), r"test_labels\[3\] is -1; expected 0 to 9"),
    "one-hot labels": (changed("train_labels", lambda a: np.eye(10)[a].astype(int)),
                       r"train_labels is int64 of shape \(12, 10\); expected whole numbers"),
    "float labels": (changed("train_labels", lambda a: a.astype(np.float32)),
                     "train_labels is float32"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_other_content_than_not_mnist_is_named(case, tmp_path, monkeypatch):
    monkeypatch.setattr("bn_keras.data.not_mnist.CHUNK", 5)
    change, message = UNFIT[case]
    arrays, _ = letters()
    change(arrays)
    path = write_pickle(tmp_path, arrays)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{message}"):
        data.load(f"notmnist:{path}", validation_size=5)


# --- arrays out of pickles ----------------------------------------------------------------------

# What Python 2.7.18 with NumPy 1.16.6 wrote, cPickle, protocols 0 to 2.
PYTHON_2 = [
    b"(dp1\nS'a'\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntS'b'\ntR"
    b"p4\n(I1\n(I2\nI2\ntcnumpy\ndtype\np5\n(S'f4'\nI0\nI1\ntRp6\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    b"I00\nS'\\x00\\x00\\x00\\x00\\x00\\x00\\xc0\\xbf\\x00\\x00@@\\x00\\x00\\x80@'\ntbsS'b'\ng2"
    b"\n(g3\n(I0\ntS'b'\ntRp7\n(I1\n(I2\ntg5\n(S'i2'\nI0\nI1\ntRp8\n(I3\nS'>'\nNNNI-1\nI-1\nI0\n"
    b"tbI00\nS'\\x00\\x07\\x01,'\ntbs.",
    b'}q\x01(U\x01acnumpy.core.multiarray\n_reconstruct\nq\x02(cnumpy\nndarray\nq\x03(K\x00tU'
    b'\x01btRq\x04(K\x01(K\x02K\x02tcnumpy\ndtype\nq\x05(U\x02f4K\x00K\x01tRq\x06(K\x03U\x01<NNN'
    b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU\x10\x00\x00\x00\x00\x00\x00\xc0\xbf\x00'
    b'\x00@@\x00\x00\x80@tbU\x01bh\x02(h\x03(K\x00tU\x01btRq\x07(K\x01(K\x02th\x05(U\x02i2K\x00K'
    b'\x01tRq\x08(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU\x04\x00\x07\x01,'
    b'tbu.',
    b'\x80\x02}q\x01(U\x01acnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K'
    b'\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq'
    b'\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10\x00\x00\x00\x00\x00'
    b'\x00\xc0\xbf\x00\x00@@\x00\x00\x80@tbU\x01bh\x02h\x03K\x00\x85U\x01b\x87Rq\x07(K\x01K\x02'
    b'\x85h\x05U\x02i2K\x00K\x01\x87Rq\x08(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00'
    b'tb\x89U\x04\x00\x07\x01,tbu.',
]


@pytest.mark.parametrize("content", PYTHON_2, ids=["protocol 0", "protocol 1", "protocol 2"])
def test_arrays_that_python_2_wrote_are_read(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    arrays = load_arrays(tmp_path / "file")
    np.testing.assert_array_equal(arrays["a"], np.array([[0, -1.5], [3, 4]], np.float32))
    np.testing.assert_array_equal(arrays["b"], [7, 300])
    assert arrays["a"].dtype == "<f4" and arrays["b"].dtype == ">i2"


def renamed(content, old, new):
    """The pickle with NumPy's private package named as another NumPy names it."""
    def counted(name):
        return b"\x8c" + struct.pack("<B", len(name)) + name  # a text of protocol 4 and 5

    for module in (b".multiarray", b".numeric"):
        content = content.replace(counted(old + module), counted(new + module))
        content = content.replace(b"c" + old + module, b"c" + new + module)
    if content[2:3] == b"\x95":  # the one FRAME, all that follows it
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    return content


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"], ids=["NumPy 1", "NumPy 2"])
def test_arrays_of_every_kind_come_back_equal(protocol, core, tmp_path):
    grid = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    written = {
        "C": grid, "Fortran": np.asfortranarray(grid), "strided": grid[:, ::2, ::-1],
        "big-endian": grid.astype(">i4"), "bytes": np.arange(256, dtype=np.uint8),
        "none": np.zeros((0, 28, 28), np.float32), "one": np.array(3, np.int64),
        "quotes \\ ' \" \n \u20ac": np.ones(3, np.int16),
    }
    content = pickle.dumps(written, protocol=protocol)
    for other in {b"numpy.core", b"numpy._core"} - {core}:
        content = renamed(content, other, core)
        assert other + b"." not in content and core + b"." in content
    (tmp_path / "file").write_bytes(content)
    arrays = load_arrays(tmp_path / "file")
    assert list(arrays) == list(written)
    for name, array_written in written.items():
        np.testing.assert_array_equal(arrays[name], array_written)
        assert arrays[name].dtype == array_written.dtype


def dtypes():
    return [
        (np.dtype(code).str, np.dtype(code).byteorder, np.dtype(code).fields, np.dtype(code).flags)
        for code in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "O", "bool")
    ]


@pytest.mark.filterwarnings("ignore")  # of files that the attacks leave open
def test_an_attack_that_counts_as_armed_hits_a_plain_unpickler(tmp_path):
    for number, name in enumerate(ARMED):
        marker = str(tmp_path / f"marker{number}").ljust(len(PATH), "_")
        content = ARMED[name][0].replace(PATH, marker.encode())
        try:
            pickle.loads(content)
        except Exception:  # after the harm is done
            pass
        assert os.path.exists(marker), name


@pytest.mark.parametrize("case", ATTACKS)
def test_a_hostile_pickle_is_refused_by_name_and_leaves_no_trace(case, tmp_path, monkeypatch):
    content, refused = ATTACKS[case]
    marker = str(tmp_path / "marker").ljust(len(PATH), "_")
    assert len(marker) == len(PATH)
    path = tmp_path / "notMNIST.pickle"
    path.write_bytes(content.replace(PATH, marker.encode()))
    before = dtypes(), set(sys.modules), dict(NAMES)
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("os", "system"))
    tracemalloc.start()
    with pytest.raises(DataError, match=refused) as refusal:
        data.load(f"notmnist:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "expected a dict of NumPy arrays" in message
    assert len(message) < 800
    assert not os.path.exists(marker) and os.listdir(tmp_path) == ["notMNIST.pickle"]
    assert (dtypes(), set(sys.modules), dict(NAMES)) == before
    assert peak < 5e6, f"{peak} bytes for a file of {len(content)}"


def test_a_broken_escape_is_refused_where_warnings_are_not_shown(tmp_path):
    (tmp_path / "file").write_bytes(b"S'\\d'\n.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="invalid escape sequence"):
            load_arrays(tmp_path / "file")


def test_the_attacks_are_many():
    assert len(ATTACKS) > 100 and len(ARMED) > 20


def test_a_byte_order_set_in_a_file_leaves_the_shared_dtype_alone(tmp_path):
    content = entry(array((1,), text(b"\0" * 7 + b"\1"), dtype(b"i8", STATE)))
    (tmp_path / "file").write_bytes(content)
    before = dtypes()
    (value,) = load_arrays(tmp_path / "file")["a"]
    assert value == 1 and dtypes() == before


def test_the_allowed_names_cannot_be_changed():
    with pytest.raises(TypeError):
        NAMES["os", "system"] = None


# --- what the random files have found in idx: ---------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 9])
@pytest.mark.parametrize("count", [1, 6, 7, 8, 9, 20])
def test_a_gzipped_file_of_few_labels_is_read_to_its_end_and_not_past_it(count, extra, tmp_path):
    labels = np.arange(count, dtype=np.uint8)
    content = struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes() + b"x" * extra
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(content))
    if extra:
        with pytest.raises(DataError, match=f"holds more than {count} values"):
            read_idx(path, 1, "remedy")
    else:
        np.testing.assert_array_equal(read_idx(path, 1, "remedy"), labels)


def test_a_gzipped_file_takes_the_memory_of_what_it_holds_and_not_of_what_it_announces(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 2**10, 2**10, 60) + b"x"))
    tracemalloc.start()
    with pytest.raises(DataError, match="holds 1 values; its header announces 62914560"):
        read_idx(path, 3, "remedy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * PIECE


# --- any file at all ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind, files", [
    ("csv", 200), ("idx", 200), ("pickle", 200), ("npz", 200), ("folder", 150),
    pytest.param("tfds", 90, marks=pytest.mark.slow),
])
def test_randomly_damaged_files_are_read_or_refused_within_time_and_memory(kind, files):
    program = HERE / "fuzz_data.py"
    if kind == "tfds":  # it needs TensorFlow
        status, output, errors = run(program, kind, files)
    else:
        done = subprocess.run(
            [sys.executable, program, kind, str(files)], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
        )
        status, output, errors = done.returncode, done.stdout, done.stderr
    assert status == 0, errors[-3000:]
    read, refused = map(int, output.split())
    assert read > 0 and refused > files / 4, "hardly anything was damaged"


# --- the toy regression -------------------------------------------------------------------------


def test_the_regression_lies_on_its_parabola_with_its_noise():
    points = quadratic(0, train_size=20_000, test_size=300)
    assert points.x_train.shape == points.y_train.shape == (20_000, 1)
    assert points.x_test.shape == points.y_test.shape == (300, 1)
    assert all(values.dtype == np.float32 for values in vars(points).values())
    assert -7 <= points.x_train.min() < -6.9 and 9.9 < points.x_train.max() <= 10
    noise = points.y_train - (points.x_train.astype(np.float64) ** 2 - 5)
    assert abs(noise.mean()) < 0.06 and noise.std() == pytest.approx(2, abs=0.05)
    assert abs(np.corrcoef(noise[:, 0], points.x_train[:, 0])[0, 1]) < 0.03
    assert points.x_train.mean() == pytest.approx(1.5, abs=0.15)


def test_the_regression_has_the_tutorials_size_by_default():
    points = quadratic(0)
    assert (len(points.x_train), len(points.x_test)) == (2000, 200)


@pytest.mark.parametrize("seed", [lambda: 3, lambda: np.random.default_rng(3)], ids=["int", "rng"])
def test_the_seed_fixes_every_point(seed):
    first, again, other = quadratic(seed()), quadratic(seed()), quadratic(4)
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(again, name))
        assert not np.array_equal(values, getattr(other, name))
    assert not np.isin(first.x_test, first.x_train).all()
