"""`sklearn:NAME`: the small datasets that scikit-learn ships; nothing is downloaded.

`digits` are images of 8 x 8 pixels in ten classes. `breast_cancer`, `iris` and `wine` are tables
with classes, `diabetes` is one with numbers to predict; their columns are fed as they are, of very
different scale.
"""

from typing import Optional

import numpy as np

from bn_keras.data.python import from_python
from bn_keras.data.splits import DataError, Source, Split, draw_test
from bn_keras.registry import DATASETS, did_you_mean

BRIGHTEST = 16  # of a pixel of digits
NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")


@DATASETS.register("sklearn")
def sklearn(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the set named behind the colon; a fifth of it is drawn for testing."""
    if argument not in NAMES:
        raise DataError(
            f"dataset 'sklearn:{argument}': expected sklearn:NAME with one of {', '.join(NAMES)}"
            f"{did_you_mean(argument, NAMES)}."
        )
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"sklearn:{argument}: scikit-learn cannot be imported ({error}); install it: "
            "pip install 'bn_keras[sklearn]'."
        ) from error
    x, y = getattr(datasets, f"load_{argument}")(return_X_y=True)
    if argument != "digits":
        # Of iris and others the labels are whole numbers, of diabetes floats that are all whole.
        return from_python((x, y), f"sklearn:{argument}")
    images = (x.reshape(-1, 8, 8, 1) / BRIGHTEST).astype(np.float32)
    train, test = draw_test("sklearn:digits", Split(images, y.astype(np.int32)))
    return Source(train, test, classes=10)
