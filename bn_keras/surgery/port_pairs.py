"""The layers of a net of PyTorch or Flax, and which of them belongs to which layer of a model."""

import re
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from bn_keras.surgery.port_kinds import BATCH_NORMS, Array, Source
from bn_keras.surgery.port_order import Place

# Normalizations that may have an epsilon and no weights.
NORMS = (*BATCH_NORMS, "LayerNorm", "GroupNorm", "RMSNorm")
# Of Flax's nnx: states of random generators.
GENERATORS = "rngs"


class Pairs(NamedTuple):
    """Which source belongs to which place, by number of the place; and where that was guessed."""

    sources: dict[int, Source]
    guesses: list[str]


def torch_sources(net: Any, caller: str) -> list[Source]:
    """The layers of a net of PyTorch, in the order in which it defines them.

    Args:
        net: a module, or a state_dict: names → tensors or arrays.
        caller: for messages.

    Raises:
        TypeError: neither of both.
    """
    is_module = hasattr(net, "named_modules") and hasattr(net, "state_dict")
    state = net.state_dict() if is_module else net
    groups: dict[str, dict[str, Array]] = {}
    if is_module:
        modules = dict(net.named_modules())
        for name, module in modules.items():
            if _is_norm(module) or module._parameters or module._buffers:
                groups[name] = {}
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{caller}: received a {type(net).__name__}; expected a PyTorch module, or its "
            "state_dict with tensors or NumPy arrays."
        )
    for key, value in state.items():
        if not isinstance(key, str) or not hasattr(value, "shape"):
            raise TypeError(
                f"{caller}: {key!r} is a {type(value).__name__}; expected a state_dict of tensors "
                "or arrays by name (of a checkpoint that holds more, the part with the weights)."
            )
        name, _, field = key.rpartition(".")
        if is_module and name not in modules:
            continue  # a second name of a module
        groups.setdefault(name, {})[field] = as_array(value)
    return _chained([
        Source(name, arrays, module=modules[name] if is_module else None)
        for name, arrays in groups.items() if arrays or is_module and _is_norm(modules[name])
    ])


def flax_sources(variables: Any, caller: str) -> list[Source]:
    """The layers of a net of Flax.

    A dict that went through JAX has its names sorted. Then only what is numbered (`Conv_0`,
    `Conv_1`) is known to be in that order.

    Args:
        variables: `{"params": …, "batch_stats": …}` of linen, or an nnx.State or its pure dict.
        caller: for messages.

    Raises:
        TypeError: neither of both.
    """
    if hasattr(variables, "to_pure_dict"):
        variables = variables.to_pure_dict()
    if not isinstance(variables, Mapping) or not variables:
        raise TypeError(
            f"{caller}: received a {type(variables).__name__}; expected the variables of a Flax "
            "net: {'params': …, 'batch_stats': …}, or an nnx.State."
        )
    if "params" in variables:
        trees = [variables["params"], variables.get("batch_stats", {})]
        unknown = sorted(set(variables) - {"params", "batch_stats"})
        if unknown:
            raise TypeError(
                f"{caller}: received the collections {unknown}; expected 'params' and "
                "'batch_stats' alone."
            )
    else:
        trees = [variables]
    return list(_flax(trees, (), frozenset(), caller))


def _flax(
    trees: Sequence[Any], path: tuple[str, ...], behind: frozenset[str], caller: str
) -> Iterator[Source]:
    """The sources at a place of the trees of all collections, and below it."""
    arrays: dict[str, Array] = {}
    inner: dict[Any, list[Any]] = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                if key != GENERATORS:
                    inner.setdefault(key, []).append(value)
                continue
            value = getattr(value, "value", value)
            if not hasattr(value, "shape"):
                raise TypeError(
                    f"{caller}: {'/'.join((*path, str(key)))!r} is a {type(value).__name__}; "
                    "expected arrays."
                )
            arrays[str(key)] = as_array(value)
    if arrays:
        yield Source("/".join(path) or "the net itself", arrays, behind)
    # Names that are sorted in either way need not be in the order of the calls.
    numbered = sorted(inner, key=_numbered)
    is_ordered = list(inner) not in (sorted(inner, key=str), numbered) and all(
        key in trees[0] for key in inner
    )
    last: dict[str, frozenset[str]] = {}  # what the next one of a group stands behind
    for key in inner if is_ordered else numbered:
        group = "" if is_ordered else _numbered(key)[0]
        found = list(_flax(inner[key], (*path, str(key)), last.get(group, behind), caller))
        yield from found
        last[group] = last.get(group, behind) | {source.name for source in found}


def _numbered(key: Any) -> tuple[str, int]:
    """("Conv", 10) of "Conv_10"."""
    found = re.fullmatch(r"(.*?)_?(\d*)", str(key), re.DOTALL)
    return (found[1], int(found[2] or -1)) if found else (str(key), -1)


def _chained(sources: list[Source]) -> list[Source]:
    """Sources of which each stands behind those before it."""
    names = [source.name for source in sources]
    return [
        Source(source.name, source.arrays, frozenset(names[:number]), source.module)
        for number, source in enumerate(sources)
    ]


def _is_norm(module: Any) -> bool:
    return bool({one.__name__ for one in type(module).__mro__} & set(NORMS))


