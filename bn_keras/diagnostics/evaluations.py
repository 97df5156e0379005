"""A model's loss on some batches of examples, under averaged, exact and batch statistics."""

import dataclasses
import functools
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

import keras
import numpy as np
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from numpy.typing import NDArray

from bn_keras.diagnostics.finding import CannotLook, Unusable
from bn_keras.diagnostics.passes import AVERAGED, BATCH, Array, Passes, as_array
from bn_keras.surgery import scores
from bn_keras.surgery.examples import (
    Batch,
    Examples,
    check_batch_size,
    check_form,
    length,
    not_finite,
)
from bn_keras.texts import in_a_line

BATCH_SIZE = 32  # Keras's own in `fit`
EXAMPLES = 512  # enough to find what is grossly wrong, and read in seconds
OWN = "own"  # exact statistics of what is evaluated
CATEGORICAL = (
    keras.losses.categorical_crossentropy, keras.losses.sparse_categorical_crossentropy,
)
CHUNK_BYTES = 32e6  # of inputs that go through the model at once for exact statistics


class Batches(NamedTuple):
    """The examples that are looked at, in memory.

    Attributes:
        batches: of at least one example each.
        read: how many examples are in these.
        total: how many there are in the data; None where nobody knows.
        size: examples of a full batch; arrays may have fewer.
        form: "array" for a single array, "tuple" for a tuple whose first part is one, "dataset" for
            a tf.data.Dataset with one input, or "".
    """

    batches: list[Batch]
    read: int
    total: Optional[int]
    size: int
    form: str = ""

    @property
    def first(self) -> Batch:
        """The first batch."""
        return self.batches[0]

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.first.y is not None

    @property
    def not_finite(self) -> int:
        """How many examples hold NaN or infinity in their inputs."""
        return sum(int(not_finite(batch.x).sum()) for batch in self.batches)

    def __str__(self) -> str:
        rest = "" if self.read == self.total else (
            ", the first of data that may have more" if self.total is None
            else f", drawn from {self.total}"
        )
        return f"{self.read} examples in {len(self.batches)} batches{rest}"


def read(
    model: keras.Model, data: Any, batch_size: int, examples: int, caller: str
) -> Batches:
    """Reads as many batches as are looked at: arrays in random order, other data as they come.

    Raises:
        TypeError: data of another form than `Examples` takes.
        ValueError: no examples, or a number that is none.
    """
    _check_number(examples, caller)
    source = Examples(model, data, batch_size, caller, shuffle=True)
    batches, count, ended = [], 0, True
    for batch in source:
        if count >= examples:
            ended = False
            break
        batches.append(batch)
        count += length(batch.x)
    total = count if ended else source.count
    size = batch_size if source.count else max(length(batch.x) for batch in batches)
    return Batches(batches, count, total, size, _form(data, batches[0]))


def check_arguments(data: Any, batch_size: int, examples: int, loss: Any, caller: str) -> None:
    """Refuses what cannot be read or judged for any model, before there is one.

    Raises:
        TypeError: data in no form that is known.
        ValueError: a number that is none, or a loss that Keras does not know.
    """
    if data is not None:
        check_form(data, caller)
    check_batch_size(batch_size, caller)
    _check_number(examples, caller)
    check_loss(loss, caller)


def check_loss(loss: Any, caller: str) -> None:
    """Raises for what `model.compile` takes for no loss.

    Raises:
        ValueError: it is none.
    """
    for one in keras.tree.flatten(loss):
        try:
            keras.losses.get(one)
        except ValueError as error:
            raise ValueError(
                f"{caller}: loss={one!r}; expected a loss as model.compile takes it: the name of "
                "one of Keras's, an object of keras.losses or a function (y_true, y_pred)."
            ) from error


def _check_number(examples: object, caller: str) -> None:
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 2:
        raise ValueError(f"{caller}: examples={examples!r}; expected a number of at least 2.")


def _form(data: Any, batch: Batch) -> str:
    """The form of data that have a single input; "" for several, and for other forms."""
    if len(keras.tree.flatten(batch.x)) > 1 or isinstance(batch.x, (dict, list, tuple)):
        return ""
    if hasattr(data, "unbatch"):
        return "dataset"
    if hasattr(data, "shape"):
        return "array"
    arrays = isinstance(data, tuple) and all(hasattr(part, "shape") for part in data)
    return "tuple" if arrays else ""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model's performance on some batches.

    Attributes:
        losses: mean loss of each batch, (batches,).
        sizes: examples of each batch, (batches,).
        metrics: name → value over all of them.
    """

    losses: Array
    sizes: Array
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The mean over examples."""
        return float(np.average(self.losses, weights=self.sizes))

    @property
    def accuracy(self) -> Optional[float]:
        """The first metric that is an accuracy; None if none is."""
        return next((value for name, value in self.metrics.items() if "acc" in name), None)


