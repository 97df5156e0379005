"""What a probe is, how it is run on a layer class, and the tools that probes are made of."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

from bn_keras.diagnostics.conformance.flax_modules import is_linen, linen_adapter
from bn_keras.diagnostics.conformance.foreign import Adapter, Foreign, Weight
from bn_keras.diagnostics.conformance.functions import FunctionAdapter, is_factory
from bn_keras.diagnostics.conformance.names import WRAP, is_needed, parameters
from bn_keras.diagnostics.conformance.objects import ObjectAdapter
from bn_keras.diagnostics.severity import SEVERITIES


class Late:
    """A module that is imported when something of it is asked for: most things need no Keras."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks at it, as pickle does, wants nothing of it
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


keras: Any = Late("keras")
tf: Any = Late("tensorflow")

Check = Callable[["Maker"], str]  # raises Failed, or returns the evidence

PASS, FAIL, SKIP = "pass", "fail", "skip"
PROBES: Dict[str, "Probe"] = {}
# Lines of an error's text that say where and not what.
PREAMBLE = re.compile(r"in user code|File |Exception encountered|\W*$|\^")
COLOR = re.compile(r"\x1b\[[0-9;]*m")


@functools.cache
def keras_layer() -> Any:
    """Keras's layer; the command asks before a module that may put another in its place."""
    return keras.layers.BatchNormalization


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


def run(thing: Any, names: Optional[Iterable[str]] = None, **given: Any) -> Iterator[Outcome]:
    """Runs probes on a batch normalization, in this process.

    Args:
        thing: a keras.layers.Layer class with Keras's names for settings and weights: `momentum`,
            `epsilon`, …; `gamma`, `beta`, `moving_mean`, `moving_variance`; or an instance or
            factory of one, a plain class, a function, a module: see `Maker`.
        names: which probes; None means all.
        **given: more arguments for the thing, by its own names.

    Yields:
        An Outcome for each probe. Whatever the thing raises is a failure, with that as evidence;
        only KeyboardInterrupt is let through. What ends the process itself, `find_layer` and `run`
        cannot catch: the command runs them in a process of their own.
    """
    make = thing if isinstance(thing, Maker) else Maker(thing, **given)
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


def find_layer(path: str) -> Any:
    """The thing at `module:name`, `file.py:name`, or a dotted path such as `keras.layers.Dense`.

    Raises:
        ValueError: there is no such thing, importing it failed, or it cannot be called.
    """
    module, colon, name = path.rpartition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    wanted = (
        "expected module:Class of a module that can be imported from here, such as "
        "keras.layers:BatchNormalization, or file.py:name"
    )
    if not module or not name:
        raise ValueError(f"received {path!r}; {wanted}")
    try:
        found = _file(module) if module.endswith(".py") else importlib.import_module(module)
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
    return found


def may_need_keras(path: str) -> bool:
    """Whether the thing at a path may be a Keras layer; False for a file that names no Keras."""
    module = path.rpartition(":" if ":" in path else ".")[0]
    if module.endswith(".py"):
        home = pathlib.Path(module)
    else:
        try:
            spec = importlib.util.find_spec(module.partition(".")[0])
        except (ImportError, ValueError):
            return False
        if spec is None:
            return False
        home = pathlib.Path(spec.origin or "")
    if home.suffix != ".py" or home.name == "__init__.py":  # a package: who knows
        return not module.endswith(".py")
    try:
        text = home.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search("keras|tensorflow|exec|__import__|import_module", text) is not None


