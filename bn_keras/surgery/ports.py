"""Weights and statistics of a whole net from PyTorch or Flax into a Keras model, and to PyTorch.

    new_model, certificate = from_torch(model, module)

For a net that was written a second time, in Keras: `model` has the layers, `module` the weights.
What the frameworks understand differently is translated: the order of axes, the order of flattened
images, the momentum (PyTorch's is 1 - Keras's) and the epsilon of normalizations. The certificate
has a row for each layer, and says how far the outputs of both nets differ.
"""

import collections
import math
import warnings
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence, Union

import keras
import numpy as np

from bn_keras.surgery import copies
from bn_keras.surgery.certificate import KEPT, Certificate, Row, certificate_of, not_in_config
from bn_keras.surgery.port_kinds import (
    BATCH_NORM,
    CHANNELWISE,
    COUNTER,
    DENSE,
    Array,
    Misfit,
    Source,
    own_weights,
    values_for,
    values_from,
)
from bn_keras.surgery.port_order import (
    Channels,
    Place,
    Places,
    UnknownOrder,
    order_of_flat,
    places_of,
)
from bn_keras.surgery.port_outputs import Outside, TorchNet
from bn_keras.surgery.port_pairs import flax_sources, paired, torch_sources

PORTED = "ported"
# The defaults of each framework, for nets whose settings nobody gives: batch normalization's
# epsilon and momentum in that framework's words, and the epsilon of all other normalizations.
DEFAULTS = {"torch": (1e-5, 0.1, 1e-5), "flax": (1e-5, 0.99, 1e-6)}
TOLERANCE = 1e-5  # ResNet-18 and its PyTorch original differ by 8e-7; a wrong epsilon by 1e-4

Names = Mapping[str, Optional[str]]
Counts = Union[int, Mapping[str, int]]
Flattened = Mapping[str, Optional[Sequence[int]]]


def from_torch(
    model: keras.Model, net: Any, *, only_batch_norm: bool = False, names: Optional[Names] = None,
    flattened: Optional[Flattened] = None, eps: Optional[float] = None,
    momentum: Optional[float] = None, values_per_channel: Optional[Counts] = None,
    inputs: Any = None, tolerance: Optional[float] = TOLERANCE,
) -> tuple[keras.Model, Certificate]:
    """A copy of a model with the weights, statistics and settings of a net of PyTorch.

    The layers of both are paired in the order in which PyTorch's net defines them, by kind and
    shapes, along the model's graph of calls. So parallel branches may come in any order.

    Args:
        model: a keras.Model, built, with the same layers: batch, layer, group and RMS
            normalization, Dense, Conv1D to 3D, grouped, transposed and depthwise ones, Embedding,
            PReLU.
        net: a module; or a state_dict, of tensors or NumPy arrays. Only a module has the settings
            of its layers, and only its outputs can be compared.
        only_batch_norm: take nothing but the batch normalizations.
        names: for layers that stand in another place: path in the model → name in PyTorch, or None
            to leave a layer as it is.
        flattened: for dense layers behind a flattened image where the model's graph does not show
            that: path → shape of that image in Keras, such as (7, 7, 64); None if nothing was
            flattened.
        eps, momentum: of the normalizations of a state_dict, in PyTorch's words; None assumes its
            defaults, 1e-5 and .1, and warns where that changes a layer.
        values_per_channel: how many values of a channel the training batches had (examples times
            positions), for all layers or by path. PyTorch keeps n / (n - 1) times the variance of
            a batch in `running_var`, and Keras's layer does not. None leaves the values: the
            outputs are then the same, and training goes on from them.
        inputs: what both nets are called on for the certificate, in Keras's layout; None for random
            values.
        tolerance: the largest relative difference of the outputs from a module's that is allowed;
            None for any.

    Returns:
        `(new model, certificate)`. The model is not compiled. Its layers have the momentum and the
        epsilon of PyTorch's; what was frozen stays so. Where PyTorch has no weights
        (`affine=False`, `bias=False`) and Keras has, these are 1 or 0.

    Raises:
        TypeError: no keras.Model or no net, or the model cannot be copied.
        ValueError: the model is not built; the layers do not match, where the first pair that does
            not is named with the reason; or the outputs differ (`OutputsDiffer`).

    Warns:
        UserWarning: settings were assumed that change a layer.
    """
    port = _Port("from_torch", "torch", model, names, flattened, only_batch_norm)
    sources = torch_sources(net, port.name)
    is_module = hasattr(net, "named_modules")
    if is_module and (eps is not None or momentum is not None):
        raise ValueError(
            f"from_torch: eps={eps}, momentum={momentum} with a module, which has its own; "
            "expected them with a state_dict only."
        )
    port.pair(sources, is_module)
    port.read(eps, momentum, values_per_channel)
    return port.copy, port.certificate(
        TorchNet(net, port.places) if is_module else None, inputs, tolerance,
        "a state_dict has no outputs; give the module to compare them",
    )


