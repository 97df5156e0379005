"""What a probe is, how all of them are run on a layer, and the table of what they found."""

import dataclasses
import importlib
import inspect
import re
import warnings
from typing import Callable

import keras
import numpy as np
import tensorflow as tf

PASS, FAIL, SKIP = "pass", "fail", "skip"
PROBES: dict = {}
# Lines of an error's text that say where and not what.
PREAMBLE = re.compile(r"in user code|File |Exception encountered|\W*$|\^")
COLOR = re.compile(r"\x1b\[[0-9;]*m")


class Failed(Exception):
    """What a probe raises where the layer does not do what it should; the message is evidence."""


class NotApplicable(Exception):
    """What ends a probe that cannot be made on this layer or machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """One question to a batch normalization layer.

    Attributes:
        kind: the file that it stands in, such as "arithmetic".
        name: what the layer should do, in words.
        why: what a user meets where it does not.
        check: `(make) -> evidence`; `make(**settings)` gives a fresh layer. Raises Failed.
    """

    kind: str
    name: str
    why: str
    check: Callable


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one probe found: "pass", "fail" or "skip", and the evidence for it."""

    probe: Probe
    verdict: str
    evidence: str


def probe(check):
    """Decorator: makes `(make) -> evidence` a probe; its docstring says why it matters."""
    kind, name = check.__module__.rpartition(".")[2], check.__name__.replace("_", " ")
    PROBES[name] = Probe(kind, name, check.__doc__, check)
    return check


def run(layer_class, names=None):
    """Runs probes on a layer class.

    Args:
        layer_class: a keras.layers.Layer class with Keras's names for settings and weights:
            `momentum`, `epsilon`, …; `gamma`, `beta`, `moving_mean`, `moving_variance`.
        names: which probes; None means all.

    Yields:
        An Outcome for each probe. Whatever the layer raises is a failure, with that as evidence.
    """
    make = _maker(layer_class)
    for name in PROBES if names is None else names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a layer warns of is a probe's to ask for
            try:
                verdict, evidence = PASS, PROBES[name].check(make)
            except NotApplicable as reason:
                verdict, evidence = SKIP, str(reason)
            except Failed as failure:
                verdict, evidence = FAIL, str(failure)
            except Exception as error:
                verdict, evidence = FAIL, f"{type(error).__name__}: {first_line(error)}"
        yield Outcome(PROBES[name], verdict, evidence)


def find_layer(path):
    """The layer class at `module:Class`, or at a dotted path such as `keras.layers.Dense`.

    Raises:
        ValueError: there is no such thing, or it is no layer class.
    """
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path!r}: {error}; expected module:Class of a module that can be imported from here, "
            "such as keras.layers:BatchNormalization"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, keras.layers.Layer)):
        raise ValueError(f"{path!r} is {found!r}; expected a subclass of keras.layers.Layer")
    return found


# ---------------------------------------------------------------- what probes are made of


def first_line(error):
    """The line of an error's text that says what happened."""
    lines = [line.strip() for line in COLOR.sub("", str(error)).splitlines()]
    # From inside a graph, the text quotes the user's code before it comes to the error.
    own = f"{type(error).__name__}: "
    told = [line.removeprefix(own) for line in lines if line.startswith(own)]
    return next((line for line in told + lines if not PREAMBLE.match(line)), "")


def draw(*shape, mean=0.0, seed=0):
    """Normal numbers in float32, the same at every call."""
    return np.random.default_rng(seed).normal(mean, 1.0, shape).astype("float32")


def array(tensor):
    """A tensor of any kind as float64."""
    return np.asarray(tf.cast(tf.convert_to_tensor(tensor), tf.float64))


def expect(condition, evidence):
    """Fails with the evidence unless the condition holds; returns the evidence."""
    if not condition:
        raise Failed(evidence)
    return evidence


def alike(found, expected, tolerance=1e-4):
    """Fails unless two arrays agree; returns the largest error, relative to the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise Failed(f"shape {found.shape} where {expected.shape} was expected")
    error = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    # Written so that NaN fails.
    return expect(error <= tolerance, f"largest error {error:.1e}")


def gradients(layer, x, dy, training):
    """Gradients of sum(y * dy) by x, gamma and beta, as float64 arrays."""
    x, dy = tf.constant(x), tf.constant(dy)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
    sources = [x, layer.gamma.value, layer.beta.value]
    found = tape.gradient(y, sources, output_gradients=dy)
    if any(gradient is None for gradient in found):
        raise Failed("no gradient reaches x, gamma or beta")
    return [array(gradient) for gradient in found]


def set_weights(layer, shape, seed=7):
    """Builds a layer and gives gamma, beta and the statistics values that differ by channel."""
    layer.build(shape)
    for number, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
        weight = getattr(layer, name)
        values = 0.5 + np.random.default_rng(seed + number).random(weight.shape)
        weight.assign(values.astype("float32"))
    return layer


def _maker(layer_class):
    known = _settings(layer_class)

    def make(**settings):
        unknown = sorted(set(settings) - known)
        if unknown:
            raise NotApplicable(f"takes no argument {', '.join(unknown)}")
        return layer_class(**settings)

    return make


def _settings(layer_class):
    """Names that the constructor takes, its bases' included as far as it hands arguments on."""
    names = {"name", "dtype", "trainable"}
    for base in inspect.getmro(layer_class):
        if base is keras.layers.Layer:
            break
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names - {"self"}
