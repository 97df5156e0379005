"""`mnist`: the full MNIST, shipped with the package and read without TensorFlow."""

import dataclasses
import hashlib
import pathlib

from bn_keras.data.idx import read_folder
from bn_keras.data.splits import DataError
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
REMEDY = (
    "install the package again, or name a folder with the four canonical files by --data_dir"
)


@DATASETS.register("mnist")
def mnist(argument, data_dir):
    """Reads the shipped files, or the same ones from `data_dir`.

    The first 5,000 training images are the usual validation set, as the TensorFlow tutorials have
    it: the images stand in no order, so nothing is shuffled.
    """
    if argument:
        raise DataError(f"dataset 'mnist:{argument}': expected 'mnist' without an argument.")
    folder = SHIPPED if data_dir is None else pathlib.Path(data_dir).expanduser()
    source = read_folder(folder, REMEDY, check=check_canonical)
    return dataclasses.replace(source, ordered=False)


def check_canonical(path, data):
    """Raises DataError unless the bytes are those of the canonical file of that name."""
    expected = SHA256.get(path.name)
    if expected is None:
        raise DataError(f"{path}: not a canonical file; expected {path.name}.gz; {REMEDY}.")
    received = hashlib.sha256(data).hexdigest()
    if received != expected:
        raise DataError(
            f"{path}: altered or truncated (sha256 {received[:12]}…, {len(data)} bytes; "
            f"expected {expected[:12]}…); {REMEDY}."
        )
