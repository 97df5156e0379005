"""`csv:PATH`: labelled images in a table, such as train.csv of Kaggle's Digit Recognizer.

The first row names the columns, `label,pixel0,…,pixel783`; every other row is one image: its label,
then its pixels row by row. The images are square and have one channel.
"""

import math
import re
import warnings

import numpy as np

from bn_keras.data.files import find_file
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS

CONTENT = "the unpacked train.csv of Kaggle's Digit Recognizer"
MAX_LINE = 2**20  # characters; a row of 300 x 300 pixels still fits
MIN_ROWS = 10  # fewer leave no test image
FIELD = re.compile(r" *0*[0-9]{1,3} *")


@DATASETS.register("csv")
def csv_file(argument, data_dir):
    """Reads the file named behind the colon.

    It has no test set of its own (Kaggle's test.csv has no labels), so one row in ten becomes the
    test set: drawn over the whole file, as the rows may stand in order of their labels, and always
    the same ones for the same number of rows.
    """
    path = find_file("csv", argument, data_dir, CONTENT)
    values = read_csv(path)
    side = math.isqrt(values.shape[1] - 1)
    images = values[:, 1:].reshape(-1, side, side, 1)
    labels = values[:, 0].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(values))
    test, train = np.split(order, [len(values) // 10])
    return Source(
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        classes=int(labels.max()) + 1,
    )


def read_csv(path):
    """The table below the header.

    Args:
        path: pathlib.Path of UTF-8 text, with a byte order mark or without, lines ended any way.

    Returns:
        uint8, shape (rows, 1 + pixels): the label, then the pixels; `pixels` is a square number.

    Raises:
        DataError: another header, or a row that does not hold one number from 0 to 255 a column.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            rows = _Rows(path, stream)
            values = _parse(rows)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: holds bytes that are no text; expected {CONTENT}.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {CONTENT}.") from error
    if len(values) < MIN_ROWS:
        raise DataError(
            f"{path}: {len(values)} rows below the header; expected at least {MIN_ROWS}, "
            f"as {CONTENT} has them."
        )
    return values


class _Rows:
    """Iterator over the lines below the header; knows the latest one and its number.

    NumPy skips blank lines and reports a ragged one by its own count of rows: both are checked
    here, where the number of the line is known.
    """

    def __init__(self, path, stream):
        self.path, self._stream = path, stream
        self.number, self.line = 0, ""  # the header is row 1, as a spreadsheet shows it
        self._read()
        self.names = self.line.rstrip("\n").split(",")
        self._check_header()

    def __iter__(self):
        return self

    def __next__(self):
        if not self._read():
            raise StopIteration
        columns = self.line.count(",") + 1
        if columns != len(self.names):
            received = f"{columns} columns" if self.line.strip() else "a blank line"
            raise self.refusal(f"received {received}; expected {len(self.names)} columns")
        return self.line

    def refusal(self, what):
        """A DataError about the latest line."""
        return DataError(
            f"{self.path}: row {self.number} (the header is row 1): {what}. Mend that row, or "
            f"name {CONTENT}."
        )

    def _read(self):
        self.line = self._stream.readline(MAX_LINE)
        self.number += 1
        if len(self.line) == MAX_LINE:
            raise self.refusal(f"received {MAX_LINE} characters or more; expected a line of fewer")
        return self.line

    def _check_header(self):
        if self.names[0] != "label":
            raise self.refusal(
                f"received {self.names[0][:40]!r} as the first column; expected 'label' "
                "(Kaggle's test.csv has none and cannot be used)"
            )
        pixels = len(self.names) - 1
        if pixels == 0 or math.isqrt(pixels) ** 2 != pixels:
            raise self.refusal(
                f"received {pixels} columns after the label; expected a square number of pixels, "
                "such as 28 x 28 = 784"
            )


def _parse(rows):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older NumPy only warns when it cuts 1.5 to 1
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            return np.loadtxt(rows, dtype=np.uint8, delimiter=",", comments=None, ndmin=2)
    except (DataError, UnicodeDecodeError):
        raise
    except (ValueError, Warning) as error:
        for column, field in enumerate(rows.line.rstrip("\n").split(",")):
            if not FIELD.fullmatch(field) or int(field) > 255:
                raise rows.refusal(
                    f"column {column + 1} ({rows.names[column][:40]}): received {field[:40]!r}; "
                    "expected a whole number from 0 to 255"
                ) from error
        raise rows.refusal(str(error)) from error
