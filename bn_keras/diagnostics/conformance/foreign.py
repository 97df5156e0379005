"""What is no Keras layer, in the shape that probes ask for: plain classes, functions, modules.

An `Adapter` makes fresh `Foreign` layers of one thing. Inputs are rows (or images, channels last);
what takes images only, or channels first, gets them so. `momentum` is Keras's, the weight of the
old statistic: the adapter finds out which way round the thing has it.
"""

import inspect
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from bn_keras.diagnostics.conformance.kits import Kit
from bn_keras.diagnostics.conformance.names import WRAP

# What code says that means to take images as well as rows.
MEANS_IMAGES = re.compile(r"ndim|\.shape\)\s*[=!<>]=|\(0, *[123]\b|2d|transpose|moveaxis|NCHW|NHWC")


class Layout(NamedTuple):
    """How a thing takes its inputs.

    Attributes:
        lifted: rows are handed over as images of one pixel.
        channels_first: the channels are axis 1.
        wide: a function's weights are (1, channels, 1, 1), to be broadcast over images.
    """

    lifted: bool = False
    channels_first: bool = False
    wide: bool = False


ROWS = (Layout(), Layout(True, True), Layout(True, True, True), Layout(True, False))
IMAGES = (Layout(), Layout(False, True), Layout(False, True, True))


class Weight:
    """An array of a thing, by the functions that read and write it; axes of size 1 are left out."""

    def __init__(
        self, read: Callable[[], Any], write: Callable[[np.ndarray], None], channels: int
    ) -> None:
        self._read, self._write, self._channels = read, write, channels

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        found = np.array(self._read(), dtype).reshape(-1)
        return np.broadcast_to(found, self._channels).copy() if found.size == 1 else found

    @property
    def shape(self) -> Tuple[int, ...]:
        return np.asarray(self).shape

    def assign(self, values: Any) -> None:
        old = np.asarray(self._read())
        kind = old.dtype if old.dtype.kind == "f" else np.dtype(float)
        shape = old.shape if old.size == np.size(values) else np.shape(values)
        self._write(np.asarray(values, kind).reshape(shape))


class Foreign:
    """One fresh layer made of a thing.

    Attributes:
        gamma, beta, moving_mean, moving_variance: Weights; None where the thing has none.
    """

    gamma: Optional[Weight] = None
    beta: Optional[Weight] = None
    moving_mean: Optional[Weight] = None
    moving_variance: Optional[Weight] = None
    layout = Layout()
    built = False

    def build(self, shape: Any) -> None:
        """Makes the weights for inputs of this shape, channels last."""
        if not self.built:
            self._make(int(shape[-1]), 4 if self.layout.lifted else len(shape))
            self.built = True

    def __call__(self, x: Any, training: bool = False) -> np.ndarray:
        """The outputs for rows or images, channels last."""
        x = np.asarray(x)
        self.build(x.shape)
        y = np.asarray(self._call(self._their(x), training))
        return self._ours(y, x.shape)

    def gradients(self, x: np.ndarray, dy: np.ndarray, training: bool) -> List[np.ndarray]:
        """Gradients of sum(y * dy) by x, and by gamma and beta where it has them."""
        self.build(x.shape)
        found = self._gradients(self._their(x), self._their(dy), training)
        dx = self._ours(np.asarray(found[0], np.float64), x.shape)
        return [dx, *(np.asarray(one, np.float64).reshape(-1) for one in found[1:])]

    def holds_gradients(self) -> str:
        """Names of statistics that are trained, or hang on the graph of a batch, in PyTorch."""
        return ""

    def _their(self, x: np.ndarray) -> np.ndarray:
        if self.layout.lifted and x.ndim == 2:
            x = x[:, None, None, :]
        return np.moveaxis(x, -1, 1) if self.layout.channels_first else x

    def _ours(self, y: np.ndarray, shape: Tuple[int, ...]) -> np.ndarray:
        if self.layout.channels_first and y.ndim > 1:
            y = np.moveaxis(y, 1, -1)
        return y.reshape(shape) if y.size == np.prod(shape) else y

    def _make(self, channels: int, rank: int) -> None:
        raise NotImplementedError

    def _call(self, x: np.ndarray, training: bool) -> Any:
        raise NotImplementedError

    def _gradients(self, x: np.ndarray, dy: np.ndarray, training: bool) -> List[np.ndarray]:
        raise NotImplementedError


