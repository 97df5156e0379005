"""Damages good files at random for a while: `python fuzz_data.py csv|idx|pickle SECONDS`.

Anything but DataError ends the process: another exception, a crash, a refused allocation. So does
one file that takes longer than LIMIT seconds. Prints how many files were read and refused.
"""

import collections
import csv
import gzip
import io
import pathlib
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings

import numpy as np

from bn_keras import data
from bn_keras.data.idx import FILES

MEMORY = 1 << 30  # bytes of address space beyond what the imports took
LIMIT = 5  # seconds a file; it takes milliseconds
TOKENS = {
    "csv": [b",", b"\n", b"\r", b"\0", b'"', b"-1", b"256", b"nan", b"1.5", b"\xff",
            b"\xef\xbb\xbf", b"9" * 5000, b" ", b"label", b"," * 300],
    "idx": [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x08\x03", b"\x7f", b"\x1f\x8b", b"\0" * 64],
    "pickle": [bytes([code]) for code in b"(.012FIJKLMNPQRSTUVXabcdeghijloqrstu}]"]
    + [bytes([code]) for code in range(0x80, 0x99)]
    + [b"\xff\xff\xff\x7f", b"\xff" * 8, b"cos\nsystem\n", b"cnumpy\ndtype\n", b"\x8a\xff", b"O8"],
}


def csv_files(rng):
    stream = io.StringIO()
    rows = rng.integers(0, 256, (12, 10))
    csv.writer(stream).writerows([["label"] + [f"pixel{n}" for n in range(9)], *rows.tolist()])
    return [{"train.csv": stream.getvalue().encode()}]


def idx_files(rng):
    files = {}
    for part, file in FILES.items():
        shape = (6, 3, 3) if "images" in part else (6,)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        files[file] = header + rng.integers(0, 10, shape, np.uint8).tobytes()
    zipped = {f"{file}.gz": gzip.compress(content) for file, content in files.items()}
    return [files, zipped]


def pickle_files(rng):
    arrays = {}
    for part in ("train", "valid", "test"):
        arrays[f"{part}_dataset"] = rng.uniform(-0.5, 0.5, (5, 2, 2)).astype(np.float32)
        arrays[f"{part}_labels"] = rng.integers(0, 10, 5)
    return [{"notMNIST.pickle": pickle.dumps(arrays, protocol=protocol)} for protocol in range(6)]


KINDS = {
    "csv": (csv_files, "csv:train.csv"),
    "idx": (idx_files, "idx:."),
    "pickle": (pickle_files, "notmnist:notMNIST.pickle"),
}


def damaged(content, tokens, rng):
    """The content with one to four bytes changed, pieces cut, repeated or put in."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        match rng.integers(0, 6):
            case 0 if content:
                content[min(start, len(content) - 1)] = rng.integers(0, 256)
            case 1:
                del content[start:min(stop, start + 8)]
            case 2:
                content[start:start] = content[start:stop]
            case 3:
                del content[start:]
            case 4:
                content[start:start] = tokens[rng.integers(len(tokens))]
            case _:
                token = tokens[rng.integers(len(tokens))]
                content[start:start + len(token)] = token
    return bytes(content)


def main(kind, seconds):
    """Damages and reads until the time is over; the n-th damage follows from n alone."""
    warnings.simplefilter("error")
    make, dataset = KINDS[kind]
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts = collections.Counter()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        originals = make(np.random.default_rng(0))
        while time.monotonic() < end:
            number = counts.total()
            rng = np.random.default_rng(number)
            files = dict(originals[number % len(originals)])
            file = sorted(files)[rng.integers(len(files))]
            files[file] = damaged(files[file], TOKENS[kind], rng)
            for path in pathlib.Path(folder).iterdir():
                path.unlink()
            for other, content in files.items():
                pathlib.Path(folder, other).write_bytes(content)
            signal.alarm(LIMIT)  # ends the process: a loop inside C would not see an exception
            try:
                data.load(dataset, data_dir=folder, validation_size=1)
                counts["read"] += 1
            except data.DataError:
                counts["refused"] += 1
            except BaseException:
                print(f"file {number}: {files[file]!r}", file=sys.stderr)
                raise
            signal.alarm(0)
    print(counts["read"], counts["refused"])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