def to_torch(
    model: keras.Model, net: Any, *, only_batch_norm: bool = False, names: Optional[Names] = None,
    flattened: Optional[Flattened] = None, values_per_channel: Optional[Counts] = None,
    inputs: Any = None, tolerance: Optional[float] = TOLERANCE,
) -> tuple[dict[str, Any], Certificate]:
    """A state_dict for a net of PyTorch, with the weights and statistics of a model.

    `net.load_state_dict(state)` takes it. A state_dict has no settings: where the epsilon or the
    momentum of a normalization differs, the certificate's `figures["to set"]` has it by name, and
    outputs are compared as they are with those settings.

    Args:
        model: a keras.Model, built.
        net: a module with the same layers, or its state_dict; it stays as it is.
        only_batch_norm, names, flattened, inputs, tolerance: as for `from_torch`.
        values_per_channel: as for `from_torch`; `running_var` becomes n / (n - 1) times Keras's.

    Returns:
        `(state_dict, certificate)`: all names of the net's own, as tensors of the same dtype and
        device, or as arrays where it had arrays.

    Raises:
        TypeError: as `from_torch`.
        ValueError: as `from_torch`.

    Warns:
        UserWarning: the module has another epsilon.
    """
    port = _Port("to_torch", "torch", model, names, flattened, only_batch_norm)
    sources = torch_sources(net, port.name)
    is_module = hasattr(net, "named_modules")
    port.pair(sources, is_module)
    found = port.write(values_per_channel)
    state = _filled(net, found)
    other = [name for name, settings in port.to_set.items() if "eps" in settings]
    if is_module and other:
        warnings.warn(
            f"to_torch: a state_dict has no settings, and {len(other)} normalizations of the "
            f"module have another epsilon than those of the model: {', '.join(other[:4])}"
            f"{', …' if len(other) > 4 else ''}. Set certificate.figures['to set'] there.",
            UserWarning, stacklevel=2,
        )
    return state, port.certificate(
        TorchNet(net, port.places, state, port.to_set) if is_module else None, inputs, tolerance,
        "a state_dict has no outputs; give the module to compare them",
    )


def from_flax(
    model: keras.Model, variables: Any, *, only_batch_norm: bool = False,
    names: Optional[Names] = None, epsilon: Optional[float] = None,
    momentum: Optional[float] = None, call: Optional[Callable[[Any], Any]] = None,
    inputs: Any = None, tolerance: Optional[float] = TOLERANCE,
) -> tuple[keras.Model, Certificate]:
    """A copy of a model with the weights and statistics of a net of Flax.

    Args:
        model: a keras.Model, built, with the same layers as for `from_torch`.
        variables: of linen, `{"params": …, "batch_stats": …}`, or an nnx.State.
        only_batch_norm: take nothing but the batch normalizations.
        names: for layers that stand in another place: path in the model → path in Flax, such as
            "Block_0/Conv_1"; None to leave a layer as it is.
        epsilon, momentum: of the normalizations; None assumes Flax's defaults (epsilon 1e-5 for
            batch normalization and 1e-6 for all others, momentum .99, which is Keras's meaning of
            the word), and warns where that changes a layer.
        call: the net as a function of its inputs, to compare the outputs, such as
            `lambda x: net.apply(variables, x, train=False)`.
        inputs, tolerance: as for `from_torch`; the layout is the same in both.

    Returns:
        `(new model, certificate)`, as `from_torch`.

    Raises:
        TypeError: as `from_torch`.
        ValueError: as `from_torch`.

    Warns:
        UserWarning: settings were assumed that change a layer.
    """
    port = _Port("from_flax", "flax", model, names, None, only_batch_norm)
    port.pair(flax_sources(variables, port.name), False)
    port.read(epsilon, momentum, None)
    return port.copy, port.certificate(
        None if call is None else Outside(call), inputs, tolerance,
        "the variables alone have no outputs; give call to compare them",
    )


