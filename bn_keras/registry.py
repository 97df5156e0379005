"""Names for the parts that people add: models, normalizers, datasets, probes, figures, studies.

A part registers itself where it is defined:

    @NORMALIZERS.register("batch", channelwise=True)
    def batch(name, *, momentum, epsilon, dtype): ...

Names and properties are known without importing any of it: the registry reads the decorators off
the source files, so that `--help`, plans and a misspelt name need no TensorFlow.

An installed package adds parts by entry points, in a group for each registry: `bn_keras.models`,
`bn_keras.normalizers`, `bn_keras.datasets` and so on, the registry's variable in lower case.

    [options.entry_points]
    bn_keras.normalizers =
        shifted = their_package.their_module:shifted

The name is the registered one. The function is decorated as above, for its properties, and defined
in that very module, whose source is read here and which is imported once the part is used.
"""

import ast
import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import pathlib
import re
import threading
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Tuple

# Runs are trained in threads, and Python 3.11's parser fails when two of them parse at once.
_READING = threading.Lock()


class _Installed(NamedTuple):
    """A part of an installed package, as the source of its module has it."""

    module: str
    properties: Dict[str, Any]
    function: str
    package: str


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

    Attributes:
        kind: as above.
        group: of the entry points by which installed packages add parts.
    """

    def __init__(self, kind: str, variable: str, location: str):
        self.kind = kind
        self.group = f"bn_keras.{variable.lower()}"
        self._location = location
        self._variable = variable
        self._registered: Dict[str, Tuple[Any, Dict[str, Any]]] = {}
        self._files: Dict[str, Tuple[str, Dict[str, Any]]] = {}
        self._read = False
        self._packages: Dict[str, _Installed] = {}
        self._packages_read = False

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
            place = _place(part)
            if name in self._registered:
                taken = _place(self._registered[name][0])
            else:  # of a file: the part itself, if it is that module that registers it
                known = self._known().get(name) or self._installed().get(name)
                taken = place if known is None or known[0] == part.__module__ else known[0]
            if taken != place:
                raise PartError(
                    f"{self.kind} {name!r} of {place}: the name is taken by {taken}; "
                    "expected another one"
                )
            self._registered[name] = (part, properties)
            return part

        return add

    def names(self) -> List[str]:
        """All known names, sorted; imports nothing."""
        return sorted({*self._known(), *self._installed(), *self._registered})

    def check(self, name: str) -> str:
        """Returns the name, or raises UnknownName with the known names and the nearest one."""
        names = self.names()
        if name in names:
            return name
        hint = did_you_mean(name, names)
        raise UnknownName(f"unknown {self.kind} {name!r}; known: {', '.join(names)}{hint}")

    def get(self, name: str) -> Any:
        """The part of that name, importing its file when need be.

        Raises:
            UnknownName: there is no such part.
            PartError: the part of an installed package cannot be imported.
        """
        self.check(name)
        if name not in self._registered:
            if name in self._known():
                importlib.import_module(self._known()[name][0])
            else:
                self._load(name, self._installed()[name])
        return self._registered[name][0]

    def properties(self, name: str) -> Dict[str, Any]:
        """The properties that the part was registered with; imports nothing."""
        self.check(name)
        known = self._registered.get(name) or self._known().get(name) or self._installed()[name]
        return known[1]

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
                for name, properties in self._registrations(node):
                    yield name, (module, properties)

    def _registrations(self, node: ast.stmt) -> Iterator[Tuple[str, Dict[str, Any]]]:
        """(name, properties) of the decorators on a definition that register it here."""
        for call in getattr(node, "decorator_list", []):
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func).split(".")[-2:] == [self._variable, "register"]
            ):
                properties = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                yield ast.literal_eval(call.args[0]), properties

    def _installed(self) -> Dict[str, _Installed]:
        """Name to part of installed packages; one that cannot be taken is left out and warned of.

        It must not cost the others: who runs this may not have chosen that package.
        """
        self._known()
        left_out = []
        with _READING:
            if not self._packages_read:
                points = _entry_points().select(group=self.group)
                for package, name, value in sorted(
                    (point.dist.name, point.name, point.value) for point in points
                ):
                    try:
                        self._packages[name] = self._read_off(package, name, value)
                    except (PartError, OSError) as error:
                        left_out.append(
                            f"{self.kind} {name!r} of the package {package} is left out: {error}"
                        )
                self._packages_read = True
        for text in left_out:
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return self._packages

    def _read_off(self, package: str, name: str, value: str) -> _Installed:
        """The part behind an entry point; a PartError where it cannot have its name."""
        match = re.fullmatch(r"([\w.]+):(\w+)", value)
        if match is None:
            raise PartError(f"received {value!r}; expected module:function")
        module, function = match.groups()
        nodes = [node for node in _statements(_source(module))
                 if getattr(node, "name", None) == function]
        if not nodes:
            raise PartError(
                f"{module} does not define {function}; expected the file that defines it"
            )
        try:
            registered = dict(self._registrations(nodes[-1]))
        except (ValueError, IndexError) as error:
            raise PartError(f"the decorator of {value}: {error}; expected literals") from error
        if name not in (registered or [name]):
            raise PartError(
                f"{value} is registered as {', '.join(registered)}; expected that name for the "
                "entry point too"
            )
        known = self._files.get(name) or self._packages.get(name)
        taken = known[0] if known else None
        if taken is None and name in self._registered:  # in a notebook, or by an earlier import
            place = _place(self._registered[name][0])
            taken = None if place == f"{module}.{function}" else place
        if taken is not None:
            raise PartError(f"the name is taken by {taken}; expected another one")
        return _Installed(module, registered.get(name, {}), function, package)

    def _load(self, name: str, installed: _Installed) -> None:
        """Imports the part of an installed package; its decorator registers it, if it has one."""
        try:
            part = getattr(importlib.import_module(installed.module), installed.function)
        except Exception as error:
            raise PartError(
                f"{self.kind} {name!r} of the package {installed.package}: {installed.module} "
                f"cannot be imported ({type(error).__name__}: {error}); expected a version that "
                "works here, or the package uninstalled"
            ) from error
        self._registered.setdefault(name, (part, installed.properties))


def _place(part: Any) -> str:
    """Where a part is defined, in words; equal for a part and its successor after a reload."""
    return f"{part.__module__}.{getattr(part, '__qualname__', type(part).__name__)}"


@functools.lru_cache(maxsize=None)
def _entry_points() -> Any:
    """Those of all installed packages; reading them takes some hundredths of a second."""
    import importlib.metadata

    return importlib.metadata.entry_points()


def _source(module: str) -> pathlib.Path:
    """The file of a module; not even the packages that it is in are imported."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for word in rest:
            if spec is None or spec.submodule_search_locations is None:
                break
            first = f"{first}.{word}"
            spec = importlib.machinery.PathFinder.find_spec(first, spec.submodule_search_locations)
    except (ImportError, ValueError) as error:
        raise PartError(f"{module} cannot be found ({error})") from error
    if spec is None or spec.name != module or not str(spec.origin).endswith(".py"):
        raise PartError(f"there is no {module} in Python source; expected module:function")
    return pathlib.Path(str(spec.origin))


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
FINDINGS = Registry("finding", "FINDINGS", "bn_keras.diagnostics.findings")
STUDIES = Registry("study", "STUDIES", "bn_keras.studies")
FIGURES = Registry("figure", "FIGURES", "bn_keras.report.figures")
TABLES = Registry("table", "TABLES", "bn_keras.report.tables")
FILES = Registry("file", "FILES", "bn_keras.report.files")
COMMANDS = Registry("verb", "COMMANDS", "bn_keras.commands")
