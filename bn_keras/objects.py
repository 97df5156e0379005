"""A user's own functions by name: `my_net.py:build`, a file's, or `my_package.nets:build`.

Such a name can stand for a model or a dataset wherever a registered name can. A module's name needs
a dot: `nets:build` reads as a registered `nets` with an argument; `nets.py:build` does not.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
import sys
import sysconfig
import threading
import traceback
import types
from typing import Any, Iterator, Optional, Tuple

from bn_keras.registry import did_you_mean
from bn_keras.texts import in_a_line, plain

FILE = re.compile(r"(?P<place>(?:[A-Za-z]:[\\/])?[^:\0]*\.py)(?::(?P<name>.*))?", re.DOTALL)
MODULE = re.compile(r"(?P<place>[^\W\d]\w*(?:\.[^\W\d]\w*)+):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
EXPECTED = "expected FILE.py:FUNCTION, such as my_net.py:build"

# Importing changes sys.path and sys.modules, which all threads share.
_IMPORTING = threading.RLock()


class ObjectError(ValueError):
    """A name of a user's own function that cannot be used; one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


def is_object_name(text: str) -> bool:
    """Whether a text names an object of a Python file or module, and no registered part.

    `net.py:build`, `nets.py` (its function is still to be named) and `package.nets:build` do;
    `mnist`, `tfds:mnist` and `csv:table.py` do not.
    """
    return bool(FILE.fullmatch(text) or MODULE.fullmatch(text))


def absolute_name(text: str, folder: Optional[str] = None) -> str:
    """The name that means the same object from every working directory, as far as there is one.

    Args:
        text: of an object, see `is_object_name`. A file's path becomes absolute; a module's name
            stays.
        folder: what a relative path is relative to; None means the working directory.

    Raises:
        ObjectError: no such name.
    """
    place, name, is_file = _parts(text)
    if not is_file:
        return text
    steps = [os.path.expanduser(step) for step in (folder or "", place)]
    path = os.path.abspath(os.path.join(*steps))
    return f"{path}:{name}" if name else path


def load_object(text: str) -> Any:
    """Imports the file or module and returns the object of that name.

    A file is imported under a private name, once for each content: a changed file is read anew. Its
    folder (a module's: the working directory) comes first on sys.path meanwhile, so that its
    neighbours can be imported, and stays there as the last one, for imports inside functions.

    Args:
        text: see `is_object_name`.

    Raises:
        ObjectError: no such file, module or object, or importing it fails.
    """
    place, name, is_file = _parts(text)
    with _IMPORTING:
        if is_file:
            path = _file(place)
            if not name:
                known = _names(_import_file(path))
                raise ObjectError(f"{text}: no function named; {_defines(known)}; {EXPECTED}.")
            found = _import_file(path)
        else:
            path = _source(place)
            found = _import_module(place)
    part = found
    for step in name.split("."):
        try:
            part = getattr(part, step)
        except AttributeError as error:
            known = _names(found)
            raise ObjectError(
                f"{path}: has no {name!r}; {_defines(known)}{did_you_mean(name, known)}."
            ) from error
    return part


def digest_of(text: str) -> str:
    """8 hex digits of the bytes of the file that defines an object; its neighbours do not count.

    Args:
        text: see `is_object_name`.

    Raises:
        ObjectError: no such file or module.
    """
    place, _, is_file = _parts(text)
    content = _bytes(_file(place) if is_file else _source(place))
    return hashlib.blake2b(content, digest_size=4).hexdigest()


def told(error: BaseException) -> str:
    """An error of a user's code in a line: its kind, its message, and where it was raised.

    The place is the last line of the user's own: not one of a library, nor one of bn_keras.
    """
    text = in_a_line(error)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES) and os.path.isfile(frame.filename):
            return plain(f"{text} ({frame.filename}, line {frame.lineno})")
    return text


_LIBRARIES = (
    *(sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "purelib", "platlib")),
    str(pathlib.Path(__file__).parent) + os.sep,
)


def _parts(text: str) -> Tuple[str, str, bool]:
    """File or module, name in it, and whether it is a file."""
    match = FILE.fullmatch(text)
    if match:
        return match["place"], match["name"] or "", True
    match = MODULE.fullmatch(text)
    if match:
        return match["place"], match["name"], False
    raise ObjectError(f"{text!r}: {EXPECTED}, or package.module:FUNCTION.")


def _file(place: str) -> pathlib.Path:
    path = pathlib.Path(os.path.abspath(os.path.expanduser(place)))
    if path.is_file():
        return path
    kind = "not a file" if path.exists() else "no such file"
    near = ""
    with contextlib.suppress(OSError, ValueError):
        near = did_you_mean(path.name, sorted(file.name for file in path.parent.glob("*.py")))
    raise ObjectError(f"{path}: {kind}{near}; {EXPECTED}.")


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ObjectError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}.") from error


def _source(module: str) -> pathlib.Path:
    """The file of a module, which is not imported; the packages around it are."""
    with _IMPORTING, _on_path(os.getcwd()), _told_as(module):
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # what a package around it imports
                raise
            spec = None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        raise ObjectError(
            f"{module}: no such module, neither installed nor in {os.getcwd()}; "
            "name its file instead, such as my_package/nets.py:build."
        )
    return pathlib.Path(spec.origin)


def _import_file(path: pathlib.Path) -> types.ModuleType:
    content = _bytes(path)
    digest = hashlib.blake2b(str(path).encode() + b"\0" + content, digest_size=8).hexdigest()
    name = f"_bn_keras_{re.sub('[^a-zA-Z0-9_]', '_', path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        code = compile(content, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ObjectError(f"{path}, line {error.lineno}: {error.msg}; expected Python.") from error
    except ValueError as error:  # a NUL in it
        raise ObjectError(f"{path}: {error}; expected Python.") from error
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        with _on_path(str(path.parent)), _told_as(str(path)):
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(module: str) -> types.ModuleType:
    with _on_path(os.getcwd()), _told_as(module):
        return importlib.import_module(module)


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    """The folder first on sys.path inside, and last behind, unless it was there before."""
    added = folder not in sys.path
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code has taken it away
            sys.path.remove(folder)
        if added and folder not in sys.path:
            sys.path.append(folder)


@contextlib.contextmanager
def _told_as(where: str) -> Iterator[None]:
    """Turns an error of an import into one line."""
    try:
        yield
    except SyntaxError as error:  # of a neighbour
        raise ObjectError(
            f"{where}: imports {error.filename}, line {error.lineno}: {error.msg}; expected Python."
        ) from error
    except SystemExit as error:
        raise ObjectError(
            f"{where}: ends the program when it is imported; put what it does as a script under "
            "`if __name__ == '__main__':`."
        ) from error
    except Exception as error:
        raise ObjectError(f"{where}: importing it raised {told(error)}; mend it.") from error


def _names(module: types.ModuleType) -> list[str]:
    """Functions and classes that a module defines."""
    return [
        name for name, part in vars(module).items()
        if callable(part) and not name.startswith("_")
        and getattr(part, "__module__", None) == module.__name__
    ]


def _defines(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"it defines {shown}" if names else "it defines no function"
