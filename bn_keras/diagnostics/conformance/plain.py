"""A plain class as a Keras layer, for the probes: `__call__(x)` on NumPy rows, no Keras in it.

It is made with the number of channels if it asks for one. Training is switched by its argument or
attribute `training`. Names are those of PyTorch or of Keras; a class that says `running_mean` has
PyTorch's momentum, the weight of the new value, and one that says `moving_mean` has Keras's.
"""

import inspect

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
    """An array that stands in an attribute of an object, with a variable's `assign`."""

    def __init__(self, owner, name):
        self._owner, self._name = owner, name

    def __array__(self, dtype=None, copy=None):
        return np.asarray(getattr(self._owner, self._name), dtype)

    @property
    def shape(self):
        return np.shape(getattr(self._owner, self._name))

    def assign(self, values):
        old = np.asarray(getattr(self._owner, self._name))
        setattr(self._owner, self._name, np.asarray(values, old.dtype))


def adapt(plain):
    """The Keras layer class around a plain one.

    Raises:
        ValueError: the class cannot be made, or called on NumPy rows, in this way.
    """
    parameters = dict(inspect.signature(plain).parameters)
    channels = next((name for name, one in parameters.items() if one.default is one.empty), None)
    own = {name: next((o for o in own if o in parameters), None) for name, own in SETTINGS.items()}

    class Plain(keras.layers.Layer):
        def __init__(self, **settings):
            super().__init__()
            self._settings = {own[name]: setting for name, setting in settings.items()}

        def build(self, shape):
            theirs = dict(self._settings)
            probe = plain(shape[-1]) if channels else plain()
            if "momentum" in theirs and hasattr(probe, "running_mean"):
                theirs["momentum"] = 1 - theirs["momentum"]
            self.inner = plain(shape[-1], **theirs) if channels else plain(**theirs)
            for name, names in NAMES.items():
                found = next((n for n in names if hasattr(self.inner, n)), None)
                if found is not None:
                    setattr(self, name, Attribute(self.inner, found))
            self.built = True

        def call(self, inputs, training=None):
            takes = "training" in inspect.signature(self.inner.__call__).parameters
            self.inner.training = training
            found = self.inner(np.asarray(inputs), **({"training": training} if takes else {}))
            return tf.convert_to_tensor(found)

    settings = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                for name, theirs in own.items() if theirs]
    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    Plain.__init__.__signature__ = inspect.Signature([self_, *settings])
    Plain.__name__ = plain.__name__
    try:
        Plain()(np.eye(4, 3, dtype="float32"), training=True)
    except Exception as error:
        from bn_keras.diagnostics.conformance.suite import describe

        raise ValueError(
            f"{plain.__name__} on a NumPy array of shape (4, 3) ended in {describe(error)}; "
            "expected a subclass of keras.layers.Layer, or a plain class with __call__(x) and "
            "`training`"
        ) from error
    return Plain