class Evaluations:
    """Runs a model over some examples as often as is needed, each run once.

    Args:
        passes: of the model.
        data: the examples.
        train: training examples, if `data` are others; None if `data` are all there are.
        loss: as `compile` takes it; None for the compiled one, or the only one that fits the
            labels.

    Attributes:
        passes: as given.
        data: as given.
        train: `train`, or else `data`.
        has_train: whether there was a `train`.

    Raises:
        ValueError: a layer is called inside a tf.function.
    """

    def __init__(
        self, passes: Passes, data: Batches, train: Optional[Batches] = None, loss: Any = None
    ) -> None:
        self.passes, self.data, self.has_train = passes, data, train is not None
        self.train = data if train is None else train
        self._loss = loss
        passes.survey(data.first.x, training=True)
        self._scored: dict[tuple[Any, ...], Scored] = {}

    @functools.cached_property
    def exact(self) -> list[dict[str, Array]]:
        """Exact statistics of the training examples, as `Passes.exact` gives them."""
        return self.passes.exact(_chunks(self.train))

    @functools.cached_property
    def exact_of_data(self) -> list[dict[str, Array]]:
        """Exact statistics of `data`."""
        return self.passes.exact(_chunks(self.data)) if self.has_train else self.exact

    @functools.cached_property
    def scorer(self) -> "Scorer":
        """The loss.

        Raises:
            CannotLook: there is none; the message says why.
        """
        if not self.data.labelled:
            raise CannotLook("no labels: give data as (x, y)")
        return _scorer(self.passes.source, self._loss, self.data.first)

    def scored(
        self, on: str, kind: str, layers: Optional[Iterable[int]] = None
    ) -> Scored:
        """The losses under some statistics.

        Args:
            on: "data" or "train".
            kind: AVERAGED, EXACT (of the training examples) or BATCH statistics; OWN for the
                exact ones of what it is evaluated on.
            layers: None for all; else the indices of those that have the statistics of this kind,
                AVERAGED or BATCH, where all others have exact ones.

        Raises:
            CannotLook: there is no loss.
        """
        on = on if self.has_train else "data"
        every = range(len(self.passes.layers))
        indices = every if layers is None else sorted(set(layers))
        key = on, kind, tuple(indices)
        if key not in self._scored:
            batches = self.data if on == "data" else self.train
            values = self.exact_of_data if kind == OWN and on == "data" else self.exact
            if kind == AVERAGED:
                values = self.with_averages(indices)
            if kind == BATCH and len(indices) == len(every):
                values = self.passes.averaged  # of layers that are in inference mode in `fit`
            with self.passes.having(values):
                self._scored[key] = self._score(batches, indices if kind == BATCH else ())
        return self._scored[key]

    def with_averages(self, layers: Iterable[int]) -> list[dict[str, Array]]:
        """Statistics as `Passes.put` takes them: averages in some layers, exact in all others."""
        chosen = set(layers)
        return [
            averaged if index in chosen else exact
            for index, (averaged, exact) in enumerate(zip(self.passes.averaged, self.exact))
        ]

    def _score(self, batches: Batches, batch_mode: Iterable[int]) -> Scored:
        scorer, indices = self.scorer, list(batch_mode)
        metrics = scorer.metrics()
        losses = []
        for x, y, weight in batches.batches:
            outputs = self.passes.outputs(x, indices)
            losses.append(as_array(scorer.loss(y, outputs, weight)))
            metrics.update_state(y, outputs, weight)
        return Scored(
            np.array(losses), np.array([length(batch.x) for batch in batches.batches], np.float64),
            {name: float(as_array(value)) for name, value in metrics.result().items()},
        )


class Scorer(NamedTuple):
    """How outputs are judged.

    Attributes:
        said: which loss it is, and where it comes from.
        loss: `(y, outputs, sample_weight) -> mean loss`; raises Unusable where it cannot.
        metrics: `() -> metrics`, with a state of their own.
    """

    said: str
    loss: Callable[[Any, Any, Any], Any]
    metrics: Callable[[], Any]


