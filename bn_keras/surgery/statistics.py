"""The population statistics of a whole model: read, copied, merged, held, compared, reset.

Every function takes any built Keras model or layer, with this package's BatchNorm, Keras's layer or
another that keeps a `moving_mean` and a `moving_variance`; nested ones included, frozen or not.
"""

import collections
import contextlib
import re
from typing import Any, Iterable, Iterator

import keras
import numpy as np
import numpy.typing as npt

# Statistics by their paths, such as `bn/moving_mean`.
Snapshot = dict[str, npt.NDArray[Any]]

# All that training moves in a batch normalization, by its name as an attribute of the layer.
STATISTICS = (
    "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev", "updates",
)
# Each mean, and the deviation around it that is kept with it.
PAIRS = (
    ("moving_mean", "moving_variance"), ("moving_mean", "moving_stddev"),
    ("renorm_mean", "renorm_stddev"),
)


def batch_normalizers(model: keras.Layer) -> list[keras.Layer]:
    """The layers of a model, nested ones and itself too, that keep population statistics.

    Raises:
        TypeError: neither a keras.Model nor a layer.
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"received {model!r}; expected a keras.Model or a layer.")
    return [layer for layer in model._flatten_layers() if is_batch_normalizer(layer)]


def is_batch_normalizer(layer: object) -> bool:
    """Whether a layer keeps population statistics, whoever wrote it."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")


def moves_statistics(layer: keras.Layer) -> bool:
    """Whether training would move a layer's population statistics: it has some, and no freeze."""
    return (
        is_batch_normalizer(layer) and layer.trainable
        and getattr(layer, "moves_statistics", True)
    )


def skipped_batches(model: keras.Layer) -> int:
    """How many training batches the BatchNorm layers of a model left out, added up (an int)."""
    return sum(getattr(layer, "skipped_batches", 0) for layer in batch_normalizers(model))


def reset_skipped_batches(model: keras.Layer) -> None:
    """Lets every BatchNorm layer of a model count the batches it leaves out from 0."""
    for layer in batch_normalizers(model):
        if hasattr(layer, "skipped_batches"):
            layer.skipped_batches = 0


@contextlib.contextmanager
def held(model: keras.Layer) -> Iterator[None]:
    """Leaves the moving statistics of a model alone, whatever is called in training mode.

    For a second pass over a batch: the perturbed weights of sharpness-aware minimization, a
    gradient penalty, an adversarial or contrastive view. The pass still normalizes with its batch.

    >>> import numpy as np
    >>> from bn_keras import BatchNorm
    >>> layer = BatchNorm()
    >>> x = np.array([[1.0], [3.0]], "float32")
    >>> with held(layer):
    ...     y = layer(x, training=True)
    >>> float(layer.moving_mean.numpy()[0])
    0.0

    It is what is *called* or traced within that is held. In a `tf.function`, open it inside of the
    function; a graph that was traced before knows nothing of it. `model.fit` may be called within:
    the model's own training graph is made anew on entry and on exit.

    Args:
        model: a keras.Model or layer, built or not.

    Yields:
        None.

    Raises:
        ValueError: it has no batch normalization that is built, so that nothing could be held.
    """
    layers = batch_normalizers(model)
    own = [layer for layer in model._flatten_layers() if hasattr(layer, "hold")]
    if not layers and not own:
        raise ValueError(
            f"held: {model.name!r} has no batch normalization that is built; expected a model that "
            "was called or built before."
        )
    with contextlib.ExitStack() as stack:
        if isinstance(model, keras.Model):
            model.train_function = None
            stack.callback(setattr, model, "train_function", None)
        for layer in own:
            stack.enter_context(layer.hold())
        for layer in layers:
            if layer not in own:
                for variable in variables_of(layer):
                    stack.enter_context(_unassignable(variable))
        yield


@contextlib.contextmanager
def _unassignable(variable: keras.Variable) -> Iterator[None]:
    before = vars(variable).get("assign")
    variable.assign = lambda value: value
    try:
        yield
    finally:
        if before is None:
            del variable.assign
        else:
            variable.assign = before


