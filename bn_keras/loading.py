"""Makes `import bn_keras` enough to load a `.keras` file that holds the layers of this package.

Keras finds a foreign class in a file by the name it was registered under, and registering takes an
import of the class and so of Keras. `import bn_keras` is to stay light, so it waits for Keras: a
finder at the head of `sys.meta_path` lets the import of Keras go through, imports the layers right
behind it and takes itself away. Where Keras is there already, the layers are imported at once.
"""

import importlib
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional, Sequence

LAYERS = (
    "bn_keras.batch_norm.layer",
    "bn_keras.surgery.adapted",
    "bn_keras.normalizers.activated",
    "bn_keras.normalizers.conditional",
    "bn_keras.normalizers.dyt",
    "bn_keras.normalizers.filter_response",
    "bn_keras.normalizers.frozen",
    "bn_keras.normalizers.ghost",
    "bn_keras.normalizers.group",
    "bn_keras.normalizers.instance",
    "bn_keras.normalizers.renorm",
    "bn_keras.normalizers.rms",
    "bn_keras.models.layers",
)


def register_layers() -> None:
    """Registers the layers with Keras: now where it is imported, else right after its import."""
    for finder in [f for f in sys.meta_path if type(f).__qualname__ == _BehindKeras.__qualname__]:
        if type(finder).__module__ == __name__:  # left by an earlier import, before a reload
            sys.meta_path.remove(finder)
    if sys.modules.get("keras") is not None:
        _import_layers()
    else:
        sys.meta_path.insert(0, _BehindKeras())


def _import_layers() -> bool:
    """Imports every home of a layer; False if another thread was in the way.

    Somebody's `import keras` must not fail for our sake: an error becomes a warning.
    """
    try:
        for name in LAYERS:
            importlib.import_module(name)
    except Exception as error:
        if type(error).__name__ == "_DeadlockError":  # another thread is importing one of them
            return False
        warnings.warn(
            f"bn_keras: its layers are not registered with Keras, {type(error).__name__}: {error}; "
            "import them from bn_keras before a model that holds them is loaded.",
            RuntimeWarning,
            stacklevel=2,
        )
    return True


class _BehindKeras:
    """A finder that finds nothing of its own; it acts when the import of Keras is over.

    A module of ours may be what imports Keras, and is half done at that moment. So the finder
    counts the modules of ours in progress, in all threads, and waits for the last of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_progress = 0
        self._keras_is_there = False

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        """The spec that the other finders give, with a note to come back after the import."""
        if name != "keras" and not name.startswith("bn_keras."):
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                self._watch(name, spec.loader)
                return spec
        return None

    def _watch(self, name: str, loader: Any) -> None:
        """Has the loader tell when the module was executed."""
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def watched(module: ModuleType) -> None:
            del loader.exec_module
            ours = name != "keras"
            with self._lock:
                self._in_progress += ours
            try:
                execute(module)
            finally:
                with self._lock:
                    self._in_progress -= ours
            self._keras_is_there = self._keras_is_there or not ours
            self._act()

        loader.exec_module = watched

    def _act(self) -> None:
        """Imports the layers, unless it is too early or done. Who comes last, acts."""
        while True:
            with self._lock:
                if not self._keras_is_there or self._in_progress or self not in sys.meta_path:
                    return
                sys.meta_path.remove(self)
            if _import_layers():
                return
            sys.meta_path.insert(0, self)
