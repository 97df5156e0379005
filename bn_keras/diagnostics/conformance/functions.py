"""A function as a layer: `batch_norm(x, gamma, beta, moving_mean, moving_variance, training)`.

It may return the outputs alone and update the statistics in place, or return them behind the
outputs. Stanford's CS231n hands the statistics over in a dictionary, which is taken as well.
"""

from typing import Any, Dict, List

import numpy as np

from bn_keras.diagnostics.conformance.foreign import Adapter, Foreign, Weight, source_of
from bn_keras.diagnostics.conformance.kits import kit_of
from bn_keras.diagnostics.conformance.names import (
    WEIGHTS,
    WRAP,
    is_needed,
    looked_for,
    parameters,
    role_of,
    roles,
    synonyms,
)

SWITCHES = ("training", "inference", "mode", "settings")
SIZES = ("channels", "features", "num_features", "dim", "n_features", "size", "units", "width")
STARTS = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


class FunctionAdapter(Adapter):
    """Makes layers whose weights are handed to a function at each call.

    Args:
        function: the function.
        given: more arguments for it, by its own names.

    Raises:
        ValueError: an argument that must be given and is in no list of names, or no `training`.
    """

    def __init__(self, function: Any, given: Dict[str, Any]) -> None:
        super().__init__()
        self.function, self.given = function, given
        inner = getattr(function, "func", function)  # of a partial
        self.name = inner.__name__
        known = parameters(function)
        self.inputs = next(iter(known), "")
        names = [name for name in known if name != self.inputs and name not in given]
        self.roles = roles(names)
        self.kit = kit_of([inner])
        self.kind = f"a {self.kit.name} function"
        strange = [name for name in names
                   if is_needed(known[name]) and name not in self.roles.values()]
        if not known or strange:
            raise ValueError(
                f"{self.name}({', '.join(known)}): received the arguments "
                f"{', '.join(strange) or 'none'}, which no list of names has; looked for "
                f"{looked_for(*WEIGHTS, 'training', 'momentum', 'epsilon')}; expected these names, "
                f"or give the argument to check by its own name.{WRAP}"
            )
        self.dictionary = self.roles.get("settings")
        switched = {*SWITCHES} & {*self.roles}
        self.trains_by_gradients = not switched and "is_grad_enabled" in source_of(inner)
        if not switched and not self.trains_by_gradients:
            raise ValueError(
                f"{self.name}({', '.join(known)}): no argument switches between training and "
                f"inference; looked for {looked_for('training', 'inference', 'mode')}; expected "
                f"one of them.{WRAP}"
            )
        for name in ("momentum", "epsilon"):
            if name in self.roles or self.dictionary:
                own = known.get(self.roles.get(name, ""))
                default = None if own is None or is_needed(own) else own.default
                self.settings[name] = default
        told = synonyms(self.roles)
        if told:
            self.conventions.append(told)
        self.has_gradients = self.kit.gradients is not None

    def make(self, settings: Dict[str, Any]) -> Foreign:
        return _FunctionLayer(self, settings)

    def settle(self) -> Adapter:
        super().settle()
        made, rows = self.make({}), np.arange(12, dtype="float32").reshape(4, 3)
        made.layout = self._layout
        made(rows, training=True)
        found = made.moving_mean
        if found is not None and not self.takes("momentum") and not self.given:
            if np.allclose(np.asarray(found), rows.mean(0)):
                self.updates = False
                self.conventions.append(
                    "It returns the mean and variance of the batch; the averaging is its caller's."
                )
        return self

    def source(self) -> str:
        return source_of(self.function)

    def has_keras_names(self) -> bool:
        return self.roles.get("moving_mean", "").startswith("moving_")


