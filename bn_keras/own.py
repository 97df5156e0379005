"""Nets, data, losses, metrics and optimizers of a user's own, under names that settings can hold.

A run's settings are texts and numbers: they are stored, compared and told. An object of Python gets
a name `LABEL@DIGEST` by which the same process finds it again; the digest is of all that it says,
so that the same call goes on with its own runs and no other. A file gets `PATH@DIGEST`.
"""

import hashlib
import inspect
import json
import pathlib
import re
from typing import Any, Dict

from bn_keras.registry import UnknownName

DIGEST = re.compile(r"@[0-9a-f]{8}$")
_OBJECTS: Dict[str, Any] = {}


def give(label: str, thing: Any, content: object) -> str:
    """Keeps an object under a name, and returns the name.

    Args:
        label: for people, such as a function's name.
        thing: the object.
        content: what the object says: bytes, or what JSON can hold.
    """
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True, default=str).encode()
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    label = re.sub(r"\W+", "_", label).strip("_")[:40] or "own"
    name = f"{label}@{digest}"
    _OBJECTS[name] = thing
    return name


def is_given(name: str) -> bool:
    """Whether an object of this process has the name."""
    return name in _OBJECTS


def get(name: str) -> Any:
    """The object of that name.

    Raises:
        UnknownName: there is none in this process.
    """
    if name not in _OBJECTS:
        raise UnknownName(
            f"{name!r} is an object of another Python process; expected the same call of "
            "bn_keras.compare again, which gives it anew"
        )
    return _OBJECTS[name]


def is_own(name: str) -> bool:
    """Whether a setting names something of the user's own: an object or a file, with its digest."""
    return DIGEST.search(name) is not None  # a path may have an @ as well


def place(name: str) -> str:
    """The name without its digest: a label, or a path with what stands in the file."""
    return DIGEST.sub("", name)


def short(name: str) -> str:
    """The name as tables and titles show it: without digest and folders."""
    return re.split(r"[/\\]", place(name))[-1]


def source_of(function: Any) -> str:
    """What can be told of a function, for a digest: its source, or else its code.

    Values from outside that it uses are not part of it.
    """
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return code.co_code.hex() if code is not None else repr(function)


def with_digest(path: pathlib.Path) -> str:
    """`PATH@DIGEST` of a file, the digest of its bytes.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()
    return f"{path}@{digest}"


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, inside of what is wrapped around it, such as `LossScaleOptimizer`."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer
