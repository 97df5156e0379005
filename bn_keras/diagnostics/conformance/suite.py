"""What a probe is, how it is run on a layer class, and the tools that probes are made of."""

import dataclasses
import importlib
import inspect
import pathlib
import re
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import keras
import numpy as np
import tensorflow as tf

from bn_keras.diagnostics.conformance.plain import adapt
from bn_keras.diagnostics.severity import SEVERITIES

Check = Callable[["Maker"], str]  # raises Failed, or returns the evidence

PASS, FAIL, SKIP = "pass", "fail", "skip"
PROBES: Dict[str, "Probe"] = {}
# Taken before any module of a user is imported, which may put a layer of its own in its place.
KERAS_LAYER = keras.layers.BatchNormalization
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
        severity: how bad a failure is, one of SEVERITIES.
        why: what a user meets where it does not.
        check: `(make) -> evidence`; `make(**settings)` gives a fresh layer. Raises Failed.
    """

    kind: str
    name: str
    severity: str
    why: str
    check: Check


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one probe found: "pass", "fail" or "skip", and the evidence for it."""

    probe: Probe
    verdict: str
    evidence: str


def probe(severity: str) -> Callable[[Check], Check]:
    """Decorator: makes `(make) -> evidence` a probe; its docstring says why it matters."""
    assert severity in SEVERITIES

    def add(check: Check) -> Check:
        kind, name = check.__module__.rpartition(".")[2], check.__name__.replace("_", " ")
        PROBES[name] = Probe(kind, name, severity, check.__doc__ or "", check)
        return check

    return add


def run(layer_class: type, names: Optional[Iterable[str]] = None) -> Iterator[Outcome]:
    """Runs probes on a layer class, in this process.

    Args:
        layer_class: a keras.layers.Layer class with Keras's names for settings and weights:
            `momentum`, `epsilon`, …; `gamma`, `beta`, `moving_mean`, `moving_variance`; or a plain
            class that `plain.adapt` takes.
        names: which probes; None means all.

    Yields:
        An Outcome for each probe. Whatever the layer raises is a failure, with that as evidence;
        only KeyboardInterrupt is let through. What ends the process itself, `find_layer` and `run`
        cannot catch: the command runs them in a process of their own.
    """
    make = Maker(layer_class)
    for name in list(PROBES) if names is None else names:
        verdict, evidence = _judge(PROBES[name], make)
        yield Outcome(PROBES[name], verdict, evidence)


def _judge(question: Probe, make: "Maker") -> Tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a layer warns of is a probe's to ask for
        try:
            return PASS, question.check(make)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, Failed):
                return FAIL, str(error)
            if isinstance(error, NotApplicable) and _raised_here(error):
                return SKIP, str(error)
            return FAIL, f"expected no error, received {describe(error)}"


def _raised_here(error: BaseException) -> bool:
    """Whether the suite raised it; a layer that does would have its own failure skipped."""
    trace: Any = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return pathlib.Path(trace.tb_frame.f_code.co_filename).parent == pathlib.Path(__file__).parent


def find_layer(path: str) -> type:
    """The layer class at `module:Class`, or at a dotted path such as `keras.layers.Dense`.

    Raises:
        ValueError: there is no such thing, importing it failed, or it is no layer class.
    """
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    wanted = (
        "expected module:Class of a module that can be imported from here, such as "
        "keras.layers:BatchNormalization"
    )
    if not module or not name:
        raise ValueError(f"received {path!r}; {wanted}")
    try:
        found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may do anything, sys.exit included
        place = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"received {path!r}; importing {module} ended in {describe(error)}{place}; {wanted}"
        ) from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ValueError(f"received {path!r}; {error}; {wanted}") from error
    if not (inspect.isclass(found) and any("__call__" in vars(base) for base in found.__mro__)):
        raise ValueError(
            f"received {path!r}, which is {repr(found)[:80]}; expected a subclass of "
            "keras.layers.Layer, or a plain class with __call__(x)"
        )
    return found