class Adapter:
    """Makes fresh Foreign layers of a thing.

    Attributes:
        kind: what it is, such as "a NumPy function".
        name: the thing's own name.
        settings: Keras's names for settings that it takes, and their defaults (None: unknown).
        conventions: sentences on what differs from Keras and is no mistake.
        holds: whether it keeps its statistics itself, in attributes.
        has_gradients: whether gradients of its training can be had.
        trains_by_gradients: whether it takes a call without gradients for inference, as the
            functions of "Dive into Deep Learning" do.
        updates: False if it hands out a batch's statistics and leaves the averaging to its caller.
    """

    kind = "a plain class"
    name = ""
    updates = True
    holds = False
    has_gradients = False
    trains_by_gradients = False
    kit = Kit()

    def __init__(self) -> None:
        self.settings: Dict[str, Any] = {}
        self.conventions: List[str] = []
        self._weighs_the_new = False
        self._layout = Layout()
        self._images: Optional[Layout] = None

    def make(self, settings: Dict[str, Any]) -> Foreign:
        """A fresh layer with settings by Keras's names, as the thing understands them."""
        raise NotImplementedError

    def source(self) -> str:
        """The thing's source text; "" if it cannot be read."""
        raise NotImplementedError

    def takes(self, name: str) -> bool:
        """Whether it has this setting of Keras."""
        return name in self.settings

    def __call__(self, **settings: Any) -> Foreign:
        """A fresh layer; momentum is the weight of the old statistic."""
        if self._weighs_the_new and "momentum" in settings:
            settings["momentum"] = 1 - settings["momentum"]
        made = self.make(settings)
        made.layout = self._layout
        return made

    def images(self) -> Optional[Foreign]:
        """A fresh layer that takes images, channels last; None if it is made for rows."""
        if self._images is None:
            return None
        made = self.make({})
        made.layout = self._images
        return made

    def settle(self) -> "Adapter":
        """Tries the thing: which shapes it takes, and which way round its momentum is.

        Raises:
            ValueError: no call of it gives an output like the input.
        """
        rows, ended = np.eye(4, 3, dtype="float32"), []
        for self._layout in ROWS:
            ended.append(self._try(self._layout, rows))
            if not ended[-1]:
                break
        else:
            raise ValueError(
                f"{self.name} on an array of shape (4, 3) ended in {ended[0]}; expected a keras "
                "layer, or a class or function of NumPy, TensorFlow, PyTorch or JAX that takes the "
                f"inputs and `training` and returns outputs of the same shape.{WRAP}"
            )
        if not self._layout.lifted:
            self._find_images()
        else:
            self._images = self._layout
        self._weighs_the_new = self._meant_weight() == "new"
        return self

    def _try(self, layout: Layout, x: np.ndarray) -> str:
        made = self.make({})
        made.layout = layout
        try:
            y = made(x, training=True)
        except Exception as error:
            told = (str(error).strip().splitlines() or [""])[0]
            return f"{type(error).__name__}: {told}"
        return "" if y.shape == x.shape else f"an output of shape {y.shape}"

    def _find_images(self) -> None:
        """Images are asked for where the code speaks of them; the right one of two layouts wins."""
        if not MEANS_IMAGES.search(self.source()):
            return
        x = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype("float32")
        for layout in IMAGES:
            made = self.make({})
            made.layout = layout
            try:
                y = made(x, training=True)
            except Exception:
                continue
            right = y.shape == x.shape and np.abs(y.mean((0, 1, 2))).max() < 1e-3
            if right or (self._images is None and y.shape == x.shape):
                self._images = layout
            if right:
                return

    def _meant_weight(self) -> str:
        """Whose weight momentum is meant to be, "old" or "new".

        Its default tells: nobody averages over 1.1 batches. Without one, Keras's names mean Keras's
        momentum, and for others it is what it does.
        """
        if not self.takes("momentum"):
            return "old"
        default = self.settings["momentum"]
        if default is not None:
            meant = "old" if default >= 0.5 else "new"
        else:
            meant = "old" if self.has_keras_names() else self._measured_weight()
        if meant == "new":
            self.conventions.append(
                "momentum is the weight of the new batch, as in PyTorch; Keras's is that of the "
                "old average, 1 − momentum."
            )
        return meant

    def has_keras_names(self) -> bool:
        """Whether its mean is a `moving_mean` and its momentum is called so, or decay."""
        raise NotImplementedError

    def _measured_weight(self) -> str:
        made = self.make({"momentum": 0.25})
        made.layout = self._layout
        rows = np.arange(12, dtype="float32").reshape(4, 3) % 7
        made(rows, training=True)
        before = np.asarray(made.moving_mean, np.float64)
        made(rows + 100, training=True)
        moved = np.asarray(made.moving_mean, np.float64) - before
        return "new" if np.mean(moved / (rows.mean(0) + 100 - before)) < 0.5 else "old"


def source_of(thing: Any) -> str:
    """The source text of a class or function; "" if there is none to read."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
