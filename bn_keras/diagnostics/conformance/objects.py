"""Plain classes, their instances, and PyTorch's modules as layers.

A class is made with the number of channels if it asks for one. Training is switched by an argument
of the call, by `train()` and `eval()`, or by an attribute `training`. What is None before the first
call starts as in Keras, with a mean of 0 and a variance of 1.
"""

import copy
import inspect
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from bn_keras.diagnostics.conformance.foreign import Adapter, Foreign, Weight, source_of
from bn_keras.diagnostics.conformance.kits import kit_of
from bn_keras.diagnostics.conformance.names import (
    NAMES,
    WEIGHTS,
    WRAP,
    is_needed,
    looked_for,
    parameters,
    role_of,
    roles,
    synonyms,
)


class ObjectAdapter(Adapter):
    """Makes layers of a class, or copies of an instance.

    Args:
        thing: the class, a partial or factory of it, or an instance.
        given: more arguments for the constructor, by its own names.

    Raises:
        ValueError: no method to call, or a constructor that needs what is in no list of names.
    """

    holds = True

    def __init__(self, thing: Any, given: Dict[str, Any]) -> None:
        super().__init__()
        if not inspect.isclass(thing) and not inspect.isroutine(thing) and not given:
            thing, given = _again(thing)
        self.thing, self.given = thing, given
        self.makes = inspect.isclass(thing) or inspect.isroutine(thing) or hasattr(thing, "func")
        own = getattr(thing, "func", thing)
        self.type = own if inspect.isclass(own) else type(thing)
        self.name = getattr(own, "__name__", type(thing).__name__)
        known = parameters(thing) if self.makes else {}
        self.roles = roles(known)
        self.channels = self.rank = None
        for name, one in known.items():
            if not is_needed(one) or name in given or role_of(name) in ("momentum", "epsilon"):
                continue
            if role_of(name) == "rank":
                self.rank = name
            elif self.channels is None:
                self.channels = name
            else:
                raise ValueError(
                    f"{self.name}({', '.join(known)}): received a constructor that needs {name}; "
                    "expected one that needs the number of channels alone; give the argument to "
                    f"check by its own name.{WRAP}"
                )
        if self.makes:
            for role in ("momentum", "epsilon"):
                if role in self.roles:
                    default = known[self.roles[role]].default
                    default = None if default is inspect.Parameter.empty else default
                    self.settings[role] = given.get(self.roles[role], default)
        else:
            self.roles = roles(vars(thing))
            self.settings = {role: getattr(thing, self.roles[role])
                             for role in ("momentum", "epsilon") if role in self.roles}
        example = self._example()
        call = _method(type(example))
        if call is None:
            raise ValueError(
                f"received {self.name}, which has none of the methods __call__, forward, call; "
                f"expected a keras layer, a plain class with __call__(x, training), or a "
                f"function.{WRAP}"
            )
        self.call: Any = call
        functions = [one for base in type(example).__mro__ for one in vars(base).values()
                     if inspect.isfunction(one)]
        self.is_torch = any(base.__module__.startswith("torch.") for base in type(example).__mro__)
        self.kit = kit_of(functions)
        self.kind = "a PyTorch module" if self.is_torch else (
            f"a {'' if self.kit.name == 'NumPy' else self.kit.name + ' '}plain class")
        self.type = type(example)
        self.trains_by_gradients = any(
            "is_grad_enabled" in source_of(one) for one in _called(self.call))
        self.backward = None if self.kit.gradients else getattr(type(example), "backward", None)
        self.has_gradients = self.kit.gradients is not None or self.backward is not None

    def _example(self) -> Any:
        return self.instance(3, 2, {})

    def instance(self, channels: int, rank: int, settings: Dict[str, Any]) -> Any:
        """A fresh object with settings by Keras's names."""
        theirs = {self.roles[name]: setting for name, setting in settings.items()}
        if not self.makes:
            made = copy.deepcopy(self.thing)
            for name, setting in theirs.items():
                setattr(made, name, setting)
            return made
        theirs = {**self.given, **theirs}
        for role, usual in (("momentum", 0.9), ("epsilon", 1e-3)):
            if role in self.settings and self.settings[role] is None:
                theirs.setdefault(self.roles[role], usual)
        if self.rank:
            theirs[self.rank] = rank
        if self.channels:
            theirs[self.channels] = channels
        try:
            return self.thing(**theirs)
        except Exception as error:
            told = ", ".join(f"{name}={setting!r}" for name, setting in theirs.items())
            raise ValueError(
                f"{self.name}({told}) ended in {type(error).__name__}: {error}; expected a "
                f"constructor that takes the number of channels, or nothing.{WRAP}"
            ) from error

    def make(self, settings: Dict[str, Any]) -> Foreign:
        return _ObjectLayer(self, settings)

    def settle(self) -> Adapter:
        super().settle()
        made = self(**{})
        made(np.eye(4, 3, dtype="float32"), training=True)
        inner = made.inner  # type: ignore[attr-defined]
        found = roles(_attributes(inner))
        told = synonyms({**found, **self.roles})
        if told:
            self.conventions.insert(0, told)
        missing = [role for role in ("moving_mean", "moving_variance") if role not in found]
        if missing and self.makes:
            self.conventions.append(
                f"No attribute was recognized as {' and '.join(missing)}: looked for "
                f"{looked_for(*missing)}; found {', '.join(_attributes(inner)) or 'none'}. "
                "What it keeps there cannot be judged."
            )
        return self

    def source(self) -> str:
        return source_of(self.type)

    def has_keras_names(self) -> bool:
        made = self.make({})
        made(self._their_rows(made), training=True)
        inner = made.inner  # type: ignore[attr-defined]
        return roles(_attributes(inner)).get("moving_mean", "").startswith("moving_")

    def _their_rows(self, made: Foreign) -> np.ndarray:
        made.layout = self._layout
        return np.eye(4, 3, dtype="float32")


class _ObjectLayer(Foreign):
    """An object whose weights are attributes."""

    def __init__(self, adapter: ObjectAdapter, settings: Dict[str, Any]) -> None:
        self._of = adapter
        self._settings = settings
        self.inner: Any = None

    def _make(self, channels: int, rank: int) -> None:
        self.inner = self._of.instance(channels, rank, self._settings)
        found = self._names()
        unset = any(getattr(self.inner, name) is None for name in found.values())
        if unset or not {"moving_mean", "moving_variance"} <= {*found}:
            shape = (4, channels) if rank == 2 else (4, *[2] * (rank - 2), channels)
            start = np.random.default_rng(0).normal(size=shape).astype("float32")
            before = {*found}
            self._call(self._their(start), True)
            found = self._names()
            for role, value in (("moving_mean", 0.0), ("moving_variance", 1.0)):
                if role in found and (unset or role not in before):
                    self._weight(found[role], channels).assign(np.full(channels, value))
        for role, name in found.items():
            if getattr(self.inner, name, None) is not None:
                setattr(self, role, self._weight(name, channels))

    def _names(self) -> Dict[str, str]:
        found = roles(_attributes(self.inner))
        return {role: found[role] for role in WEIGHTS if role in found}

    def _weight(self, name: str, channels: int) -> Weight:
        kit = self._of.kit

        def read() -> Any:
            return kit.numpy(getattr(self.inner, name))

        return Weight(read, lambda values: _store(self.inner, name, values, kit), channels)

    def _arguments(self, training: bool) -> Dict[str, Any]:
        """Switches the object's mode; what its call takes of it is returned."""
        inner, known = self.inner, roles(parameters(self._of.call))
        if "training" in known:
            return {known["training"]: training}
        if "inference" in known:
            return {known["inference"]: not training}
        if "mode" in known:
            return {known["mode"]: "train" if training else "test"}
        if callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None)):
            (inner.train if training else inner.eval)()
        else:
            own = [n for n in NAMES["training"]
                   if hasattr(inner, n) and not callable(getattr(inner, n))]
            setattr(inner, own[0] if own else "training", training)
        return {}

    def _outputs(self, x: Any, training: bool) -> Any:
        call: Callable[..., Any] = self.inner if callable(self.inner) else getattr(
            self.inner, self._of.call.__name__)
        result = call(x, **self._arguments(training))
        return result[0] if isinstance(result, (tuple, list)) else result

    def _call(self, x: np.ndarray, training: bool) -> Any:
        with self._of.kit.mode(training):
            return self._of.kit.numpy(self._outputs(self._of.kit.tensor(x), training))

    def holds_gradients(self) -> str:
        x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
        self.build(x.shape)
        self._outputs(self._of.kit.tensor(self._their(x)).requires_grad_(), True)
        names = [self._names()[role] for role in ("moving_mean", "moving_variance")
                 if role in self._names()]
        return " and ".join(n for n in names if getattr(self.inner, n).requires_grad)

    def _gradients(self, x: np.ndarray, dy: np.ndarray, training: bool) -> List[np.ndarray]:
        kit, affine = self._of.kit, [r for r in ("gamma", "beta") if getattr(self, r) is not None]
        if kit.gradients is None:
            return self._backward(x, dy, training)
        names = self._names()
        kept = {role: getattr(self.inner, names[role]) for role in affine}

        def outputs(x: Any, *weights: Any) -> Any:
            for role, one in zip(affine, weights):
                _replace(self.inner, names[role], one)
            return self._outputs(x, training)

        try:
            return kit.gradients(outputs, [x, *(kit.numpy(kept[role]) for role in affine)], dy)
        finally:
            for role in affine:
                _replace(self.inner, names[role], kept[role])

    def _backward(self, x: np.ndarray, dy: np.ndarray, training: bool) -> List[np.ndarray]:
        """By the object's own backward(dy); gradients of gamma and beta where they can be found."""
        self._call(x, training)
        result = self.inner.backward(dy)
        dx, *rest = result if isinstance(result, (tuple, list)) else [result]
        own = {name.lower().strip("_"): getattr(self.inner, name) for name in vars(self.inner)}
        names = self._names()
        for number, role in enumerate(r for r in ("gamma", "beta") if r in names):
            tried = [f"d{names[role]}", f"grad_{names[role]}", f"{names[role]}_grad", f"d{role}"]
            found = next((own[n.lower()] for n in tried if n.lower() in own), None)
            if found is None and number < len(rest):
                found = rest[number]
            rest = rest if found is None else [*rest[:number], found, *rest[number + 1:]]
        return [dx, *rest]


