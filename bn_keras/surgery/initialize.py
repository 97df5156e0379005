"""Starting a model anew: weights as their initializers draw them, random layers from a seed.

Every draw depends on the seed and on the place of its layer, and on no other draw. So models that
differ in their normalizers only, such as the arms of a comparison, start from equal kernels.
"""

import collections
import copy
import functools
import inspect
import re
import zlib
from typing import Any, Callable, Iterator, NoReturn

import keras
import numpy as np

from bn_keras.surgery import copies
from bn_keras.surgery.certificate import held_by


def reinitialize(model: keras.Model, seed: int) -> None:
    """Gives a model new weights, in place, as if it had just been built from that seed.

    Each weight is drawn by its own initializer, as the layer's code has it: a layer with weights of
    its own is made once more from its config, or a copy of it is built once more. Statistics of
    normalizers and all counters start over. Random layers are seeded as by `reseed`. A seed in an
    initializer's config does not count. Left as they are: what a layer learned from data by
    `adapt`, and layers that Keras does not track, in a lambda for example.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> reinitialize(model, seed=1)
    >>> first = model.layers[0].kernel.numpy()
    >>> reinitialize(model, seed=2)
    >>> other = model.layers[0].kernel.numpy()
    >>> reinitialize(model, seed=1)
    >>> again = model.layers[0].kernel.numpy()
    >>> bool((again == first).all()), bool((other == first).any())
    (True, False)

    Args:
        model: a keras.Model, built.
        seed: an int.

    Raises:
        TypeError: not a keras.Model.
        ValueError: the model is not built; or a layer cannot be made once more, gets other weights
            then, or draws them by something else than an initializer with a seed. The layer is
            named, and the model is as it was.
    """
    copies.check_model(model, "reinitialize")
    places = _places(model)
    drawn: dict[int, tuple[keras.Variable, Any]] = {}
    for layer, place in reversed(places):  # inner ones first: a model may refer to their weights
        weights = [] if hasattr(layer, "adapt") else _own_weights(layer)
        missing = [number for number, weight in enumerate(weights) if id(weight) not in drawn]
        if missing:
            values = _drawn(layer, f"{seed}{place}", missing)
            drawn.update((id(weights[n]), (weights[n], values[n])) for n in missing)
    for weight, value in drawn.values():
        weight.assign(value)
    for layer, _ in places:
        population = getattr(layer, "population", None)
        if population is not None:  # a group of micro-batches, skipped batches
            population.forget()
    reseed(model, seed)


def reseed(model: keras.Model, seed: int) -> None:
    """Lets the random layers of a model, such as dropout, start from a seed, in place.

    Weights stay as they are. What draws without a `keras.random.SeedGenerator` of a layer's own is
    not reached.

    Args:
        model: a keras.Model, built.
        seed: an int.

    Raises:
        TypeError: not a keras.Model.
        ValueError: the model is not built.
    """
    copies.check_model(model, "reseed")
    seen: set[int] = set()
    for layer, place in _places(model):
        for number, generator in enumerate(layer._seed_generators):
            if id(generator) not in seen:
                seen.add(id(generator))
                generator.state.assign(np.array([_seed(f"{seed}{place}/random/{number}"), 0]))


def _seed(source: str) -> int:
    """A number of 31 bits: some backends have seeds of int32."""
    return zlib.crc32(source.encode()) >> 1


def _places(model: keras.Model) -> list[tuple[keras.Layer, str]]:
    """Each layer of a model, and its place: where it stands, whatever was built before the model.

    A place is made of the layers around it and itself, each by its name without a number at the
    end, and its rank among those of that name: `conv2d_7` and `conv2d_9` are `/conv2d#0` and
    `/conv2d#1`. Numbers in automatic names go on from model to model, and the order of a graph's
    layers may change with the normalizers between them; the order of the numbers is that in which
    the layers were made.
    """
    found: dict[int, tuple[keras.Layer, str]] = {}

    def walk(layer: keras.Layer, place: str) -> None:
        found[id(layer)] = layer, place
        for name, other in sorted(_named(held_by(layer)), key=lambda pair: pair[0]):
            if id(other) not in found:
                walk(other, f"{place}/{name}")

    walk(model, "")
    for layer in model._flatten_layers():
        found.setdefault(id(layer), (layer, f"/{layer.path or layer.name}"))
    return list(found.values())


def _named(layers: list[keras.Layer]) -> Iterator[tuple[str, keras.Layer]]:
    """The layers that stand side by side, each with its part of a place."""
    counts: collections.Counter[str] = collections.Counter()
    numbered = re.compile(r"_(\d+)$")

    def number(layer: keras.Layer) -> int:
        found = numbered.search(layer.name)
        return int(found[1]) if found else 0

    for layer in sorted(layers, key=number):
        name = numbered.sub("", layer.name)
        yield f"{name}#{counts[name]}", layer
        counts[name] += 1


