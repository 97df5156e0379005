"""Damages good files at random: `python fuzz_data.py KIND FILES`.

Anything but DataError ends the process: another exception, a crash, a refused allocation. So does
one file that takes longer than LIMIT seconds, and a message that is long or not printable. Prints
how many files were read and refused. KINDS has the kinds of files.
"""

import collections
import contextlib
import csv
import gzip
import io
import pathlib
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image

from bn_keras import data
from bn_keras.data.idx import FILES

MEMORY = 1 << 30  # bytes of address space beyond what the imports took
LIMIT = 5  # seconds a file; it takes milliseconds
TOKENS = {
    "csv": [b"\x1b[2J", b"class", b";", b"\xe2\x80\xae", b",", b"\n", b"\r", b"\0", b'"', b"-1",
            b"256", b"nan", b"1.5", b"\xff",
            b"\xef\xbb\xbf", b"9" * 5000, b" ", b"label", b"," * 300],
    "idx": [b"\0\0\x08\x01", b"\x1f\x8b\x08\x18",
            b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x08\x03", b"\x7f", b"\x1f\x8b", b"\0" * 64],
    "pickle": [bytes([code]) for code in b"(.012FIJKLMNPQRSTUVXabcdeghijloqrstu}]"]
    + [bytes([code]) for code in range(0x80, 0x99)]
    + [b"\xff\xff\xff\x7f", b"\xff" * 8, b"cos\nsystem\n", b"cnumpy\ndtype\n", b"\x8a\xff", b"O8"],
    "npz": [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b"\xff\xff\xff\xff",
            b"\0" * 8, b"'descr'", b"|O", b"<f8", b"<U9", b"(9, ", b"(-1,", b"True", b"99999",
            b"x_train", b"{", b"}", b"y_test.npy", b"\x08\0", b"\x0c\0", b"\x63\0", b"\x01\0"],
    "folder": [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"acTL", b"\xff\xd8", b"\xff\xc4",
               b"\xff\xda", b"\xff\xff\xff\xff", b"\0" * 8, b"GIF89a", b"BM", b"P6 9 9 255\n",
               b"RIFF", b"%!PS-Adobe", b"MM\0*", b"\x7f\xff\xff\xff", b"P5 99999 99999 255\n"],
    # Texts in JSON; the records themselves are guarded by checksums.
    "tfds": [b"", b"-1", b"0", b"1", b"8", b"9" * 30, b"null", b"../..", b"\\u001b[2J", b"train",
             b"test", b"image", b"label", b"int64", b"float32", b"string", b"png", b"1.0.0", b"\0",
             b'": {"a": 1}, "', b'", "', b'": "'],
}


def csv_files(rng):
    rows = rng.integers(0, 256, (12, 10)).tolist()
    pixels = [f"pixel{n}" for n in range(9)]
    texts = []
    for header in ([["label", *pixels]], [], [[*pixels, "class"]]):
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([*header, *rows])
        texts.append(stream.getvalue())
    texts.append(texts[0].replace("pixel", '"pixel"').replace("\n", "\r\n"))
    return [{"train.csv": text.encode()} for text in texts]


def idx_files(rng):
    files = {}
    for part, file in FILES.items():
        shape = (6, 3, 3) if "images" in part else (6,)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        files[file] = header + rng.integers(0, 10, shape, np.uint8).tobytes()
    zipped = {f"{file}.gz": gzip.compress(content) for file, content in files.items()}
    dotted = {file.replace("-idx", ".idx"): content for file, content in files.items()}
    two = {f"{name}-{file}": content for name in "ab" for file, content in zipped.items()}
    return [files, zipped, dotted, dict(zip(files, zipped.values())), two]


def pickle_files(rng):
    arrays = {}
    for part in ("train", "valid", "test"):
        arrays[f"{part}_dataset"] = rng.uniform(-0.5, 0.5, (5, 2, 2)).astype(np.float32)
        arrays[f"{part}_labels"] = rng.integers(0, 10, 5)
    return [{"notMNIST.pickle": pickle.dumps(arrays, protocol=protocol)} for protocol in range(6)]


def tfds_files(rng):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    images = rng.integers(0, 256, (20, 2, 2, 1)).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices({"image": images, "label": np.arange(20) % 3})
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            tfds.dataset_builders.store_as_tfds_dataset(
                name="tiny", version="1.0.0", data_dir=folder,
                features=tfds.features.FeaturesDict({
                    "image": tfds.features.Image(shape=(2, 2, 1)),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }),
                split_datasets={"train": examples, "test": examples},
            )
        root = pathlib.Path(folder)
        return [{
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file()
        }]


def npz_files(rng):
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (6, 3, 3)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(6) % 2
    contents = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)
        contents.append({"a.npz": stream.getvalue()})
    return contents


def image_folders(rng):
    folders = []
    for kind, mode in (("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("GIF", "P"),
                       ("BMP", "RGB"), ("PPM", "L"), ("WEBP", "RGB")):
        files = {}
        for n in range(6):
            stream = io.BytesIO()
            image = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            image.convert(mode).save(stream, kind)
            files[f"{'ab'[n % 2]}/{n}.{'jpg' if kind == 'JPEG' else 'png'}"] = stream.getvalue()
        folders.append(files)
    return folders


KINDS = {
    "npz": (npz_files, "npz:a.npz"),
    "folder": (image_folders, "folder:."),
    "csv": (csv_files, "csv:train.csv"),
    "idx": (idx_files, "idx:."),
    "pickle": (pickle_files, "notmnist:notMNIST.pickle"),
    "tfds": (tfds_files, "tfds:tiny"),
}


def damaged_json(content, tokens, rng):
    """The content with one or two of its texts, keys and values, replaced."""
    pieces = content.split(b'"')
    for _ in range(rng.integers(1, 3)):
        pieces[1 + 2 * rng.integers(len(pieces) // 2)] = tokens[rng.integers(len(tokens))]
    return b'"'.join(pieces)


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


def main(kind, most):
    """Damages and reads so many files; the n-th damage follows from n alone."""
    warnings.simplefilter("error")
    if kind == "tfds":  # it leaves files and event loops to the garbage collector
        warnings.simplefilter("ignore")
    make, dataset = KINDS[kind]
    originals = make(np.random.default_rng(0))
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(most):
            rng = np.random.default_rng(number)
            files = dict(originals[number % len(originals)])
            names = [name for name in sorted(files) if kind != "tfds" or name.endswith(".json")]
            file = names[rng.integers(len(names))]
            damage = damaged_json if kind == "tfds" else damaged
            files[file] = damage(files[file], TOKENS[kind], rng)
            for path in pathlib.Path(folder).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for other, content in files.items():
                path = pathlib.Path(folder, other)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            signal.alarm(LIMIT)  # ends the process: a loop inside C would not see an exception
            try:
                splits = data.load(dataset, data_dir=folder, validation_size=1)
                assert "".join([splits.digest(), *splits.notes]).isprintable()
                counts["read"] += 1
            except data.DataError as error:
                assert str(error).isprintable() and len(str(error)) < 1500, error
                counts["refused"] += 1
            except BaseException:
                print(f"file {number}: {files[file]!r}", file=sys.stderr)
                raise
            signal.alarm(0)
    print(counts["read"], counts["refused"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
