"""A tf.data.Dataset as arrays. TensorFlow is not loaded here: who has a dataset has done so."""

from typing import Any

import numpy as np

from bn_keras.data.nests import Nest, each, leaves
from bn_keras.data.splits import DataError
from bn_keras.objects import told

MAX_BYTES = 2 * 10**9  # read into memory at most, of each set
BATCH = 256  # single examples read at a time: ten times as fast as one by one
PAIRS = (
    "expected pairs (inputs, labels), as dataset.map(lambda e: (e['image'], e['label'])) makes them"
)


def is_dataset(value: Any) -> bool:
    """Whether a value is a tf.data.Dataset."""
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def read_dataset(where: str, dataset: Any, notes: list[str]) -> tuple[Nest, Any]:
    """Reads a dataset of pairs into memory.

    Batches are told from single examples by `element_spec`. Batches have a first axis, of unknown
    length, in every tensor. In single examples a tensor without axes (a label), or tensors whose
    first axes differ, show that there is none. Tensors of one known first length may be either, and
    are refused.

    Args:
        where: dataset and set, for messages.
        dataset: finite tf.data.Dataset of (inputs, labels).
        notes: gets a sentence on what was read.

    Returns:
        Nest of inputs, and labels, as NumPy arrays (n, ...).

    Raises:
        DataError: an endless dataset, one beyond MAX_BYTES, other elements, or an error of its own.
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
    batches = dataset if _is_batched(where, spec) else dataset.batch(BATCH)
    pieces, size, count = [], 0, 0
    try:
        for piece in batches.as_numpy_iterator():
            pieces.append(piece)
            size += sum(array.nbytes for _, array in leaves(piece))
            count += len(piece[1])
            if size > MAX_BYTES:
                raise DataError(
                    f"{where}: this dataset has more than {MAX_BYTES:,} bytes ({size:,} after "
                    f"{count:,} examples); expected one that fits in memory. Cut it by .take, or "
                    "make its inputs smaller."
                )
        if not pieces:
            raise DataError(f"{where}: this dataset is empty; {PAIRS}.")
        inputs, labels = each(lambda *arrays: np.concatenate(arrays), *pieces)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # TensorFlow's own kinds, or of the user's functions in it
        raise DataError(
            f"{where}: reading this dataset raised {told(error)}; expected examples of one shape."
        ) from error
    notes.append(f"{where}: read into memory: {count:,} examples, {size / 1e6:,.1f} MB")
    return inputs, labels


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