def as_array(value: Any) -> Array:
    """A tensor of any framework as an array of NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return value.numpy()
    array = np.asarray(value)
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)  # JAX's bfloat16


def paired(
    places: list[Place], sources: list[Source], misfit: Callable[[Place, Source], Optional[str]],
    names: Mapping[str, Optional[str]], skipped: set[int], caller: str,
) -> Pairs:
    """Finds for each place the source that belongs to it.

    Sources are taken in their order. Each goes to a place of its kind and shapes all of whose
    predecessors are done. Where it fits several, their names decide, and else it is a guess.

    Args:
        places: of the model.
        sources: of the other net, all of them or some.
        misfit: why a place and a source do not belong together; None if they may.
        skipped: numbers of the places that the port is not about.
        names: by path of a place: the name of its source, or None to leave it alone.
        caller: for messages.

    Raises:
        ValueError: the layers do not match; the first that do not are named.
    """
    found = _named(places, sources, misfit, names, caller)
    done = skipped | {number for number, place in enumerate(places) if place.path in names}
    left = [source for source in sources if source not in list(found.values())]
    used = {name for source in sources for name in source.behind | {source.name}}
    used -= {source.name for source in left}
    guesses: list[str] = []
    last = -1
    while left:
        ready = [source for source in left if source.behind <= used]
        free = [
            number for number, place in enumerate(places)
            if number not in done and place.behind <= done
        ]
        fitting = [
            (source, number) for source in ready for number in free
            if misfit(places[number], source) is None
        ]
        if not fitting:
            raise ValueError(_nothing_fits(places, ready, free, misfit, guesses, caller))
        source, number, is_guess = _chosen(fitting, places, last)
        if is_guess:
            others = [
                f"{two.name!r} to {places[one].path!r}" for two, one in fitting
                if (two, one) != (source, number) and (two is source or one == number)
            ]
            guesses.append(
                f"{source.name!r} to {places[number].path!r}, where "
                f"{' or '.join(others[:3])} is as possible"
            )
        found[number], last = source, number
        done.add(number)
        used.add(source.name)
        left.remove(source)
    rest = [place for number, place in enumerate(places) if number not in done]
    if rest:
        raise ValueError(
            f"{caller}: {len(rest)} of the {len(places) - len(skipped)} layers of the model are "
            f"left over, first {rest[0].path!r} ({type(rest[0].layer).__name__}); the other net "
            f"has {len(sources)} such layers. Expected the same layers in the same order, or "
            f"names={{{rest[0].path!r}: None}} to leave that one as it is."
        )
    return Pairs(found, guesses)


def _named(
    places: list[Place], sources: list[Source], misfit: Callable[[Place, Source], Optional[str]],
    names: Mapping[str, Optional[str]], caller: str,
) -> dict[int, Source]:
    """The pairs that somebody has named."""
    numbers = {place.path: number for number, place in enumerate(places)}
    known, found = {source.name: source for source in sources}, {}
    for path, name in names.items():
        if path not in numbers:
            raise ValueError(
                f"{caller}: names has the layer {path!r}; known: {', '.join(numbers) or 'none'}."
            )
        if name is None:
            continue
        if name not in known:
            raise ValueError(
                f"{caller}: names[{path!r}] is {name!r}; known: {', '.join(known) or 'none'}."
            )
        place, source = places[numbers[path]], known.pop(name)
        reason = misfit(place, source)
        if reason is not None:
            raise ValueError(_said(place, source, reason, caller))
        found[numbers[path]] = source
    return found


def _chosen(
    fitting: list[tuple[Source, int]], places: list[Place], last: int
) -> tuple[Source, int, bool]:
    """The next pair, and whether it is a guess."""
    for source, number in fitting:
        if sum(one is source or other == number for one, other in fitting) == 1:
            return source, number, False
    for source, number in fitting:
        if _letters(places[number].path) == _letters(source.name):
            return source, number, False
    # One branch is defined after the other, as a rule.
    for source, number in fitting:
        if last in places[number].behind:
            return source, number, True
    return (*fitting[0], True)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _nothing_fits(
    places: list[Place], ready: list[Source], free: list[int],
    misfit: Callable[[Place, Source], Optional[str]], guesses: list[str], caller: str,
) -> str:
    source = ready[0]
    if not free:
        return (
            f"{caller}: the model has no layer left for {source}; expected the same layers in the "
            "same order (leave out what the model does not have)."
        )
    # The place that is most like it, for the message.
    place = next(
        (places[number] for number in free if _is_alike(places[number], source)), places[free[0]]
    )
    said = _said(place, source, misfit(place, source) or "", caller)
    return said + (f" Before, it was guessed: {'; '.join(guesses)}." if guesses else "")


def _is_alike(place: Place, source: Source) -> bool:
    ranks = sorted(array.ndim for array in source.arrays.values())[-1:]
    return ranks == sorted(len(variable.shape) for variable in place.layer.weights)[-1:]


def _said(place: Place, source: Source, reason: str, caller: str) -> str:
    shapes = ", ".join(f"{v.name} {tuple(v.shape)}" for v in place.layer.weights)
    return (
        f"{caller}: {source} does not fit {place.path!r} ({type(place.layer).__name__}, {shapes}): "
        f"{reason}. Expected the same layers in the same order, or names= with the name there of "
        "every layer that stands in another place."
    )
