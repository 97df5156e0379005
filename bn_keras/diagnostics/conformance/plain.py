"""A plain class as a Keras layer, for the probes: `__call__(x)` on NumPy rows, no Keras in it.

It is made with the number of channels if it asks for one. Training is switched by its argument or
attribute `training`. Names are those of PyTorch or of Keras. A class that says `moving_mean` has
Keras's momentum, the weight of the old statistic. With `running_mean` there are both kinds, and two
calls tell whether it is that of the new one, as in PyTorch. What is None before the first call
starts as in Keras, with a mean of 0 and a variance of 1.
"""

import inspect
from typing import Any, Optional, Tuple

import keras
import numpy as np
import tensorflow as tf

NAMES = {  # what Keras's layer calls it: what plain classes call it
    "gamma": ("gamma", "weight", "scale"),
    "beta": ("beta", "bias", "shift"),
    "moving_mean": ("moving_mean", "running_mean"),
    "moving_variance": ("moving_variance", "moving_var", "running_var", "running_variance"),
}
SETTINGS = {"momentum": ("momentum",), "epsilon": ("epsilon", "eps")}


class Attribute:
    """An array that stands in an attribute of an object, with a variable's `assign`.

    Statistics that were kept with axes of size 1 are read without them.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(getattr(self._owner, self._name), dtype).reshape(-1)

    @property
    def shape(self) -> Tuple[int, ...]:
        return np.asarray(self).shape

    def assign(self, values: Any) -> None:
        old = np.asarray(getattr(self._owner, self._name))
        setattr(self._owner, self._name, np.asarray(values, old.dtype).reshape(old.shape))


def adapt(plain: Any) -> type:
    """The Keras layer class around a plain one."""
    parameters = dict(inspect.signature(plain).parameters)
    channels = next((name for name, one in parameters.items() if one.default is one.empty), None)
    own = {name: next((o for o in own if o in parameters), None) for name, own in SETTINGS.items()}

    class Plain(keras.layers.Layer):
        def __init__(self, **settings: Any) -> None:
            super().__init__()
            self._settings = {own[name]: setting for name, setting in settings.items()}

        def build(self, shape: Any) -> None:
            def make(settings: Any) -> Any:
                return plain(shape[-1], **settings) if channels else plain(**settings)

            theirs = dict(self._settings)
            momentum = own["momentum"]
            if momentum in theirs and _weighs_the_new(make({momentum: 0.25}), shape[-1]):
                theirs[momentum] = 1 - theirs[momentum]
            self.inner = make(theirs)
            names = {name: _attribute(self.inner, name) for name in NAMES}
            if any(n is not None and getattr(self.inner, n) is None for n in names.values()):
                _call(self.inner, np.eye(4, shape[-1], dtype="float32"), True)
                names = {name: _attribute(self.inner, name) for name in NAMES}
                for name, start in (("moving_mean", 0.0), ("moving_variance", 1.0)):
                    if found := names[name]:
                        Attribute(self.inner, found).assign(np.full(shape[-1], start))
            for name, found in names.items():
                if found is not None:
                    setattr(self, name, Attribute(self.inner, found))
            self.built = True

        def call(self, inputs: Any, training: bool = False) -> Any:
            return tf.convert_to_tensor(_call(self.inner, np.asarray(inputs), training))

    settings = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                for name, theirs in own.items() if theirs]
    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    constructor: Any = Plain.__init__
    constructor.__signature__ = inspect.Signature([self_, *settings])
    Plain.__name__ = plain.__name__
    return Plain


def _call(inner: Any, rows: Any, training: bool) -> Any:
    """Calls a plain object in a mode."""
    takes = "training" in inspect.signature(inner.__call__).parameters
    inner.training = training
    return inner(rows, **({"training": training} if takes else {}))


def _attribute(inner: Any, name: str) -> Optional[str]:
    """What a plain object calls one of Keras's weights; None if it has none."""
    return next((n for n in NAMES[name] if hasattr(inner, n)), None)


def _weighs_the_new(inner: Any, channels: int) -> bool:
    """Whether an object whose momentum is a quarter moves its mean by less than half of the way."""
    found = _attribute(inner, "moving_mean")
    if found != "running_mean":
        return False
    rows = np.arange(4 * channels, dtype="float32").reshape(4, channels) % 7
    _call(inner, rows, True)
    before = np.asarray(Attribute(inner, found), np.float64)
    _call(inner, rows + 100, True)
    moved = np.asarray(Attribute(inner, found), np.float64) - before
    return bool(np.mean(moved / (rows.mean(0) + 100 - before)) < 0.5)
