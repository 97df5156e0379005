"""`patches:denoise`: small pieces of photographs with noise, to be predicted without it.

The photographs are those that scikit-image ships, turned grey. Test patches are of other
photographs than those to train on. The noise is normal with a deviation of 25 grey levels of 255,
as is usual since the paper on DnCNN (Zhang et al. 2017).
"""

import importlib.util
import os
import pathlib
from typing import Optional, Sequence

import numpy as np

from bn_keras.data.reading.images import read_images
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS

TRAIN = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "grass.png", "gravel.png",
         "rocket.jpg")
TEST = ("coffee.png", "coins.png", "moon.png")
SIDE = 32
DEVIATION = 25 / 255


@DATASETS.register("patches")
def patches(argument: str, data_dir: Optional[str]) -> Source:
    """Cuts the photographs into patches that do not overlap; the same noise in every run.

    Inputs and labels are float32 of shape (n, 32, 32, 1). Clean patches lie between 0 and 1.
    """
    if argument != "denoise":
        raise DataError(f"dataset 'patches:{argument}': expected patches:denoise.")
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError(
            "patches:denoise: scikit-image, which ships the photographs, is not installed; install "
            "it: pip install 'bn_keras[patches]'."
        )
    folder = pathlib.Path(found.origin).parent / "data"
    rng = np.random.default_rng(0)
    return Source(
        _noisy(folder, TRAIN, rng), _noisy(folder, TEST, rng), classes=1, as_given=True
    )


def _noisy(folder: pathlib.Path, names: Sequence[str], rng: np.random.Generator) -> Split:
    pieces = []
    for name in names:
        if not os.path.isfile(folder / name):
            raise DataError(
                f"{folder / name}: missing; expected scikit-image 0.26, or another version that "
                "ships this photograph."
            )
        image = read_images([[folder / name]])[0][0].mean(-1) / 255
        rows, columns = (length // SIDE for length in image.shape)
        cut = image[:rows * SIDE, :columns * SIDE].reshape(rows, SIDE, columns, SIDE)
        pieces.append(cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 1))
    clean = np.concatenate(pieces).astype(np.float32)
    noise = rng.standard_normal(clean.shape, np.float32) * np.float32(DEVIATION)
    return Split(clean + noise, clean)