class _FunctionLayer(Foreign):
    """A function with weights of its own."""

    def __init__(self, adapter: FunctionAdapter, settings: Dict[str, Any]) -> None:
        self._of = adapter
        self._settings = settings
        self._state: Dict[str, Any] = {}
        self._dictionary: Dict[str, Any] = {}

    def _make(self, channels: int, rank: int) -> None:
        of, self._channels = self._of, channels
        shape = (1, channels, 1, 1) if self.layout.wide else (channels,)
        for role in WEIGHTS:
            if role in of.roles:
                start = np.full(shape, STARTS[role], np.float32)
                variable = role.startswith("moving")
                self._state[role] = (of.kit.variable if variable else of.kit.tensor)(start)
        if of.dictionary:
            for role, name in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
                self._dictionary[name] = np.full(channels, STARTS[role])
                setattr(self, role, self._weight(self._dictionary, name, channels))
        for role in self._state:
            setattr(self, role, self._weight(self._state, role, channels))

    def _weight(self, home: Dict[str, Any], name: str, channels: int) -> Weight:
        kit, fresh = self._of.kit, self._of.kit.variable

        def write(values: np.ndarray) -> None:
            home[name] = fresh(values)

        return Weight(lambda: kit.numpy(home[name]), write, channels)

    def _arguments(self, training: bool, **weights: Any) -> Dict[str, Any]:
        of, arguments = self._of, dict(self._of.given)
        arguments.update({of.roles[role]: weights.get(role, self._state[role])
                          for role in self._state})
        if "training" in of.roles:
            arguments[of.roles["training"]] = training
        if "inference" in of.roles:
            arguments[of.roles["inference"]] = not training
        mode = "train" if training else "test"
        if "mode" in of.roles:
            arguments[of.roles["mode"]] = mode
        for name, setting in self._settings.items():
            if name in of.roles:
                arguments[of.roles[name]] = setting
        for name, usual in (("momentum", 0.9), ("epsilon", 1e-3)):
            if name in of.roles and of.settings[name] is None:
                arguments.setdefault(of.roles[name], usual)
        if of.dictionary:
            self._dictionary["mode"] = mode
            self._dictionary.update(
                {"eps" if name == "epsilon" else name: setting
                 for name, setting in self._settings.items() if name not in of.roles}
            )
            arguments[of.dictionary] = self._dictionary
        return arguments

    def _call(self, x: np.ndarray, training: bool) -> Any:
        kit = self._of.kit
        before = {role: kit.numpy(one) for role, one in self._state.items()}
        with kit.mode(training):
            result = self._of.function(kit.tensor(x), **self._arguments(training))
        outputs, *rest = result if isinstance(result, (tuple, list)) else [result]
        if all(np.array_equal(kit.numpy(self._state[role]), one) for role, one in before.items()):
            self._keep(rest)
        return kit.numpy(outputs)

    def _keep(self, rest: List[Any]) -> None:
        """Takes statistics that stand behind the outputs, if the function returns them."""
        wanted = [role for role in ("moving_mean", "moving_variance") if role in self._state]
        found: List[Any] = []
        for one in rest:
            try:
                values = self._of.kit.numpy(one)
            except Exception:  # a cache for the backward pass, of whatever kind
                continue
            if values.dtype.kind == "f" and values.ndim:
                found.append(values)
        if len(found) != len(wanted):  # more than statistics, such as what a backward pass needs
            found = [one for one in found if one.size == self._channels]
        if wanted and len(found) >= len(wanted):
            for role, values in zip(wanted, found[-len(wanted):]):
                self._state[role] = self._of.kit.variable(values)

    def _gradients(self, x: np.ndarray, dy: np.ndarray, training: bool) -> List[np.ndarray]:
        kit, affine = self._of.kit, [r for r in ("gamma", "beta") if r in self._state]

        def outputs(x: Any, *weights: Any) -> Any:
            given = self._arguments(training, **dict(zip(affine, weights)))
            result = self._of.function(x, **given)
            return result[0] if isinstance(result, (tuple, list)) else result

        assert kit.gradients is not None  # needs_gradients has asked
        return kit.gradients(outputs, [x, *(kit.numpy(self._state[r]) for r in affine)], dy)


def is_factory(function: Any) -> bool:
    """Whether a function makes layers: it needs nothing but, perhaps, a number of channels."""
    needed = [name for name, one in parameters(function).items() if is_needed(one)]
    switched = {role_of(name) for name in parameters(function)} & {*SWITCHES}
    return not switched and (not needed or (len(needed) == 1 and needed[0].lower() in SIZES))