def snapshot(model: keras.Layer) -> Snapshot:
    """Copies the population statistics of a model or layer.

    Returns:
        dict of path to array, such as `bn/moving_mean`, in the order of the layers; `restore`,
        `merge` and `difference` take it. Scale and offset are not in it. Where several layers have
        the same path, the second one's is `bn#2/moving_mean`.

    Raises:
        ValueError: a batch normalization of the model is not built.
    """
    return {
        path: np.array(keras.ops.convert_to_numpy(variable))
        for path, variable in _statistics(model).items()
    }


def restore(model: keras.Layer, statistics: Snapshot) -> None:
    """Puts a snapshot's statistics into a model: all of them, or none if it raises.

    They are matched by their paths. For a copy that Keras has named anew, the model's own name and
    the numbers in automatic names, as in `batch_normalization_3`, do not count.

    Raises:
        ValueError: the snapshot does not fit, or a batch normalization of the model is not built.
    """
    variables = _statistics(model)
    arrays = _matched(snapshot(model), statistics, "restore")
    for variable, array in zip(variables.values(), arrays, strict=True):
        variable.assign(array)


def merge(snapshots: Iterable[tuple[Snapshot, float]]) -> Snapshot:
    """Statistics of several models pooled: those of all their values together.

    Exact for statistics that each are of so many values (Chan, Golub & LeVeque 1983): the pooled
    variance has the spread of the means in it, which an average of the variances leaves out. For
    federated averaging, averaged or merged weights, and moving averages taken on several machines.

    >>> one = {"bn/moving_mean": np.array([0.0]), "bn/moving_variance": np.array([1.0])}
    >>> other = {"bn/moving_mean": np.array([4.0]), "bn/moving_variance": np.array([1.0])}
    >>> pooled = merge([(one, 300), (other, 100)])
    >>> float(pooled["bn/moving_mean"][0]), float(pooled["bn/moving_variance"][0])
    (1.0, 4.0)

    Args:
        snapshots: list of `(snapshot, count)`; count is the weight, such as how many examples the
            statistics were taken over. Snapshots are matched as `restore` matches them.

    Returns:
        A snapshot with the paths of the first one, for `restore`. Updates add up.

    Raises:
        ValueError: no list of pairs of a snapshot and a positive number, or the snapshots do not
            fit each other.
    """
    expected = "merge: received {}; expected a list of (snapshot, count), each count above 0."
    try:
        parts = [(dict(one), float(count)) for one, count in snapshots]
    except (TypeError, ValueError):
        raise ValueError(expected.format(f"a {type(snapshots).__name__}")) from None
    if not parts or not all(one for one, _ in parts):
        raise ValueError(expected.format("no statistics"))
    counts = np.array([count for _, count in parts])
    if not (np.isfinite(counts).all() and (counts > 0).all()):
        raise ValueError(expected.format(f"the counts {counts.tolist()}"))
    shares = counts / counts.sum()
    first = parts[0][0]
    columns = zip(*(_matched(first, one, "merge") for one, _ in parts))
    stacked = {path: np.stack(column).astype(np.float64) for path, column in zip(first, columns)}
    merged = {}
    for path, values in stacked.items():
        layer, _, name = path.rpartition("/")
        if name == "updates":
            merged[path] = values.sum(0)
            continue
        mean_name = next((mean for mean, spread in PAIRS if name == spread), None)
        if mean_name is None:
            merged[path] = np.tensordot(shares, values, 1)
            continue
        means = stacked[f"{layer}/{mean_name}"]
        distances = means - np.tensordot(shares, means, 1)
        is_root = name.endswith("stddev")
        squares = np.tensordot(shares, (values**2 if is_root else values) + distances**2, 1)
        merged[path] = np.sqrt(squares) if is_root else squares
    return {path: value.astype(first[path].dtype) for path, value in merged.items()}


