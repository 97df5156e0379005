"""Loss and metrics of a model over a user's examples, without touching the model.

What a model is compiled with counts. For one that is not compiled, the usual loss of the labels is
taken where only one reading of labels and outputs is possible, and the answer says so.
"""

import warnings
from typing import Any, Mapping, NamedTuple, Optional

import keras
import numpy as np

from bn_keras.surgery import calls, copies
from bn_keras.surgery.examples import Batch, Examples
from bn_keras.texts import in_a_line

# Of `compile`, in so far as they say how a model is judged.
SETTINGS = ("loss", "loss_weights", "metrics", "weighted_metrics", "run_eagerly")


class Loss(NamedTuple):
    """What examples are judged by.

    Attributes:
        settings: for `compile`.
        said: which loss it is, and where it comes from.
    """

    settings: dict[str, Any]
    said: str


class Unclear(ValueError):
    """Examples cannot be judged; the message says why."""


def loss_of(model: keras.Model, batch: Batch) -> Loss:
    """The loss and the metrics of a model, for some labelled examples.

    Raises:
        Unclear: there are no labels, or the model is not compiled and labels and outputs can be
            read in several ways.
    """
    if batch.y is None:
        raise Unclear("the data have no labels")
    if model.compiled:
        given = model._compile_config.config
        if not any(given.get(name) for name in ("loss", "metrics", "weighted_metrics")):
            raise Unclear("the model is compiled without a loss and without metrics")
        return Loss({name: given[name] for name in SETTINGS}, "as the model is compiled")
    labels, outputs = np.asarray(batch.y), calls.infer(model, batch.x)
    if not hasattr(outputs, "shape"):
        raise Unclear("the model is not compiled, and has several outputs")
    found = _usual(labels, keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32")))
    if found is None:
        raise Unclear(
            f"the model is not compiled, and labels of shape {labels.shape} and outputs of shape "
            f"{tuple(outputs.shape)} can be read in several ways; compile it"
        )
    return found


def score(model: keras.Model, loss: Loss, source: Examples) -> dict[str, float]:
    """Loss and metrics of a model over all examples, by name; the model stays as it is.

    Raises:
        Unclear: the examples were read already and are gone, or the model raised an error.
    """
    if source.once:
        raise Unclear("the examples can be read once only")
    scored = copies.copy_model(model)
    try:
        # The compile of a subclass may want more; what it left in the model is in the copy.
        settings = {name: anew(given) for name, given in loss.settings.items()}
        keras.Model.compile(scored, "sgd", jit_compile=False, **settings)
        batches = (
            keras.tree.lists_to_tuples(tuple(part for part in batch if part is not None))
            for batch in source
        )
        with warnings.catch_warnings():  # nobody knows how many there are: Keras warns at the end
            warnings.simplefilter("ignore")
            found = scored.evaluate(batches, verbose=0, return_dict=True)
        return {name: float(f"{float(value):.6g}") for name, value in found.items()}
    except Exception as error:
        raise Unclear(in_a_line(error)) from error


def judged(
    by: keras.Model, models: Mapping[str, keras.Model], source: Examples
) -> dict[str, Any]:
    """Figures for a certificate: how models do by the loss of one of them, or why nobody knows.

    Returns:
        The score of each model by its name, and "judged by".
    """
    try:
        loss = loss_of(by, source.first_batch)
        found = {name: score(model, loss, source) for name, model in models.items()}
    except Unclear as reason:
        return {"judged by": f"not measured: {reason}"}
    return {**found, "judged by": f"{loss.said}, over all examples given"}


def _usual(labels: Any, outputs: Any) -> Optional[Loss]:
    """The only loss that labels and outputs allow; None where there are several or none."""
    if outputs.ndim == 2 and outputs.shape[1] > 1 and len(labels) == len(outputs):
        sums_to_one = (outputs >= 0).all() and np.allclose(outputs.sum(1), 1, atol=1e-3)
        kind = "of probabilities" if sums_to_one else "of logits"
        told = f"crossentropy {kind}, guessed from labels and outputs: the model is not compiled"
        classes = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if classes.ndim == 1 and np.issubdtype(classes.dtype, np.integer) and (
            0 <= classes.min() and classes.max() < outputs.shape[1]
        ):
            loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=not sums_to_one)
            metric: Any = keras.metrics.SparseCategoricalAccuracy("accuracy")
            return Loss({"loss": loss, "metrics": [metric]}, told)
        one_hot = labels.shape == outputs.shape and np.isin(labels, (0, 1)).all() and (
            labels.sum(1) == 1
        ).all()
        if one_hot:
            loss = keras.losses.CategoricalCrossentropy(from_logits=not sums_to_one)
            metric = keras.metrics.CategoricalAccuracy("accuracy")
            return Loss({"loss": loss, "metrics": [metric]}, told)
    is_number = np.issubdtype(labels.dtype, np.floating) and not np.isin(labels, (0, 1)).all()
    if is_number and labels.shape == outputs.shape:
        told = "mean squared error, guessed from labels and outputs: the model is not compiled"
        return Loss({"loss": "mse"}, told)
    return None


def anew(settings: Any) -> Any:
    """Settings of `compile` in which each metric has a state of its own."""
    def fresh(part: Any) -> Any:
        is_metric = isinstance(part, keras.metrics.Metric)
        return type(part).from_config(part.get_config()) if is_metric else part

    return None if settings is None else keras.tree.map_structure(fresh, settings)