def _again(thing: Any) -> Tuple[Any, Dict[str, Any]]:
    """The class of an instance and what it was given, by its attributes; or itself and nothing.

    The number of channels is left open: a fresh object has that of the probe.
    """
    if hasattr(thing, "func"):  # a partial
        return thing, {}
    own, known = type(thing), parameters(type(thing))
    needed = [name for name, one in known.items() if is_needed(one)]
    if not known or any(not hasattr(thing, name) for name in needed[1:]):
        return thing, {}
    kept = {name: getattr(thing, name) for name in known if hasattr(thing, name)}
    plain = (bool, int, float, str, tuple)
    return own, {name: one for name, one in kept.items()
                 if name not in needed[:1] and isinstance(one, plain)}


def _called(call: Any) -> List[Any]:
    """A method and the functions of its own module that it names."""
    own = [call.__globals__.get(name) for name in call.__code__.co_names] if inspect.isfunction(
        call) else []
    return [call, *(one for one in own if inspect.isfunction(one))]


def _attributes(inner: Any) -> List[str]:
    """Names of what an object holds, its class's own and PyTorch's registered ones included."""
    registered = [name for home in ("_parameters", "_buffers")
                  for name in vars(inner).get(home, ())]
    of_class = [name for base in type(inner).__mro__ if not base.__module__.startswith("torch")
                for name, one in vars(base).items()
                if not name.startswith("__") and not callable(one)]
    return [*vars(inner), *registered, *of_class]


def _method(own: Any) -> Optional[Any]:
    """What an object is called by; a module's `forward` where `__call__` is the library's."""
    forward, call = getattr(own, "forward", None), getattr(own, "call", None)
    if "__call__" in vars(own) and not own.__module__.startswith("torch"):
        return own.__call__
    for base in own.__mro__[:-1]:
        if "__call__" in vars(base) and not base.__module__.startswith("torch"):
            return base.__call__
    return forward or call


def _store(owner: Any, name: str, values: np.ndarray, kit: Any) -> None:
    """Writes values into an attribute, in place where it is a variable or a tensor of a module."""
    old = getattr(owner, name)
    if hasattr(old, "assign"):
        old.assign(values)
    elif hasattr(old, "detach"):
        old.data = kit.tensor(values)
    else:
        setattr(owner, name, kit.tensor(values))


def _replace(owner: Any, name: str, value: Any) -> None:
    """Puts another tensor into an attribute, past the check that a module makes of parameters."""
    home = next((vars(owner)[one] for one in ("_parameters", "_buffers")
                 if name in vars(owner).get(one, ())), None)
    if home is None:
        setattr(owner, name, value)
    else:
        home[name] = value
