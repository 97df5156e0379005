"""`tfds:NAME`: any image classification set of TensorFlow Datasets that is prepared on disk.

Nothing is downloaded here: without a network TFDS tries for minutes before it says so. `tfds:mnist`
is prepared from the shipped files; for any other set the message names the command that prepares
it once.
"""

import difflib
import math
import pathlib
import tempfile

import numpy as np

from bn_keras.data.idx import MAX_BYTES
from bn_keras.data.mnist import SHA256, SHIPPED, check_canonical
from bn_keras.data.splits import DataError, Source, Split
from bn_keras.registry import DATASETS


@DATASETS.register("tfds")
def tfds(argument, data_dir):
    """Reads the set named behind the colon, train and test, whole into memory."""
    import tensorflow_datasets

    if not argument:
        raise DataError("dataset 'tfds': no set named; expected tfds:NAME, such as tfds:mnist.")
    builder = _builder(tensorflow_datasets, argument, data_dir)
    if not pathlib.Path(builder.data_path).is_dir():
        if builder.name != "mnist":
            raise DataError(
                f"tfds:{argument}: not prepared in {builder.data_path}, and nothing is downloaded "
                f"while training. Prepare it once, with a network: {_command(argument, data_dir)} "
                "(or name by --data_dir the folder where it is prepared)."
            )
        _prepare_mnist(tensorflow_datasets, builder)
    shape, classes = _check(builder, argument)
    try:
        train, test = (
            _read(tensorflow_datasets, builder, split, shape) for split in ("train", "test")
        )
    except Exception as error:  # TensorFlow's own kinds, which are not to be imported for this
        raise DataError(
            f"tfds:{argument}: {builder.data_path} cannot be read "
            f"({str(error).splitlines()[0]}); delete that folder and prepare the set again."
        ) from error
    return Source(train, test, classes)


def _builder(tensorflow_datasets, argument, data_dir):
    try:
        return tensorflow_datasets.builder(argument, data_dir=data_dir)
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        known = tensorflow_datasets.list_builders()
        near = difflib.get_close_matches(argument, known, n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise DataError(
            f"tfds:{argument}: TFDS has no such set{hint}; it knows {len(known)} others, "
            "see tensorflow_datasets.list_builders()."
        ) from error
    except (ValueError, AssertionError) as error:  # such as an unknown config or version
        raise DataError(f"tfds:{argument}: {str(error).splitlines()[0]}") from error


def _command(argument, data_dir):
    folder = "" if data_dir is None else f", data_dir={data_dir!r}"
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{argument}'{folder}).download_and_prepare()\""
    )


def _prepare_mnist(tensorflow_datasets, builder):
    # A missing file would send TFDS to the network: look first.
    for name in SHA256:
        path = SHIPPED / name
        if not path.is_file():
            raise DataError(f"{path}: missing; install the package again.")
        check_canonical(path, path.read_bytes())
    print(f"preparing {builder.data_path} from the shipped files, once (about 20 s)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        builder.download_and_prepare(
            download_dir=scratch,
            download_config=tensorflow_datasets.download.DownloadConfig(manual_dir=str(SHIPPED)),
        )


def _check(builder, argument):
    features = dict(builder.info.features.items())
    shape = getattr(features.get("image"), "shape", None)
    classes = getattr(features.get("label"), "num_classes", None)
    if shape is None or None in shape or classes is None:
        raise DataError(
            f"tfds:{argument}: its features are {sorted(features)} with images of shape {shape}; "
            "expected an 'image' of one fixed shape and a class 'label'."
        )
    splits = builder.info.splits
    if not {"train", "test"} <= set(splits):
        raise DataError(
            f"tfds:{argument}: its splits are {sorted(splits)}; expected 'train' and 'test'."
        )
    examples = splits["train"].num_examples + splits["test"].num_examples
    if examples * math.prod(shape) > MAX_BYTES:
        raise DataError(
            f"tfds:{argument}: {examples} images of shape {shape} do not fit in memory; "
            f"expected at most {MAX_BYTES} pixel values in all."
        )
    return shape, classes


def _read(tensorflow_datasets, builder, split, shape):
    count = builder.info.splits[split].num_examples
    images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    batches = builder.as_dataset(split=split, batch_size=1000, shuffle_files=False)
    start = 0
    for batch in tensorflow_datasets.as_numpy(batches):
        stop = start + len(batch["label"])
        images[start:stop], labels[start:stop] = batch["image"], batch["label"]
        start = stop
    return Split(images, labels)
