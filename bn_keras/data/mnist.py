"""`mnist`: the full MNIST, shipped with the package and read without TensorFlow."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Optional

from bn_keras.data.reading.files import resolve
from bn_keras.data.reading.idx import read_set
from bn_keras.data.splits import DataError, Source
from bn_keras.registry import DATASETS

SHIPPED = pathlib.Path(__file__).parent / "mnist_files"
SHA256 = {
    "train-images-idx3-ubyte.gz":
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz":
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz":
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz":
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
PARTS = ("train images", "train labels", "test images", "test labels")  # of SHA256, in its order
LARGEST = 10 * 2**20  # bytes; the largest canonical file has 9,912,422
REMEDY = (
    "install the package again, or name a folder with the four canonical files by --data_dir"
)


@DATASETS.register("mnist")
def mnist(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the shipped files, or the same ones from `data_dir`.

    The first 5,000 training images are the usual validation set, as the TensorFlow tutorials have
    it: the images stand in no order, so nothing is shuffled.
    """
    if argument:
        raise DataError(f"dataset 'mnist:{argument}': expected 'mnist' without an argument.")
    folder = SHIPPED if data_dir is None else resolve(data_dir)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; {REMEDY}.")
    check_canonical(folder)
    paths = dict(zip(PARTS, (folder / name for name in SHA256), strict=True))
    return dataclasses.replace(read_set(paths, REMEDY), ordered=False)


def check_canonical(folder: pathlib.Path) -> None:
    """Raises DataError unless the folder holds the bytes of the four canonical files."""
    for name, expected in SHA256.items():
        path = folder / name
        if not os.path.isfile(path):
            raise DataError(f"{path}: missing; {REMEDY}.")
        try:
            size = os.path.getsize(path)
            data = path.read_bytes() if size <= LARGEST else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); {REMEDY}.") from error
        received = hashlib.sha256(data).hexdigest()
        if received != expected:
            raise DataError(
                f"{path}: altered or truncated (sha256 {received[:12]}…, {size} bytes; "
                f"expected {expected[:12]}…); {REMEDY}."
            )