def select(texts: Sequence[str]) -> List[str]:
    """Names of the probes that any of the texts asks for.

    Args:
        texts: parts of a probe's name, kinds or severities, in any case; none means all probes.

    Raises:
        ValueError: a text that asks for none.
    """
    def asked(text: str) -> Set[str]:
        text = " ".join(text.lower().replace("_", " ").replace("-", " ").split())
        return {
            one.name for one in PROBES.values()
            if text and (text in one.name or text in (one.kind, one.severity.replace("-", " ")))
        }

    for text in texts:
        if not asked(text):
            kinds = dict.fromkeys(one.kind for one in PROBES.values())
            raise ValueError(
                f"received --only={text}, which no probe answers to; expected a kind "
                f"({', '.join(kinds)}), a severity ({', '.join(SEVERITIES)}) or a part of a "
                f"probe's name:\n  " + "\n  ".join(PROBES)
            )
    chosen = set().union(*map(asked, texts)) if texts else set(PROBES)
    return [name for name in PROBES if name in chosen]


class Maker:
    """`make(**settings)` gives a fresh layer, or skips the probe that asks for too much.

    Args:
        layer_class: as for `run`.

    Raises:
        ValueError: a plain class that cannot be adapted, or a constructor that asks for more than
            Keras's arguments.
    """

    def __init__(self, layer_class: type) -> None:
        self.plain = not issubclass(layer_class, keras.layers.Layer)
        if self.plain:
            layer_class = _adapted(layer_class)
        self._layer_class: Any = layer_class
        self._known = _settings(layer_class)
        theirs = inspect.signature(KERAS_LAYER.__init__).parameters
        needed = [one.name for one in self._known.values() if _is_needed(one)]
        for name in needed:
            if name not in theirs:
                raise ValueError(
                    f"{layer_class.__name__} cannot be made without {name}; expected a constructor "
                    "that needs none but Keras's arguments, such as momentum and epsilon"
                )
        self._given = {name: theirs[name].default for name in needed}

    def __call__(self, **settings: Any) -> Any:
        """A fresh layer; skips the probe if the class takes no such setting."""
        unknown = [name for name in settings if not self.takes(name)]
        if unknown:
            raise NotApplicable(f"takes no argument {', '.join(unknown)}")
        return self._layer_class(**{**self._given, **settings})

    def takes(self, name: str) -> bool:
        """Whether the constructor has such an argument."""
        return name in self._known

    def needs_mask(self) -> None:
        """Skips the probe if `call` takes no mask."""
        parameters = inspect.signature(self._layer_class.call).parameters.values()
        if not any(one.name == "mask" or one.kind == one.VAR_KEYWORD for one in parameters):
            raise NotApplicable("call takes no argument mask")

    def needs_keras(self, what: str) -> None:
        """Skips the probe if the class is no Keras layer."""
        if self.plain:
            raise NotApplicable(f"a plain class: {what}")


def _settings(layer_class: type) -> Dict[str, inspect.Parameter]:
    """Parameters of the constructor, those of its bases included as far as it hands on."""
    found: Dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(layer_class):
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for one in parameters:
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                found.setdefault(one.name, one)
        if base is keras.layers.Layer or not any(
            one.kind == one.VAR_KEYWORD for one in parameters
        ):
            break
    return found


def _adapted(plain: Any) -> Any:
    """The Keras layer class around a plain one, after a call that shows that it works."""
    layer_class = adapt(plain)
    try:
        layer_class()(np.eye(4, 3, dtype="float32"), training=True)
    except Exception as error:
        raise ValueError(
            f"{plain.__name__} on a NumPy array of shape (4, 3) ended in {describe(error)}; "
            "expected a subclass of keras.layers.Layer, or a plain class with __call__(x) and "
            "`training`"
        ) from error
    return layer_class


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


# ---------------------------------------------------------------- what probes are made of


def describe(error: BaseException) -> str:
    """An exception as one short line, whatever its class makes of that."""
    try:
        code = f"({error.code!r})" if isinstance(error, SystemExit) else ""
        told = "" if code else first_line(error)
        return f"{type(error).__name__}{code}" + (f": {told}" if told else "")
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be read"


