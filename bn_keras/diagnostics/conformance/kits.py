"""Kits: arrays of NumPy, TensorFlow, PyTorch and JAX, for code that is none of Keras's layers.

A kit turns a NumPy array into what the code under test calculates with, and gets gradients where
there are any. Nothing is imported that the code has not imported itself.
"""

import contextlib
import importlib
import types
from typing import Any, Callable, ContextManager, Dict, Iterable, List, Optional, Sequence, Set

import numpy as np

Function = Callable[..., Any]


class Kit:
    """NumPy: arrays are what they are, and there are no gradients."""

    name = "NumPy"
    gradients: Optional[Callable[[Function, Sequence[Any], Any], List[np.ndarray]]] = None

    def tensor(self, values: Any) -> Any:
        """A new array of float32 values (statistics: of their own type)."""
        return np.array(values)

    def variable(self, values: Any) -> Any:
        """Like `tensor`, and code may update it in place."""
        return self.tensor(values)

    def numpy(self, values: Any) -> np.ndarray:
        """A new NumPy array."""
        return np.array(values)

    def mode(self, training: bool) -> ContextManager[Any]:
        """What a call in this mode is made in: without gradients in inference, in PyTorch."""
        return contextlib.nullcontext()


class _TensorFlow(Kit):
    name = "TensorFlow"

    def __init__(self) -> None:
        self._tf: Any = importlib.import_module("tensorflow")

    def tensor(self, values: Any) -> Any:
        return self._tf.constant(np.asarray(values))

    def variable(self, values: Any) -> Any:
        return self._tf.Variable(np.asarray(values))

    def numpy(self, values: Any) -> np.ndarray:
        return np.array(self._tf.convert_to_tensor(values))

    def gradients(self, call: Function, arrays: Sequence[Any], dy: Any) -> List[np.ndarray]:
        sources = [self.tensor(one) for one in arrays]
        with self._tf.GradientTape() as tape:
            tape.watch(sources)
            y = call(*sources)
        found = tape.gradient(y, sources, output_gradients=self.tensor(dy))
        return [np.full(np.shape(a), np.nan) if one is None else np.array(one)
                for one, a in zip(found, arrays)]


class _Torch(Kit):
    name = "PyTorch"

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def tensor(self, values: Any) -> Any:
        return self._torch.from_numpy(np.array(values))

    def numpy(self, values: Any) -> np.ndarray:
        if isinstance(values, self._torch.Tensor):
            values = values.detach().cpu().numpy()
        return np.array(values)

    def mode(self, training: bool) -> ContextManager[Any]:
        grad: ContextManager[Any] = self._torch.set_grad_enabled(training)
        return grad

    def gradients(self, call: Function, arrays: Sequence[Any], dy: Any) -> List[np.ndarray]:
        sources = [self.tensor(one).requires_grad_() for one in arrays]
        y = call(*sources)
        if not y.requires_grad:
            return [np.full(np.shape(a), np.nan) for a in arrays]
        found = self._torch.autograd.grad(y, sources, self.tensor(dy), allow_unused=True)
        return [np.full(np.shape(a), np.nan) if one is None else self.numpy(one)
                for one, a in zip(found, arrays)]


class _Jax(Kit):
    name = "JAX"

    def __init__(self) -> None:
        self._jax: Any = importlib.import_module("jax")

    def tensor(self, values: Any) -> Any:
        return self._jax.numpy.asarray(np.asarray(values))

    def gradients(self, call: Function, arrays: Sequence[Any], dy: Any) -> List[np.ndarray]:
        _, pull = self._jax.vjp(call, *[self.tensor(one) for one in arrays])
        return [np.array(one) for one in pull(self.tensor(dy))]


KITS: Dict[str, Callable[[], Kit]] = {
    "torch": _Torch, "tensorflow": _TensorFlow, "keras": _TensorFlow, "jax": _Jax, "flax": _Jax,
}


def kit_of(functions: Iterable[Any]) -> Kit:
    """The kit of the first library that any of these functions uses, by the names in their code."""
    used: Set[str] = set()
    for function in functions:
        function = getattr(function, "__func__", function)
        code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        for name in _names(code):
            found = known.get(name)
            home = found.__name__ if isinstance(found, types.ModuleType) else getattr(
                found, "__module__", "")
            used.add(str(home).partition(".")[0])
    return next((KITS[name]() for name in KITS if name in used), Kit())


def _names(code: Any) -> Set[str]:
    """Global names in a code object and in those inside it."""
    if not isinstance(code, types.CodeType):
        return set()
    return set(code.co_names).union(*[_names(one) for one in code.co_consts])
