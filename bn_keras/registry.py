"""Names for the parts that people add: models, normalizers, datasets, probes, figures, studies.

A part registers itself where it is defined:

    @NORMALIZERS.register("batch", channelwise=True)
    def batch(name, *, momentum, epsilon, dtype): ...

Names and properties are known without importing any of it: the registry reads the decorators off
the source files, so that `--help`, plans and a misspelt name need no TensorFlow.
"""

import ast
import difflib
import importlib
import importlib.util
import pathlib
import threading
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

# Runs are trained in threads, and Python 3.11's parser fails when two of them parse at once.
_READING = threading.Lock()


class UnknownName(ValueError):
    """A name that is in no registry; the message lists the known ones."""


class PartError(ValueError):
    """A file of parts that cannot be read, or a name that is taken; the message says where."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: ` (did you mean 'batch'?)`, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Registry:
    """Name to factory for one kind of part, found in one module or in the files of one folder.

    Args:
        kind: the field's word for the part, singular, as messages say it.
        variable: the registry's name in the decorators.
        location: dotted name of the module or package that holds the parts.
    """

    def __init__(self, kind: str, variable: str, location: str):
        self.kind = kind
        self._location = location
        self._variable = variable
        self._registered: Dict[str, Tuple[Any, Dict[str, Any]]] = {}
        self._files: Dict[str, Tuple[str, Dict[str, Any]]] = {}
        self._read = False

    def register(self, name: str, **properties: Any) -> Callable[[Any], Any]:
        """Decorator: makes the decorated part known as `name`.

        Args:
            name: a literal text.
            **properties: literals, which can be read without importing the part.

        Raises:
            PartError: another part has the name. A part from the same place, as after a reload or
                when a notebook's cell runs again, takes the place of the older one.
        """

        def add(part: Any) -> Any:
            known = self._known().get(name)
            if name in self._registered:
                taken = _place(self._registered[name][0])
            else:  # of a file: the part itself, if it is that module that registers it
                taken = _place(part) if known is None or known[0] == part.__module__ else known[0]
            if taken != _place(part):
                raise PartError(
                    f"{self.kind} {name!r} of {_place(part)}: the name is taken by {taken}; "
                    "expected another one"
                )
            self._registered[name] = (part, properties)
            return part

        return add

    def names(self) -> List[str]:
        """All known names, sorted; imports nothing."""
        return sorted({*self._known(), *self._registered})

    def check(self, name: str) -> str:
        """Returns the name, or raises UnknownName with the known names and the nearest one."""
        names = self.names()
        if name in names:
            return name
        hint = did_you_mean(name, names)
        raise UnknownName(f"unknown {self.kind} {name!r}; known: {', '.join(names)}{hint}")

    def get(self, name: str) -> Any:
        """The part of that name, importing its file when need be."""
        self.check(name)
        if name not in self._registered:
            importlib.import_module(self._known()[name][0])
        return self._registered[name][0]

    def properties(self, name: str) -> Dict[str, Any]:
        """The properties that the part was registered with; imports nothing."""
        self.check(name)
        return (self._registered.get(name) or self._known()[name])[1]

    def _known(self) -> Dict[str, Tuple[str, Dict[str, Any]]]:
        """Name to (module, properties) of what the source files register."""
        with _READING:
            if not self._read:
                found: Dict[str, Tuple[str, Dict[str, Any]]] = {}
                for name, (module, properties) in self._parse():
                    if name in found:
                        raise PartError(
                            f"{self.kind} {name!r} of {module}: the name is taken by "
                            f"{found[name][0]}; expected another one"
                        )
                    found[name] = module, properties
                self._files, self._read = found, True
            return self._files

    def _parse(self) -> Iterator[Tuple[str, Tuple[str, Dict[str, Any]]]]:
        spec = importlib.util.find_spec(self._location)
        if spec is None or spec.origin is None:
            raise ImportError(f"{self._location}: no such module; it holds every {self.kind}")
        folders = spec.submodule_search_locations
        if folders is None:
            sources = {self._location: pathlib.Path(spec.origin)}
        else:
            files = sorted(pathlib.Path(folders[0]).glob("*.py"))
            sources = {f"{self._location}.{path.stem}": path for path in files}
        for module, path in sources.items():
            for node in _statements(path):
                for call in getattr(node, "decorator_list", []):
                    if (
                        isinstance(call, ast.Call)
                        and ast.unparse(call.func) == f"{self._variable}.register"
                    ):
                        properties = {
                            str(word.arg): ast.literal_eval(word.value) for word in call.keywords
                        }
                        yield ast.literal_eval(call.args[0]), (module, properties)


def _place(part: Any) -> str:
    """Where a part is defined, in words; equal for a part and its successor after a reload."""
    return f"{part.__module__}.{getattr(part, '__qualname__', type(part).__name__)}"


def _statements(path: pathlib.Path) -> List[ast.stmt]:
    try:
        return ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise PartError(
            f"{path}, line {error.lineno}: {error.msg}; expected Python, as every file in this "
            "folder is read for the names of its parts"
        ) from error
    except ValueError as error:  # not in UTF-8, or with a NUL in it
        raise PartError(f"{path}: {error}; expected Python in UTF-8") from error


MODELS = Registry("model", "MODELS", "bn_keras.models")
NORMALIZERS = Registry("normalizer", "NORMALIZERS", "bn_keras.normalizers")
DATASETS = Registry("dataset", "DATASETS", "bn_keras.data")
OPTIMIZERS = Registry("optimizer", "OPTIMIZERS", "bn_keras.optimizers")
LOSSES = Registry("loss", "LOSSES", "bn_keras.losses")
PROBES = Registry("probe", "PROBES", "bn_keras.diagnostics")
STUDIES = Registry("study", "STUDIES", "bn_keras.studies")
FIGURES = Registry("figure", "FIGURES", "bn_keras.report.figures")
TABLES = Registry("table", "TABLES", "bn_keras.report.tables")
FILES = Registry("file", "FILES", "bn_keras.report.files")
COMMANDS = Registry("verb", "COMMANDS", "bn_keras.commands")