def first_line(error: BaseException) -> str:
    """The line of an error's text that says what happened."""
    lines = [line.strip() for line in COLOR.sub("", str(error)).splitlines()]
    # From inside a graph, the text quotes the user's code before it comes to the error.
    own = f"{type(error).__name__}: "
    start = next((number for number, line in enumerate(lines) if line.startswith(own)), 0)
    told = [line.removeprefix(own) for line in lines[start:]]
    return next((line for line in told + lines if not PREAMBLE.match(line)), "")


def draw(*shape: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32, the same at every call."""
    return np.random.default_rng(seed).normal(mean, 1.0, shape).astype("float32")


def array(tensor: Any) -> np.ndarray:
    """A tensor of any kind as float64."""
    return np.asarray(tf.cast(tf.convert_to_tensor(tensor), tf.float64))


def weight(layer: Any, name: str) -> Any:
    """A weight of the layer; skips the probe if it has none of that name."""
    found = getattr(layer, name, None)
    if found is None:
        raise NotApplicable(f"has no weight {name}")
    return found


def value(layer: Any, name: str) -> np.ndarray:
    """The values of a weight as float64; skips the probe if there is none."""
    return array(weight(layer, name))


def statistics(layer: Any) -> np.ndarray:
    """Moving mean and moving variance as one array of two rows."""
    return np.stack([value(layer, "moving_mean"), value(layer, "moving_variance")])


def expect(condition: Any, expected: str, received: str) -> str:
    """Fails unless the condition holds; returns the evidence, `expected …, received …`."""
    evidence = f"expected {expected}, received {received}"
    if not condition:
        raise Failed(evidence)
    return evidence


def alike(found: Any, expected: Any, tolerance: float = 1e-4, of: str = "") -> str:
    """Fails unless two arrays agree; returns the evidence, at the element that is most wrong.

    Args:
        found, expected: arrays or numbers.
        tolerance: the largest error, relative to the largest expected value if that is above 1.
        of: a noun for what is compared, where a probe compares several.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    of = f"{of} " if of else ""
    expect(found.shape == expected.shape, f"{of}shape {expected.shape}", f"shape {found.shape}")
    if not found.size:
        return f"expected {of}shape {expected.shape}, received it"
    errors, scale = np.abs(found - expected), max(1.0, np.abs(expected).max())
    worst = np.unravel_index(np.argmax(errors), errors.shape)  # NaN counts as the largest
    error = errors[worst] / scale
    margin = f"± {tolerance * scale:.0e}" if tolerance else "exactly"
    return expect(
        error <= tolerance,  # written so that NaN fails
        f"{of}{expected[worst]:.6g} {margin}",
        f"{found[worst]:.6g} (largest error {errors[worst]:.1e})",
    )


def gradients(layer: Any, x: Any, dy: Any, training: bool) -> List[np.ndarray]:
    """Gradients of sum(y * dy) by x and by gamma and beta if there are any, as float64 arrays."""
    x, dy = tf.constant(x), tf.constant(dy)
    weights = [getattr(layer, name, None) for name in ("gamma", "beta")]
    sources = [x] + [
        one.value if isinstance(one, keras.Variable) else one for one in weights if one is not None
    ]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
    found = tape.gradient(y, sources, output_gradients=dy)
    if any(gradient is None for gradient in found):
        raise Failed("expected gradients of x, gamma and beta, received None")
    return [array(gradient) for gradient in found]


def set_weights(layer: Any, shape: Tuple[Optional[int], ...], seed: int = 7) -> Any:
    """Builds a layer and gives gamma, beta and the statistics values that differ by channel."""
    layer.build(shape)
    for number, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
        if getattr(layer, name, None) is not None:
            variable = getattr(layer, name)
            values = 0.5 + np.random.default_rng(seed + number).random(tuple(variable.shape))
            variable.assign(values.astype("float32"))
    return layer


def affine(layer: Any, channels: int) -> Tuple[np.ndarray, np.ndarray]:
    """Gamma and beta as float64 arrays; ones and zeros where the layer has none."""
    gamma, beta = getattr(layer, "gamma", None), getattr(layer, "beta", None)
    return (
        np.ones(channels) if gamma is None else array(gamma),
        np.zeros(channels) if beta is None else array(beta),
    )