def _scorer(model: keras.Model, given: Any, batch: Batch) -> Scorer:
    if given is not None:
        settings, said = {"loss": given}, "as given"
    else:
        if type(model).compute_loss is not keras.Model.compute_loss:
            raise CannotLook(
                f"{type(model).__name__} has a compute_loss of its own: give loss=… as "
                "model.compile takes it"
            )
        try:
            settings, said = scores.loss_of(model, batch)
        except scores.Unclear as reason:
            raise CannotLook(f"{reason}, or give loss=… as model.compile takes it") from reason
    loss = settings["loss"]
    if loss is None:
        raise CannotLook("the model is compiled without a loss: give loss=…")
    name = _loss_name(loss)
    metrics, weighted = (settings.get(key) for key in ("metrics", "weighted_metrics"))
    if not metrics and not weighted and len(keras.tree.flatten(batch.y)) == 1:
        metrics = _accuracy(loss)
    outputs = getattr(model, "output_names", None)
    compiled = CompileLoss(loss, settings.get("loss_weights"), output_names=outputs)
    # A step of the model's own may take labels of any kind: its loss is no loss of these.
    own_step = given is None and type(model).train_step is not keras.Model.train_step

    def loss_of_batch(y: Any, outputs: Any, weight: Any) -> Any:
        try:
            return compiled(y, outputs, weight)
        except Exception as error:
            kind = CannotLook if own_step else Unusable
            raise kind(
                f"the loss ({name}, {said}) cannot be computed of labels {_told(y)} and outputs "
                f"{_told(outputs)}: {in_a_line(error)}. Expected labels as `fit` takes them, or "
                "data without labels"
            ) from error

    return Scorer(
        f"{name}, {said}", loss_of_batch,
        lambda: CompileMetrics(scores.anew(metrics), scores.anew(weighted), output_names=outputs),
    )


def _told(values: Any) -> str:
    """Labels or outputs in words: type, shape and range of each."""
    def of(one: Any) -> str:
        array = np.asarray(keras.ops.convert_to_numpy(one) if keras.ops.is_tensor(one) else one)
        if array.dtype.kind not in "iuf" or not array.size:
            return f"of type {array.dtype} and shape {array.shape}"
        return (
            f"of type {array.dtype} and shape {array.shape}, from {array.min():.4g} to "
            f"{array.max():.4g}"
        )

    return ", ".join(map(of, keras.tree.flatten(values)))


def _accuracy(loss: Any) -> Optional[list[Any]]:
    """The accuracy that goes with a loss for a single output; None where none does."""
    if isinstance(loss, (list, tuple, dict)):
        flat = keras.tree.flatten(loss)
        loss = flat[0] if len(flat) == 1 else None
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        middle = 0.0 if loss.from_logits else 0.5  # a logit of 0 is a probability of 1/2
        return [keras.metrics.BinaryAccuracy("accuracy", threshold=middle)]
    if loss is keras.losses.binary_crossentropy or loss in CATEGORICAL or isinstance(
        loss, (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    ):
        return ["accuracy"]
    return None


def rows(x: Any, start: int, end: int) -> Any:
    """Some examples of the x of a batch."""
    return keras.tree.map_structure(lambda leaf: leaf[start:end], x)


def _chunks(batches: Batches) -> list[Any]:
    """The x of batches, joined to as large ones as go through a model at once."""
    xs = [batch.x for batch in batches.batches]
    size = sum(_bytes(leaf) for leaf in keras.tree.flatten(xs[0]))
    each = max(1, int(CHUNK_BYTES // max(size, 1)))
    return [chunk for start in range(0, len(xs), each) for chunk in _joined(xs[start:start + each])]


def _joined(xs: list[Any]) -> list[Any]:
    """One x of several; these themselves where their shapes do not fit together."""
    shapes = {tuple(tuple(leaf.shape[1:]) for leaf in keras.tree.flatten(x)) for x in xs}
    if len(xs) == 1 or len(shapes) > 1:
        return xs
    return [keras.tree.map_structure(lambda *parts: np.concatenate([*map(_plain, parts)]), *xs)]


def _plain(x: Any) -> NDArray[Any]:
    return np.asarray(x if isinstance(x, np.ndarray) else keras.ops.convert_to_numpy(x))


def _bytes(x: Any) -> int:
    return int(np.prod(x.shape)) * 4


def _loss_name(loss: Any) -> str:
    if isinstance(loss, (list, tuple, dict)):
        return "the sum of several losses"
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss)
