"""Names for the parts that people add: models, normalizers, datasets, optimizers, losses.

A part registers itself where it is defined:

    @NORMALIZERS.register("batch")
    def batch(channels, name, *, momentum, epsilon, dtype): ...

The names are known without importing any of it: the registry reads the decorators off the source
files, so that `--help` and a misspelt name answer before TensorFlow is loaded.
"""

import ast
import difflib
import importlib
import importlib.util
import pathlib
import threading

# Runs are trained in threads, and Python 3.11's parser fails when two of them parse at once.
_READING = threading.Lock()


class UnknownName(ValueError):
    """A name that is in no registry; the message lists the known ones."""


class Registry:
    """Name to factory for one kind of part, found in one module or in the files of one folder.

    Args:
        kind: the field's word for the part, singular, as messages say it.
        variable: the registry's name in the decorators.
        location: dotted name of the module or package that holds the parts.
    """

    def __init__(self, kind, variable, location):
        self.kind = kind
        self._location = location
        self._variable = variable
        self._factories = {}
        self._modules = None

    def register(self, name, **properties):
        """Decorator: makes the decorated factory known as `name`, with properties set on it."""

        def add(factory):
            for key, value in properties.items():
                setattr(factory, key, value)
            self._factories[name] = factory
            return factory

        return add

    def names(self):
        """All known names, sorted; imports nothing."""
        return sorted({*self._files(), *self._factories})

    def check(self, name):
        """Returns the name, or raises UnknownName with the known names and the nearest one."""
        names = self.names()
        if name in names:
            return name
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownName(f"unknown {self.kind} {name!r}; known: {', '.join(names)}{hint}")

    def get(self, name):
        """The factory of that name, importing its file when need be."""
        self.check(name)
        if name not in self._factories:
            importlib.import_module(self._files()[name])
        return self._factories[name]

    def _files(self):
        with _READING:
            return self._read()

    def _read(self):
        if self._modules is None:
            spec = importlib.util.find_spec(self._location)
            folders = spec.submodule_search_locations
            if folders is None:
                sources = {self._location: pathlib.Path(spec.origin)}
            else:
                files = sorted(pathlib.Path(folders[0]).glob("*.py"))
                sources = {f"{self._location}.{path.stem}": path for path in files}
            self._modules = {
                name: module
                for module, path in sources.items()
                for name in _registered(path.read_text(encoding="utf-8"), self._variable)
            }
        return self._modules


def _registered(source, variable):
    """Names in the `@VARIABLE.register("name")` decorators at the top level of a source text."""
    for node in ast.parse(source).body:
        for call in getattr(node, "decorator_list", []):
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func) == f"{variable}.register"
            ):
                yield ast.literal_eval(call.args[0])


MODELS = Registry("model", "MODELS", "bn_keras.models")
NORMALIZERS = Registry("normalizer", "NORMALIZERS", "bn_keras.normalizers")
DATASETS = Registry("dataset", "DATASETS", "bn_keras.data")
OPTIMIZERS = Registry("optimizer", "OPTIMIZERS", "bn_keras.optimizers")
LOSSES = Registry("loss", "LOSSES", "bn_keras.losses")
STUDIES = Registry("study", "STUDIES", "bn_keras.studies")
