"""The labels that a loss or a metric is given: those that `fit` would give it.

Data hold classes as numbers, whatever the user's y is. A loss or a metric of the user's own gets
labels of the form that y has. Keras's own ones get the form that they need, also where y has the
other one and `fit` would raise an error or broadcast.
"""

import functools
from typing import Any, Optional, Tuple

import keras

AS_GIVEN, ROWS, NUMBERS = "as given", "one-hot rows", "class numbers"


def form(of: Any) -> str:
    """The form of labels for a loss or a metric: AS_GIVEN, or ROWS or NUMBERS of Keras's own.

    Args:
        of: a Keras object or function, or the user's own; not a name.
    """
    worker = _worker(of)
    if (getattr(worker, "__module__", None) or "").partition(".")[0] != "keras":
        return AS_GIVEN
    named = getattr(worker, "__name__", "") + type(of).__name__
    return NUMBERS if "sparse" in named.lower() or getattr(of, "sparse_y_true", False) else ROWS


class Labels:
    """Labels of a set of data for one loss or metric.

    Args:
        of: the loss or metric, see `form`.
        shape: of one label, as `Splits.label_shape`.
        numbers: whether the labels are numbers to predict; else they are classes.
    """

    def __init__(self, of: Any, shape: Optional[Tuple[int, ...]], numbers: bool):
        self._form, self._shape, self._numbers = form(of), shape, numbers

    def __call__(self, labels: Any, outputs: Any) -> Any:
        """The labels, of shape (n,) or (n, ...) as a `Split` has them, for outputs (n, ...)."""
        width = outputs.shape[-1]
        if self._form == AS_GIVEN:
            if self._shape is None or labels.shape[1:] == self._shape:
                return labels
            return labels[:, None] if self._shape == (1,) else _rows(labels, self._shape[0])
        if self._numbers:
            return labels[:, None] if len(labels.shape) < len(outputs.shape) else labels
        if self._form == NUMBERS:
            return labels
        return labels[:, None] if width == 1 else _rows(labels, width)

    def notes(self, name: str, width: int) -> Tuple[str, ...]:
        """What is to be told of a loss's labels: their form if it is the user's own or another.

        Args:
            name: of the loss.
            width: how many outputs the net has.
        """
        if self._numbers:
            return ()
        one_hot = self._shape not in (None, (1,))
        if self._form == AS_GIVEN:
            kind, shape = (ROWS if one_hot else NUMBERS), (0, *(self._shape or ()))
            shown = str(shape).replace("0", "n", 1)
            return (
                f"loss: {name} gets the labels as in fit: {kind}, as floats of shape {shown}",
            )
        if one_hot == (self._form == ROWS) or (self._form == ROWS and width == 1):
            return ()
        return (f"loss: {name} gets the classes as {self._form}; fit needs them so in y",)


def _rows(labels: Any, width: int) -> Any:
    return keras.ops.one_hot(labels, width, dtype="float32")


def _worker(of: Any) -> Any:
    """The function that does the work of a loss or a metric, behind what is wrapped around it."""
    while True:
        inner: Any = None
        if isinstance(of, functools.partial):
            inner = of.func
        elif isinstance(of, (keras.losses.Loss, keras.metrics.Metric)):
            method = "call" if isinstance(of, keras.losses.Loss) else "update_state"
            written = getattr(type(of), method)
            if written.__module__.partition(".")[0] != "keras":
                return written
            inner = getattr(of, "fn", None) or getattr(of, "_fn", None)
            if inner is None:
                return written
        if inner is None:
            return of
        of = inner