def _file(path: str) -> Any:
    """The module in a file, which may import its neighbours."""
    home = pathlib.Path(path).resolve()
    if not home.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    sys.path.insert(0, str(home.parent))
    spec = importlib.util.spec_from_file_location(home.stem, home)
    assert spec is not None and spec.loader is not None  # it is a .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[home.stem] = module
    spec.loader.exec_module(module)
    return module


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
        thing: a keras.layers.Layer class, or an instance, partial or factory of one; a plain class
            or instance that is called with NumPy rows; a function of the inputs and `training`; a
            PyTorch or Flax linen module or its class.
        **given: more arguments for it, by its own names.

    Attributes:
        kind: what the thing is, in words.
        name: its own name.
        conventions: sentences on what differs from Keras and is no mistake.
        foreign: the Adapter of what is no Keras layer; None for Keras layers.

    Raises:
        ValueError: something that cannot be adapted, or a constructor that asks for more than
            Keras's arguments.
    """

    def __init__(self, thing: Any, **given: Any) -> None:
        self.foreign: Optional[Adapter] = None
        made = _made_by(thing, given)
        factory = inspect.isroutine(thing) and made is not thing
        self.name = getattr(made if factory else thing, "__name__", type(made).__name__)
        if not _is_keras(made) and not (made is None and inspect.isclass(thing)):
            self.foreign = _adapted(made if factory else thing, {} if factory else given)
            self.kind, self.name = self.foreign.kind, self.foreign.name
            self.conventions = self.foreign.conventions
            return
        self.kind, self.conventions = "a Keras layer", []
        self._layer_class: Any = thing if made is None else type(made)
        self._known = _settings(self._layer_class)
        self._given = dict(given) if made is None else _given_to(made, self._known)
        theirs = inspect.signature(keras_layer().__init__).parameters
        for name, one in self._known.items():
            if is_needed(one) and name not in self._given:
                if name not in theirs:
                    raise ValueError(
                        f"{self._layer_class.__name__} cannot be made without {name}; expected a "
                        "constructor that needs none but Keras's arguments, such as momentum and "
                        "epsilon; or give it to check by name"
                    )
                self._given[name] = theirs[name].default

    def __call__(self, **settings: Any) -> Any:
        """A fresh layer; skips the probe if the thing takes no such setting."""
        unknown = [name for name in settings if not self.takes(name)]
        if unknown:
            raise NotApplicable(f"takes no argument {', '.join(unknown)}")
        if self.foreign:
            return self.foreign(**settings)
        return self._layer_class(**{**self._given, **settings})

    def takes(self, name: str) -> bool:
        """Whether the thing has such an argument."""
        return self.foreign.takes(name) if self.foreign else name in self._known

    def has_no_default(self, name: str) -> bool:
        """Whether it is no Keras layer and has this setting without a default."""
        settings = self.foreign.settings if self.foreign else {}
        return name in settings and settings[name] is None

    def where(self, **settings: Any) -> Any:
        """A fresh layer with those of the settings that the thing takes."""
        return self(**{name: one for name, one in settings.items() if self.takes(name)})

    def images(self) -> Any:
        """A fresh layer for images; skips the probe if the thing is made for rows."""
        made = self.foreign.images() if self.foreign else self()
        if made is None:
            raise NotApplicable("made for rows, not for images")
        return made

    def note(self, convention: str) -> None:
        """Keeps a sentence on what differs from Keras and is no mistake."""
        if convention not in self.conventions:
            self.conventions.append(convention)

    def epsilon(self, epsilon: float) -> Tuple[float, float]:
        """The epsilon that the thing has if asked for this one, and how far it is known.

        One of its own is taken for 0, since what people choose is small.
        """
        return (epsilon, 1e-4) if self.takes("epsilon") else (0.0, 2e-3)

    def needs_mask(self) -> None:
        """Skips the probe if `call` takes no mask."""
        self.needs_keras("takes no mask")
        known = inspect.signature(self._layer_class.call).parameters.values()
        if not any(one.name == "mask" or one.kind == one.VAR_KEYWORD for one in known):
            raise NotApplicable("call takes no argument mask")

    def needs_keras(self, what: str) -> None:
        """Skips the probe if the thing is no Keras layer."""
        if self.foreign:
            raise NotApplicable(f"{self.kind}: {what}")

    def needs_gradients(self, training: bool = True) -> None:
        """Skips the probe if no gradient can be had in this mode."""
        if self.foreign and not self.foreign.has_gradients:
            raise NotApplicable(f"{self.kind}: no gradients, since it has no backward(dy)")
        if self.foreign and not training and not self.foreign.kit.gradients:
            raise NotApplicable(f"{self.kind}: its backward(dy) is for training")
        if self.foreign and not training and self.foreign.trains_by_gradients:
            raise NotApplicable(f"{self.kind}: with gradients, it takes itself to be training")

    def needs_averages(self) -> None:
        """Skips the probe if averaging is left to a function's caller."""
        if self.foreign and not self.foreign.updates:
            raise NotApplicable(f"{self.kind}: its caller averages")


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


def _is_keras(made: Any) -> bool:
    """Whether it is a Keras layer; does not import Keras to know."""
    return "keras" in sys.modules and isinstance(made, keras.layers.Layer)


def _made_by(thing: Any, given: Dict[str, Any]) -> Any:
    """What the thing makes, or itself if it makes nothing; None for a Keras layer's class."""
    if inspect.isclass(thing):
        return None if "keras" in sys.modules and issubclass(thing, keras.layers.Layer) else thing
    inner = getattr(thing, "func", thing)  # of a partial
    if inspect.isclass(inner) or (inspect.isroutine(inner) and is_factory(inner)):
        needed = [name for name, one in parameters(thing).items()
                  if is_needed(one) and name not in given]
        if needed:  # of the number of channels, such as a factory of a plain class
            return thing
        try:
            return thing(**given)
        except Exception as error:
            raise ValueError(
                f"calling {getattr(thing, '__name__', thing)!r} ended in {describe(error)}; "
                f"expected a factory that returns a layer, or a function of the inputs and "
                f"`training`.{WRAP}"
            ) from error
    return thing


def _given_to(layer: Any, known: Dict[str, inspect.Parameter]) -> Dict[str, Any]:
    """What a Keras layer's constructor was given, by its config and its attributes."""
    try:
        config = dict(layer.get_config())
    except Exception:  # a class of a learner need not have one
        config = {}
    found = {name: config.get(name, getattr(layer, name, None)) for name in known}
    return {name: one for name, one in found.items() if one is not None and name != "name"}


def _adapted(thing: Any, given: Dict[str, Any]) -> Adapter:
    """The adapter of what is no Keras layer, after calls that show that it works."""
    if not callable(thing) and not any(hasattr(thing, name) for name in ("forward", "call")):
        raise ValueError(
            f"received {repr(thing)[:80]}; expected a subclass of keras.layers.Layer, a plain "
            f"class with __call__(x, training), or a function of x and training.{WRAP}"
        )
    if is_linen(thing):
        return linen_adapter(thing, given).settle()
    inner = getattr(thing, "func", thing)  # of a partial
    function = inspect.isroutine(inner) and not is_factory(inner)
    return (FunctionAdapter if function else ObjectAdapter)(thing, given).settle()


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
    if isinstance(tensor, (np.ndarray, Weight)):
        return np.asarray(tensor, np.float64)
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
    if isinstance(layer, Foreign):
        return layer.gradients(x, dy, training)
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