def _own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The weights that a layer itself has, without those of layers inside of it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _drawn(layer: keras.Layer, source: str, wanted: list[int]) -> list[keras.Variable]:
    """Fresh values of a layer's own weights, of which those at the wanted places count.

    Raises:
        ValueError: as `reinitialize` says.
    """
    before = [(re.sub(r"_\d+$", "", v.name), tuple(v.shape)) for v in _own_weights(layer)]
    reasons = []
    for make in (_from_config, _built_again):
        try:
            fresh, sure = make(layer, source)
            unsure = [number for number in wanted if id(fresh[number]) not in sure]
            again = make(layer, source)[0] if unsure else fresh
        except Exception as error:  # whatever the code of the layer raises
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        after = [(re.sub(r"_\d+$", "", v.name), tuple(v.shape)) for v in fresh]
        if before == after:
            break
        reasons.append(f"it has the weights {before}, and made once more {after}")
    else:
        _refuse(layer, f"cannot be made once more: {reasons[0]}")
    for number in unsure:
        one, other = (keras.ops.convert_to_numpy(side[number]) for side in (fresh, again))
        if not np.array_equal(one, other):
            _refuse(layer, f"draws {fresh[number].name!r} by something that has no seed")
    return fresh


# Fresh weights of a layer's own, and the ids of those that an initializer of Keras has drawn.
Fresh = tuple[list[keras.Variable], set[int]]


def _from_config(layer: keras.Layer, source: str) -> Fresh:
    """Makes a layer like the given one, and builds it."""
    add_weight, sure = _seeded(type(layer).add_weight, source)
    # A class of its own, for weights that are added in the constructor.
    kind: Any = type(type(layer).__name__, (type(layer),), {"add_weight": add_weight})
    fresh = kind.from_config(_config(layer))
    fresh.build_from_config(layer.get_build_config())
    return _own_weights(fresh), sure


def _built_again(layer: keras.Layer, source: str) -> Fresh:
    """Builds a copy of a layer once more: for one that cannot be made from a config."""
    fresh = copies.copy_layer(layer)
    add_weight, sure = _seeded(type(layer).add_weight, source)
    object.__setattr__(fresh, "add_weight", functools.partial(add_weight, fresh))
    fresh._tracker.unlock()
    for name in ("trainable_variables", "non_trainable_variables"):
        fresh._tracker.config[name][1].clear()
        fresh._tracker.stored_ids[name].clear()  # a new weight may get the id of an old one
    fresh.build_from_config(layer.get_build_config())
    return _own_weights(fresh), sure


def _seeded(
    add_weight: Callable[..., keras.Variable], source: str
) -> tuple[Callable[..., keras.Variable], set[int]]:
    """A method `add_weight` whose initializers get seeds from the source.

    Returns:
        The method, and a set that will have the ids of the weights that Keras's initializers drew.
    """
    sure: set[int] = set()
    count = 0

    def seeded(self: keras.Layer, *args: Any, **kwargs: Any) -> keras.Variable:
        nonlocal count
        count += 1
        given = dict(zip(("shape", "initializer", "dtype"), args)) | kwargs
        if given.get("initializer") is None:  # Keras's own default
            dtype = keras.backend.standardize_dtype(given.get("dtype") or self.variable_dtype)
            given["initializer"] = "glorot_uniform" if "float" in dtype else "zeros"
        initializer = copy.copy(keras.initializers.get(given["initializer"]))
        if hasattr(initializer, "seed"):
            initializer.seed = _seed(f"{source}/{count}")
        variable = add_weight(self, **{**given, "initializer": initializer})
        if type(initializer).__module__.startswith("keras."):
            sure.add(id(variable))
        return variable

    return seeded, sure


def _config(layer: keras.Layer) -> dict[str, Any]:
    """The config of a layer, without what each layer's has and its constructor does not take."""
    parameters = inspect.signature(type(layer).__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        name: value for name, value in layer.get_config().items()
        if takes_all or name in parameters or name not in ("name", "trainable", "dtype")
    }


def _refuse(layer: keras.Layer, reason: str) -> NoReturn:
    raise ValueError(
        f"reinitialize: {layer.path or layer.name!r} ({type(layer).__name__}) "
        f"{' '.join(reason.split())}; expected a layer whose get_config gives the arguments of its "
        "constructor, and which makes its weights by add_weight with an initializer of Keras."
    )
