"""Nests: the inputs of a net, one array or several in a dict, a tuple or a list."""

from typing import Any, Callable, Iterator

Nest = Any  # an array, or a dict, tuple or list of nests


def each(function: Callable[..., Any], nest: Nest, *others: Nest) -> Nest:
    """The nest with every array replaced by what the function makes of it.

    Args:
        function: takes an array, and those at the same place of the others.
        nest: Nest.
        *others: nests of the same structure.
    """
    if isinstance(nest, dict):
        return {
            key: each(function, part, *(other[key] for other in others))
            for key, part in nest.items()
        }
    if isinstance(nest, (tuple, list)):
        parts = [each(function, *parts) for parts in zip(nest, *others, strict=True)]
        return parts if isinstance(nest, list) else tuple(parts)
    return function(nest, *others)


def leaves(nest: Nest, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of a nest, each with its place as Python writes it, such as `['left'][0]`.

    A dict's arrays come in the order of their keys, so that dicts that are equal give the same.
    """
    if isinstance(nest, dict):
        for key in sorted(nest, key=str):
            yield from leaves(nest[key], f"{path}[{key!r}]")
    elif isinstance(nest, (tuple, list)):
        for place, part in enumerate(nest):
            yield from leaves(part, f"{path}[{place}]")
    else:
        yield path, nest
