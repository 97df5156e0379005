"""A tf.data.Dataset as arrays. TensorFlow is not loaded here: who has a dataset has done so."""

import contextlib
from typing import Any, Optional

import numpy as np

from bn_keras import on_disk
from bn_keras.data import scratch
from bn_keras.data.nests import Nest, each, leaves
from bn_keras.data.splits import DataError
from bn_keras.objects import told
from bn_keras.tf_datasets import untuned

MAX_BYTES = 2 * 10**9  # read into memory at most, of each set; inputs beyond go to the disk
BATCH = 256  # single examples read at a time: ten times as fast as one by one
PAIRS = (
    "expected pairs (inputs, labels), as dataset.map(lambda e: (e['image'], e['label'])) makes them"
)


def read_dataset(where: str, dataset: Any, notes: list[str]) -> tuple[Nest, Any]:
    """Reads a dataset of pairs into memory, or its inputs to the disk if there are too many bytes.

    Batches are told from single examples by `element_spec`. Batches have a first axis, of unknown
    length, in every tensor. In single examples a tensor without axes (a label), or tensors whose
    first axes differ, show that there is none. Tensors of one known first length may be either, and
    are refused.

    Args:
        where: dataset and set, for messages.
        dataset: finite tf.data.Dataset of (inputs, labels).
        notes: gets a sentence on what was read.

    Returns:
        Nest of inputs, and labels, as NumPy arrays (n, ...); inputs beyond MAX_BYTES are np.memmaps
        of temporary files.

    Raises:
        DataError: an endless dataset, labels beyond MAX_BYTES, a full disk, other elements, or an
            error of its own.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or isinstance(spec[1], (dict, tuple, list)):
        kind = f"{type(spec).__name__} of {len(spec)}" if isinstance(spec, (tuple, dict)) else spec
        raise DataError(f"{where}: the elements of this dataset are a {kind}; {PAIRS}.")
    if int(dataset.cardinality()) == -1:
        raise DataError(
            f"{where}: this dataset is endless; expected a finite one. Leave out .repeat(), or cut "
            "it by .take(steps)."
        )
    batches = untuned(dataset if _is_batched(where, spec) else dataset.batch(BATCH))
    try:
        inputs, labels = _read(where, batches)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # TensorFlow's own kinds, or of the user's functions in it
        is_uneven = type(error).__name__ == "InvalidArgumentError"  # what batching raises
        expected = "examples of one shape" if is_uneven else "a dataset that can be read to its end"
        raise DataError(
            f"{where}: reading this dataset raised {told(error)}; expected {expected}."
        ) from error
    count, size = len(labels), sum(array.nbytes for _, array in leaves((inputs, labels)))
    notes.append(
        f"{where}: streamed from disk: {count:,} examples, {size / 1e6:,.1f} MB in "
        f"{scratch.folder()}; TMPDIR names another folder"
        if any(on_disk.is_on_disk(array) for _, array in leaves(inputs)) else
        f"{where}: read into memory: {count:,} examples, {size / 1e6:,.1f} MB"
    )
    return inputs, labels


def _read(where: str, batches: Any) -> tuple[Nest, Any]:
    """Inputs, on disk if there are too many bytes, and labels."""
    kept: list[Nest] = []
    labels: list[Any] = []
    files: Optional[Nest] = None
    size = label_size = 0
    with contextlib.ExitStack() as stack:
        for x, y in batches.as_numpy_iterator():
            kept.append(x)
            labels.append(y)
            label_size += y.nbytes
            size += y.nbytes + sum(array.nbytes for _, array in leaves(x))
            if label_size > MAX_BYTES:
                raise DataError(
                    f"{where}: the labels of this dataset have more than {MAX_BYTES:,} bytes "
                    f"({label_size:,} after {sum(map(len, labels)):,} examples); expected labels "
                    "that fit in memory. Cut the dataset by .take, or make its labels smaller."
                )
            if size > MAX_BYTES and files is None:
                files = each(lambda array: stack.enter_context(scratch.File(where)), x)
            if files is not None:
                for nest in kept:
                    each(lambda file, rows: file.append(rows), files, nest)
                kept.clear()
        if not labels:
            raise DataError(f"{where}: this dataset is empty; {PAIRS}.")
        if files is None:
            inputs = each(lambda *arrays: np.concatenate(arrays), *kept)
        else:
            inputs = each(lambda file: file.array(), files)
    return inputs, np.concatenate(labels)


def _is_batched(where: str, spec: Any) -> bool:
    shapes = []
    for path, part in leaves(spec):
        shape = getattr(part, "shape", None)
        if type(part).__name__ != "TensorSpec" or shape is None or shape.rank is None:
            raise DataError(
                f"{where}: the elements of this dataset hold {part} at {path}; expected tensors "
                "with a known number of axes, neither ragged nor sparse."
            )
        shapes.append(tuple(shape))
    if any(not shape for shape in shapes):
        return False
    first = {shape[0] for shape in shapes}
    if len(first) == 1 and None not in first:
        raise DataError(
            f"{where}: the elements of this dataset have the shapes {', '.join(map(str, shapes))}, "
            "and may be batches or single examples. If they are single, give dataset.batch(32); if "
            "they are batches, give dataset.unbatch().batch(32)."
        )
    return first == {None}
