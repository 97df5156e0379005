"""Tables of labelled images as CSV text: one image a row, its label first or last."""

import dataclasses
import math
import pathlib
import re
import warnings
from typing import Iterator, TextIO

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.splits import DataError

CONTENT = "the unpacked train.csv of Kaggle's Digit Recognizer"
PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip"}  # by their first two bytes
LABELS = ("label", "class")  # names of the label's column, in any case
MAX_LINE = 2**20  # characters; a row of 300 x 300 pixels still fits
MIN_ROWS = 10  # fewer leave no test image
FIELD = re.compile(r" *0*[0-9]{1,3} *")
NO_HEADER = (
    "no header line names its columns, so the first one is taken as the label; if the label is the "
    "last one, put a header line on top: pixel0,pixel1,…,label."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Labelled images.

    Attributes:
        labels: uint8, shape (rows,).
        pixels: uint8, shape (rows, pixels); `pixels` is a square number.
        has_header: whether the first line names the columns; without, the label is the first one.
    """

    labels: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    has_header: bool


def read_csv(path: pathlib.Path) -> Table:
    """Reads a table.

    Args:
        path: of UTF-8 text, with a byte order mark or without, lines ended any way; the first line
            may name the columns, quoted or not.

    Raises:
        DataError: no column of labels, or a row that does not hold one number from 0 to 255 a
            column.
    """
    try:
        with open(path, "rb") as file:
            packed = PACKED.get(file.read(2))
        if packed:
            raise DataError(f"{path}: a {packed} archive; unpack it and name the file inside.")
        with open(path, encoding="utf-8-sig") as stream:
            rows = _Rows(path, stream)
            values = _parse(rows)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: holds bytes that are no text in UTF-8; expected {CONTENT}."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {CONTENT}.") from error
    if len(values) < MIN_ROWS:
        raise DataError(
            f"{path}: {len(values)} rows of images; expected at least {MIN_ROWS}, as {CONTENT} has "
            "them."
        )
    pixels = np.delete(values, rows.label, axis=1)
    return Table(values[:, rows.label], pixels, rows.has_header)


class _Rows:
    """Iterator over the lines below the header; knows the latest one and its number.

    NumPy skips blank lines and reports a ragged one by its own count of rows: both are checked
    here, where the number of the line is known.
    """

    def __init__(self, path: pathlib.Path, stream: TextIO) -> None:
        self.path, self._stream = path, stream
        self.number, self.line = 0, ""  # the first line is row 1, as a spreadsheet shows it
        self.has_header = True  # until the first line is known
        self._read()
        self.names = [name.strip(" \"'") for name in self.line.rstrip("\n").split(",")]
        # Numbers from 0 are how pandas names columns without names.
        numbered = self.names == [str(n) for n in range(len(self.names))]
        self._is_first = not numbered and _is_number(self.names[0]) and _is_number(self.names[-1])
        self.has_header = not (numbered or self._is_first)
        self.label = self._label_column() if self.has_header else 0
        pixels = len(self.names) - 1
        if pixels == 0 or math.isqrt(pixels) ** 2 != pixels:
            raise self.refusal(
                f"received {pixels} columns beside the label; expected a square number of pixels, "
                "such as 28 x 28 = 784, of one channel"
            )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._is_first:
            self._is_first = False
        elif not self._read():
            raise StopIteration
        columns = self.line.count(",") + 1
        if columns != len(self.names):
            received = f"{columns} columns" if self.line.strip() else "a blank line"
            raise self.refusal(f"received {received}; expected {len(self.names)} columns")
        return self.line

    def column(self, number: int) -> str:
        """A column of the latest line, for a message."""
        name = f" ({self.names[number][:40]})" if self.has_header else ""
        return f"column {number + 1}{name}"

    def refusal(self, what: str) -> DataError:
        """A DataError about the latest line."""
        header = " (the header is row 1)" if self.has_header else " (there is no header)"
        return DataError(
            f"{self.path}: row {self.number}{header}: {what}. Mend that row, or name {CONTENT}."
        )

    def _read(self) -> str:
        self.line = self._stream.readline(MAX_LINE)
        self.number += 1
        if len(self.line) == MAX_LINE:
            raise self.refusal(f"received {MAX_LINE} characters or more; expected a line of fewer")
        return self.line

    def _label_column(self) -> int:
        for column in (0, -1):
            if self.names[column].lower() in LABELS:
                return column % len(self.names)
        why = (
            "a first column without a name is the index that pandas writes: leave it out with "
            "index=False" if self.names[0] == "" else
            "Kaggle's test.csv has none and cannot be used"
        )
        raise self.refusal(
            f"received {self.names[0][:40]!r} as the first column and {self.names[-1][:40]!r} as "
            f"the last; expected {' or '.join(map(repr, LABELS))} as one of them ({why})"
        )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse(rows: _Rows) -> NDArray[np.uint8]:
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
                    f"{rows.column(column)}: received {field[:40]!r}; "
                    "expected a whole number from 0 to 255"
                ) from error
        raise rows.refusal(str(error)) from error