def difference(before: Snapshot, after: Snapshot) -> dict[str, tuple[float, float]]:
    """How far population statistics moved between two snapshots.

    Returns:
        dict of layer path to `(mean, variance)`: the largest shift of a channel's mean, in standard
        deviations of before, and the largest factor by which a variance grew or shrank.
    """
    moved = {}
    for path, old_mean in before.items():
        layer, _, name = path.rpartition("/")
        if name != "moving_mean":
            continue
        old = np.maximum(before[f"{layer}/moving_variance"].astype(np.float64), 1e-12)
        new = np.maximum(after[f"{layer}/moving_variance"].astype(np.float64), 1e-12)
        with np.errstate(all="ignore"):  # statistics may be what is wrong: inf, or NaN
            shift = np.abs(after[path].astype(np.float64) - old_mean) / np.sqrt(old)
            factor = np.exp(np.abs(np.log(new / old)).max())
        moved[layer] = float(shift.max()), float(factor)
    return moved


def reset(model: keras.Layer) -> None:
    """Gives all population statistics of a model or layer their initial values again.

    Counts of skipped batches and groups of micro-batches start over, too. Scale and offset stay as
    they are.
    """
    _statistics(model)  # all are built
    for layer in batch_normalizers(model):
        fresh = type(layer).from_config(layer.get_config())
        fresh.build_from_config(layer.get_build_config())
        for variable, initial in zip(variables_of(layer), variables_of(fresh), strict=True):
            variable.assign(initial)
        if hasattr(layer, "population"):
            layer.population.forget()


def _names(layer: keras.Layer) -> list[str]:
    """The names of a layer's statistics: whether it is frozen does not matter."""
    return [name for name in STATISTICS if isinstance(getattr(layer, name, None), keras.Variable)]


def variables_of(layer: keras.Layer) -> list[keras.Variable]:
    """The variables of a layer's own statistics; none if it keeps none or is not built."""
    return [getattr(layer, name) for name in _names(layer)]


def _statistics(model: keras.Layer) -> dict[str, keras.Variable]:
    """The variables of a model's statistics by path."""
    found: dict[str, keras.Variable] = {}
    seen: collections.Counter[str] = collections.Counter()
    for layer in batch_normalizers(model):
        if not _names(layer):
            raise ValueError(
                f"{layer.name!r} ({type(layer).__name__}) is not built and has no statistics yet; "
                "expected a model that was called once on data, or built."
            )
        seen[layer.path] += 1
        place = layer.path if seen[layer.path] == 1 else f"{layer.path}#{seen[layer.path]}"
        found.update({f"{place}/{name}": getattr(layer, name) for name in _names(layer)})
    return found


def _matched(wanted: Snapshot, statistics: Snapshot, caller: str) -> list[npt.NDArray[Any]]:
    """The arrays of a snapshot in the order of another one's paths."""
    for plain in (str, _without_model):
        ours, theirs = ([plain(path) for path in one] for one in (wanted, statistics))
        if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
            by_path = dict(zip(theirs, statistics.values()))
            arrays = [by_path[path] for path in ours]
            break
    else:
        ours, theirs = ([_without_numbers(path) for path in one] for one in (wanted, statistics))
        arrays = list(statistics.values()) if ours == theirs else []
    if [np.shape(array) for array in arrays] != [np.shape(array) for array in wanted.values()]:
        raise ValueError(
            f"{caller}: received statistics of {_told(statistics)}; expected those of "
            f"{_told(wanted)}."
        )
    return arrays


def _without_model(path: str) -> str:
    """A path without the outermost name, where more than a layer and a statistic are in it."""
    first, _, rest = path.partition("/")
    return rest if "/" in rest else path


def _without_numbers(path: str) -> str:
    """A path without the model's name and the numbers in automatic names."""
    return re.sub(r"_\d+(?=[/#])", "", _without_model(path))


def _told(statistics: Snapshot) -> str:
    paths = [f"{path} {np.shape(array)}" for path, array in statistics.items()]
    return f"{len(paths)} arrays ({', '.join(paths[:4])}{', …' if len(paths) > 4 else ''})"