class _Port:
    """One port: the copy of the model, its layers and what belongs to each."""

    def __init__(
        self, name: str, framework: str, model: keras.Model, names: Optional[Names],
        flattened: Optional[Flattened], only_batch_norm: bool,
    ) -> None:
        copies.check_model(model, name)
        self.name, self._framework = name, framework
        self._names = names or {}
        self._only_batch_norm = only_batch_norm
        self.copy = copies.copy_model(model)
        self.places: Places = places_of(self.copy)
        self.to_set: dict[str, dict[str, float]] = {}
        self._sources: dict[int, Source] = {}
        self._notes: dict[int, list[str]] = collections.defaultdict(list)
        self._guesses: list[str] = []
        self._tell_flattened(flattened or {})

    def _tell_flattened(self, flattened: Flattened) -> None:
        """Takes over what somebody knows of the channels of some layers."""
        places = {place.path: place for place in self.places.places}
        for path, sizes in flattened.items():
            channels = places[path].inputs if path in places else None
            if channels is None:
                raise ValueError(
                    f"{self.name}: flattened has the layer {path!r}; known: "
                    f"{', '.join(places) or 'none'}."
                )
            size = channels.root().size
            if sizes is not None and size is not None and math.prod(sizes) != size:
                raise ValueError(
                    f"{self.name}: flattened[{path!r}] is {tuple(sizes)}, which makes "
                    f"{math.prod(sizes)} values; expected a shape of {size}."
                )
            channels.tell(None if sizes is None else order_of_flat(sizes))

    def pair(self, sources: list[Source], is_module: bool) -> None:
        """Finds out which source belongs to which layer."""
        skipped = set()
        for number, place in enumerate(self.places.places):
            # A normalization without weights has an epsilon, of which only a module knows.
            is_bare = not own_weights(place.layer) and not is_module
            if is_bare or self._only_batch_norm and place.kind is not BATCH_NORM:
                skipped.add(number)
            elif place.kind is None and self._names.get(place.path, "") is not None:
                weights = ", ".join(variable.name for variable in own_weights(place.layer))
                raise ValueError(
                    f"{self.name}: no counterpart is known of {place.path!r} "
                    f"({type(place.layer).__name__}{weights and f' with {weights}'}), or Keras "
                    "does not track it (in a lambda); expected layers whose kinds all frameworks "
                    f"have, or names={{{place.path!r}: None}} to leave it as it is."
                )
        if self._only_batch_norm:
            sources = [source for source in sources if _is_batch_norm(source)]
        pairs = paired(
            self.places.places, sources, self._misfit, self._names, skipped, self.name
        )
        self._sources, self._guesses = pairs.sources, pairs.guesses

    def _misfit(self, place: Place, source: Source) -> Optional[str]:
        if place.kind is None:
            return f"no counterpart is known of a {type(place.layer).__name__}"
        try:
            if self.name == "to_torch":
                values_from(place.layer, place.kind, _weights(place.layer), source)
            else:
                values_for(place.layer, place.kind, source, self._framework)
        except Misfit as error:
            return str(error)
        return None

    def read(
        self, epsilon: Optional[float], momentum: Optional[float], counts: Optional[Counts]
    ) -> None:
        """Gives the layers of the copy what their sources have."""
        assumed = []
        for number, place, source, kind in self._all():
            values = self._ordered(place, values_for(place.layer, kind, source, self._framework))
            if kind is BATCH_NORM:
                values["moving_variance"] = values["moving_variance"] * self._bessel(place, counts)
                self._look_at(number, values, source)
            variables = {variable.name: variable for variable in own_weights(place.layer)}
            for name, value in values.items():
                variables[name].assign(value)
            if "updates" in variables and COUNTER in source.arrays:
                variables["updates"].assign(source.arrays[COUNTER])
            self._look_at_padding(number, place, source)
            said = self._set(place, source, epsilon, momentum)
            self._notes[number] += [text for text, _ in said]
            if any(is_assumed for _, is_assumed in said):
                assumed.append(place.path)
        if assumed:
            theirs, rate, other = DEFAULTS[self._framework]
            warnings.warn(
                f"{self.name}: nothing says which epsilon and momentum the normalizations have; "
                f"assumed the defaults there (epsilon {theirs:g}, for others than batch "
                f"normalization {other:g}; momentum {rate:g}), which changed {len(assumed)} "
                f"layers: {', '.join(assumed[:4])}{', …' if len(assumed) > 4 else ''}. Give them "
                "as arguments"
                + (", or give the module." if self._framework == "torch" else "."),
                UserWarning, stacklevel=3,
            )

    def write(self, counts: Optional[Counts]) -> dict[str, Array]:
        """What the sources get from the layers, by name and field."""
        found = {}
        for number, place, source, kind in self._all():
            weights = self._ordered(place, _weights(place.layer), back=True)
            if kind is BATCH_NORM:
                weights["moving_variance"] = (
                    weights["moving_variance"] / self._bessel(place, counts)
                )
            values = values_from(place.layer, kind, weights, source)
            if COUNTER in source.arrays and "updates" in weights:
                values[COUNTER] = weights["updates"]
            found.update({f"{source.name}.{key}".strip("."): v for key, v in values.items()})
            self._look_at_padding(number, place, source)
            self._compare_settings(number, place, source)
        return found

    def _all(self) -> Iterator[tuple[int, Place, Source, Any]]:
        for number, source in sorted(self._sources.items()):
            place = self.places.places[number]
            yield number, place, source, place.kind

    def _ordered(
        self, place: Place, values: dict[str, Array], back: bool = False
    ) -> dict[str, Array]:
        """The weights of a layer with their channels in the order of this framework.

        Args:
            place: the layer.
            values: its weights, in the axes of Keras.
            back: from Keras's order to the other one.
        """
        if self._framework != "torch":
            return values
        inputs, outputs = self._order(place, place.inputs), self._order(place, place.outputs)
        if inputs is None and outputs is None:
            return values
        if back:
            inputs, outputs = (None if x is None else np.argsort(x) for x in (inputs, outputs))
        if place.kind is DENSE:
            kernel, bias = values["kernel"], values.get("bias")
            if inputs is not None:
                kernel = kernel[inputs]
            if outputs is not None:
                kernel, bias = kernel[:, outputs], None if bias is None else bias[outputs]
            return {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        return {name: value[..., inputs] if value.ndim else value for name, value in values.items()}

    def _order(self, place: Place, channels: Optional[Channels]) -> Optional[Array]:
        """The order of the channels that a layer takes or makes in PyTorch; None for the same.

        Raises:
            ValueError: it is another one, of which nobody knows which, or which the layer cannot
                have.
        """
        flat = place.kind is DENSE or isinstance(place.layer, CHANNELWISE)
        if channels is None:
            return None
        try:
            order = channels.order()
        except UnknownOrder as error:
            if not flat:
                return None
            remedy = (
                f"flattened={{{place.path!r}: (height, width, channels)}}, the shape that is "
                "flattened to what it takes, or None there for the same order"
                if channels is place.inputs else
                "a model whose calls Keras can trace behind this layer"
            )
            raise ValueError(
                f"{self.name}: the order of the channels of {place.path!r} "
                f"({type(place.layer).__name__}) in PyTorch is not known: {error}. Expected "
                f"{remedy}."
            ) from error
        if order is not None and not flat:
            raise ValueError(
                f"{self.name}: {place.path!r} ({type(place.layer).__name__}) works on channels "
                "that are a flattened image, which lie in another order in PyTorch; no weights "
                "make up for that."
            )
        return order

    def _bessel(self, place: Place, counts: Optional[Counts]) -> float:
        """Keras's variance of a batch divided by PyTorch's; 1 if that is not asked for."""
        n = counts.get(place.path) if isinstance(counts, Mapping) else counts
        if n is None or getattr(place.layer, "unbiased_variance", False):
            return 1.0
        if isinstance(n, bool) or not n > 1:
            raise ValueError(
                f"{self.name}: values_per_channel of {place.path!r} is {n!r}; expected at least 2."
            )
        return (n - 1) / n

    def _look_at(self, number: int, values: Mapping[str, Array], source: Source) -> None:
        """Notes what is wrong with statistics."""
        mean, variance = values["moving_mean"], values["moving_variance"]
        bad = ~np.isfinite(mean) | ~np.isfinite(variance) | (variance < 0)
        if bad.any():
            self._notes[number].append(
                f"{bad.sum()} of {bad.size} channels have no finite mean or no variance of 0 or "
                "more"
            )
        if COUNTER in source.arrays and not source.arrays[COUNTER].any():
            self._notes[number].append(f"{COUNTER} is 0: statistics that no batch has moved")

    def _look_at_padding(self, number: int, place: Place, source: Source) -> None:
        """Notes padding at one end, which no padding of a convolution of PyTorch is."""
        layer, module = place.layer, source.module
        if module is None or getattr(layer, "padding", None) != "same":
            return
        if any(step > 1 and size > 1 for step, size in zip(layer.strides, layer.kernel_size)):
            self._notes[number].append(
                f"padding='same' with strides {layer.strides} pads the far ends more than the "
                f"near ones, PyTorch's padding={module.padding} both alike: ZeroPadding in front "
                "of padding='valid' does so"
            )

    def _set(
        self, place: Place, source: Source, epsilon: Optional[float], momentum: Optional[float]
    ) -> list[tuple[str, bool]]:
        """Gives a layer the settings of its source; what changed, and whether that was assumed."""
        layer, module, said = place.layer, source.module, []
        is_batch_norm = place.kind is BATCH_NORM
        theirs, rate, other = DEFAULTS[self._framework]
        wanted: dict[str, tuple[Optional[float], bool]] = {}
        if hasattr(layer, "epsilon"):
            default = theirs if is_batch_norm else other
            wanted["epsilon"] = (_eps(module), False) if module is not None else (
                default if epsilon is None else epsilon, epsilon is None
            )
        if is_batch_norm and hasattr(layer, "momentum"):
            given = getattr(module, "momentum", rate) if module is not None else (
                rate if momentum is None else momentum
            )
            if given is None:
                said.append((
                    f"PyTorch averages all batches alike (momentum=None), and momentum stays "
                    f"{layer.momentum}", False,
                ))
            elif module is None or hasattr(module, "momentum"):
                ours = round(1 - given, 12) if self._framework == "torch" else given
                wanted["momentum"] = ours, module is None and momentum is None
        for name, (value, is_assumed) in wanted.items():
            old = getattr(layer, name)
            if old == value:
                continue
            setattr(layer, name, value)
            said.append((f"{name} {old} → {value}{' (assumed)' if is_assumed else ''}", is_assumed))
        return said

    def _compare_settings(self, number: int, place: Place, source: Source) -> None:
        """Notes the settings that a module, or whoever makes one for a state_dict, has to have."""
        layer, module = place.layer, source.module
        settings: dict[str, float] = {}
        if hasattr(layer, "epsilon"):
            settings["eps"] = layer.epsilon
        if place.kind is BATCH_NORM and isinstance(getattr(layer, "momentum", None), float):
            settings["momentum"] = round(1 - layer.momentum, 12)
        if module is not None:
            settings = {
                name: value for name, value in settings.items()
                if value != (_eps(module) if name == "eps" else getattr(module, name, value))
            }
        if settings:
            self.to_set[source.name] = settings
            said = ", ".join(f"{name} = {value}" for name, value in settings.items())
            self._notes[number].append(f"set {said} there")

    def certificate(
        self, net: Optional["Outside"], inputs: Any, tolerance: Optional[float], why_not: str
    ) -> Certificate:
        """The table, and the difference of the outputs if there is a net to call."""
        figures: dict[str, Any] = {}
        if self._guesses:
            figures["guessed"] = "; ".join(self._guesses)
        if self.to_set:
            figures["to set"] = self.to_set
        rows = self._rows()
        if net is None:
            found = Certificate(self.name, tuple(rows), None, None, why_not, figures)
        else:
            found = certificate_of(
                self.name, self.copy, net, rows, inputs=inputs, tolerance=tolerance,
                figures=figures,
            )
        if self._guesses and found.difference is None:
            raise ValueError(
                f"{self.name}: layers of the same kind and shapes stand in parallel branches, and "
                f"nothing but the outputs could show which is which: {self._guesses[0]}. Expected "
                f"names= for them, or outputs to compare ({found.measured})."
            )
        return found

    def _rows(self) -> list[Row]:
        lost, rows = self._lost(), []
        for number, place in enumerate(self.places.places):
            kind, source = type(place.layer).__name__, self._sources.get(number)
            if source is not None:
                way = "to" if self.name == "to_torch" else "from"
                notes = [f"{way} {source.name}", *self._notes[number]]
                if number in lost:
                    notes.append("not in the model's config: set that again after loading a file")
                rows.append(Row(place.path, kind, kind, PORTED, "; ".join(notes)))
            elif place.path in self._names:
                rows.append(Row(place.path, kind, None, KEPT, "left as it is, as asked for"))
        return rows

    def _lost(self) -> set[int]:
        """Numbers of the layers with a changed setting that the copy's config does not have."""
        return not_in_config(self.copy, {
            number: self.places.places[number].layer for number, notes in self._notes.items()
            if any("→" in note for note in notes)
        })


def _eps(module: Any) -> float:
    """The epsilon of a module; RMSNorm has None for the smallest step from 1."""
    eps = module.eps
    return float(np.finfo(np.float32).eps) if eps is None else eps


def _is_batch_norm(source: Source) -> bool:
    if source.module is not None:
        names = {one.__name__ for one in type(source.module).__mro__}
        return bool(names & set(BATCH_NORM.torch))
    return {"running_mean", "running_var"} <= set(source.arrays) or (
        {"mean", "var"} <= set(source.arrays)
    )


def _weights(layer: keras.Layer) -> dict[str, Array]:
    return {
        variable.name: np.asarray(keras.ops.convert_to_numpy(variable))
        for variable in own_weights(layer)
    }


def _filled(net: Any, values: Mapping[str, Array]) -> dict[str, Any]:
    """The state_dict of a net with other values, under all names of a module that has several."""
    first: dict[str, str] = {}
    state: Mapping[str, Any] = net
    if hasattr(net, "named_modules"):
        state = net.state_dict()
        names: dict[int, str] = {}
        for name, module in net.named_modules(remove_duplicate=False):
            first[name] = names.setdefault(id(module), name)
    found = {}
    for key, old in state.items():
        prefix, _, field = key.rpartition(".")
        value = values.get(f"{first.get(prefix, prefix)}.{field}".strip("."))
        if value is None:
            found[key] = old
        elif hasattr(old, "detach"):
            found[key] = old.detach().clone().copy_(old.new_tensor(np.array(value)))
        else:
            found[key] = np.asarray(value, old.dtype)
    return found
