"""`tfds:NAME`: any image classification set of TensorFlow Datasets that is prepared on disk.

Nothing is downloaded here: without a network TFDS tries for minutes before it says so. `tfds:mnist`
is prepared from the shipped files; for any other set the message names the command that prepares
it once.
"""

import difflib
import math
import os
import re
import tempfile
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from bn_keras.data.mnist import SHIPPED, check_canonical
from bn_keras.data.reading.files import MAX_BYTES, resolve
from bn_keras.data.reading.pixels import to_pixels
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS
from bn_keras.texts import in_a_line, plain
from bn_keras.tf_datasets import untuned

# TFDS asks another site for a set of a namespace, as in huggingface:mnist; a version is no name.
NAMESPACE = re.compile(r"\w+:(?![\d*])")


@DATASETS.register("tfds")
def tfds(argument: str, data_dir: Optional[str]) -> Source:
    """Reads the set named behind the colon, train and test, whole into memory."""
    if not argument or NAMESPACE.match(argument):
        what = f"{argument} is not a set of TFDS's own" if argument else "no set named"
        raise DataError(f"dataset 'tfds': {what}; expected tfds:NAME, such as tfds:mnist.")
    import tensorflow_datasets

    folder = None if data_dir is None else str(resolve(data_dir))
    builder = _builder(tensorflow_datasets, argument, folder)
    place = str(builder.data_path)
    if not os.path.isdir(place):
        if builder.name != "mnist":
            raise DataError(
                f"tfds:{argument}: not prepared in {place}, and nothing is downloaded "
                f"while training. Prepare it once, with a network: {_command(argument, folder)} "
                "(or name by --data_dir the folder where it is prepared)."
            )
        _prepare_mnist(tensorflow_datasets, builder)
    try:
        shape, classes = _check(builder, argument)
        (train, test), (train_labels, test_labels) = zip(*(
            _read(tensorflow_datasets, builder, split, shape) for split in ("train", "test")
        ))
    except DataError:
        raise
    except Exception as error:  # TensorFlow's own kinds, which are not to be imported for this
        raise DataError(
            f"tfds:{argument}: {place} cannot be read ({in_a_line(error)}); delete that folder and "
            "prepare the set again."
        ) from error
    (train, test), notes = to_pixels(f"tfds:{argument}", train, test)
    return Source(Split(train, train_labels), Split(test, test_labels), classes, notes=notes)


def _builder(tensorflow_datasets: Any, argument: str, folder: Optional[str]) -> Any:
    name = re.split("[^a-z0-9_]", argument)[0]
    place = os.path.join(folder or tensorflow_datasets.core.constants.DATA_DIR, name)
    damaged = (
        f"the files in {place} are damaged: delete that folder and prepare the set again"
        if name and os.path.isdir(place) else ""
    )
    try:
        return tensorflow_datasets.builder(argument, data_dir=folder)
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        if damaged:
            raise DataError(f"tfds:{argument}: files are missing; {damaged}.") from error
        known = tensorflow_datasets.list_builders()
        near = difflib.get_close_matches(argument, known, n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise DataError(
            f"tfds:{argument}: TFDS has no such set{hint}; it knows {len(known)} others, "
            "see tensorflow_datasets.list_builders()."
        ) from error
    except Exception as error:  # an unknown config or version, or damaged files of a prepared set
        hint = f" If the name is right, {damaged}." if damaged else ""
        raise DataError(
            f"tfds:{argument}: {in_a_line(error)}; expected tfds:NAME or tfds:NAME/CONFIG.{hint}"
        ) from error


def _command(argument: str, folder: Optional[str]) -> str:
    where = "" if folder is None else f", data_dir={folder!r}"
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{argument}'{where}).download_and_prepare()\""
    )


def _prepare_mnist(tensorflow_datasets: Any, builder: Any) -> None:
    check_canonical(SHIPPED)  # a missing file would send TFDS to the network
    place = plain(builder.data_path)
    print(f"preparing {place} from the shipped files, once (about 20 s)", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            builder.download_and_prepare(
                download_dir=scratch,
                download_config=tensorflow_datasets.download.DownloadConfig(
                    manual_dir=str(SHIPPED)
                ),
            )
    except Exception as error:  # OSError, or TensorFlow's own
        raise DataError(
            f"tfds:mnist: cannot be prepared in {place} ({in_a_line(error)}); name by "
            "--data_dir a folder that can be written, with 100 MB free."
        ) from error


def _check(builder: Any, argument: str) -> tuple[tuple[int, ...], int]:
    features = dict(builder.info.features.items())
    shape = getattr(features.get("image"), "shape", None)
    classes = getattr(features.get("label"), "num_classes", None)
    if not shape or None in shape or classes is None:
        raise DataError(
            f"tfds:{argument}: its features are {sorted(features)} with images of shape {shape}; "
            "expected an 'image' of one fixed shape and a class 'label'."
        )
    splits = builder.info.splits
    if not {"train", "test"} <= set(splits):
        raise DataError(
            f"tfds:{argument}: its splits in {builder.data_path} are {sorted(splits)}; expected "
            "'train' and 'test'."
        )
    examples = splits["train"].num_examples + splits["test"].num_examples
    if examples * math.prod(shape) > MAX_BYTES:
        raise DataError(
            f"tfds:{argument}: {examples} images of shape {shape} do not fit in memory; "
            f"expected at most {MAX_BYTES} pixel values in all."
        )
    return shape, classes


def _read(
    tensorflow_datasets: Any, builder: Any, split: str, shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Images, in the type that the set has them, and labels."""
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *shape), builder.info.features["image"].np_dtype)
    labels = np.empty(count, np.int32)
    batches = builder.as_dataset(split=split, batch_size=1000, shuffle_files=False)
    stop = 0
    for batch in tensorflow_datasets.as_numpy(untuned(batches)):
        start, stop = stop, stop + len(batch["label"])
        images[start:stop], labels[start:stop] = batch["image"], batch["label"]
    if stop != count:  # TFDS checks this too; the rest of `images` would be what the memory held
        raise ValueError(f"it announces {count} {split} examples and holds {stop}")
    return images, labels
