"""Findings on what trains: freezes that do not freeze, weights that are averaged afterwards."""

from typing import Any, Iterator, Optional

import keras

from bn_keras.diagnostics.examination import BOTH, BY_BATCH, Examination, Normalizer
from bn_keras.diagnostics.finding import (
    COSTS_ACCURACY,
    RISK,
    WRONG_RESULTS,
    CannotLook,
    Finding,
    named,
)
from bn_keras.diagnostics.findings.statistics import cost_of_averages, exact_statistics
from bn_keras.diagnostics.gap import distance
from bn_keras.registry import FINDINGS
from bn_keras.surgery import statistics
from bn_keras.surgery.modes import told_not_to_train

COMPILE = "model.compile_from_config(model.get_compile_config())"
FREEZE = "import bn_keras; model, _ = bn_keras.freeze(model, 'both')"


@FINDINGS.register(
    "frozen_or_trainable", title="a freeze that is none, or half of one", severity="risk",
    needs=(),
)
def frozen_or_trainable(examined: Examination) -> Iterator[Finding]:
    """Normalizers that `fit` trains against their flags, or whose statistics move all the same.

    Four cases: `trainable` was changed after `fit` had traced its training step, which goes on as
    before; gamma and beta were frozen one by one, while the statistics still move; a graph says
    training=False, which `fit` overrides (keras#20285); all around is frozen, as in fine-tuning,
    and the normalizers still take the statistics of new batches.
    """
    yield from _after_tracing(examined)
    half = [one for one in examined.normalizers if one.moves and _affine_frozen(one)]
    told = told_not_to_train(examined.model)
    told_so = [
        one for one in examined.normalizers
        if one.moves and id(one.layer) in told and examined.mode(one.index) in (BY_BATCH, BOTH)
    ]
    between = [one for one in _between_frozen(examined) if one not in half + told_so]
    for layers, case, symptom in (
        (half, "gamma and beta frozen one by one",
         "gamma and beta of {} are frozen, but not the layers: in fit these normalize with the "
         "batch's statistics, and the moving ones change."),
        (told_so, "training=False in the graph",
         "The graph calls {} with training=False, which fit overrides: these normalize with the "
         "batch's statistics in fit, and the moving ones change."),
        (between, "all around is frozen",
         "{} stand between frozen layers and are not frozen themselves: in fit these normalize "
         "with statistics of the new batches, and the moving ones leave those that the frozen "
         "weights were trained with."),
    ):
        if layers:
            paths = tuple(one.path for one in layers)
            yield Finding(
                symptom.format(named(paths, len(examined.normalizers))), FREEZE, paths,
                {"case": case},
                cost_note="not measured: nothing changes until the model is trained",
            )


def _after_tracing(examined: Examination) -> Iterator[Finding]:
    """Flags that were changed after the training step was traced."""
    model = examined.model
    if getattr(model, "train_function", None) is None:
        return  # the next fit traces a new one
    optimizer = optimizer_of(model)
    trained = {id(one) for one in getattr(optimizer, "_trainable_variables", None) or []}
    changed = []
    for one in examined.normalizers:
        affine = _affine(one.layer)
        if affine and trained:
            was = any(id(variable) in trained for variable in affine)
            now = one.trainable and any(variable.trainable for variable in affine)
            if was != now:
                changed.append((one, was))
    if changed:
        was = changed[0][1]
        yield Finding(
            f"trainable of {named([one.path for one, _ in changed], len(examined.normalizers))} "
            f"is {not was} now, but was {was} when fit traced its training step, which the next "
            f"fit goes on with: it {'still trains' if was else 'does not train'} them.",
            COMPILE, tuple(one.path for one, _ in changed),
            {"case": "changed after fit", "trainable when traced": was},
            cost_note="not measured: nothing changes until the model is trained",
            severity=WRONG_RESULTS,
        )


@FINDINGS.register(
    "averaged_weights", title="averaged weights with the statistics of others", severity="risk",
    needs=(),
)
def averaged_weights(examined: Examination) -> Iterator[Finding]:
    """The optimizer averages the weights (`use_ema`), and nobody gave them statistics of their own.

    Silent where the data show that the moving averages fit all the same.
    """
    optimizer = optimizer_of(examined.model)
    moving = [one for one in examined.normalizers if one.moves]
    if not getattr(optimizer, "use_ema", False) or not moving or not examined.weights_moved():
        return
    try:
        moving = [one for one in moving if examined.is_late(one.index)]
    except CannotLook:
        pass
    if not moving:
        return
    cost, note, _ = cost_of_averages(examined, moving)
    yield Finding(
        f"The optimizer averages the weights (use_ema=True, momentum {optimizer.ema_momentum}), "
        f"and {named([one.path for one in moving], len(examined.normalizers))} have the statistics "
        "that belong to the weights before averaging.",
        exact_statistics(examined), tuple(one.path for one in moving),
        {"ema_momentum": optimizer.ema_momentum}, cost, note, COSTS_ACCURACY if cost else RISK,
    )


def optimizer_of(model: keras.Model) -> Any:
    """The optimizer that a model is compiled with, unwrapped from loss scaling; or None."""
    optimizer: Any = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _affine(layer: keras.Layer) -> list[Any]:
    return [one for one in (getattr(layer, name, None) for name in ("gamma", "beta"))
            if isinstance(one, keras.Variable)]


def _affine_frozen(one: Normalizer) -> bool:
    """Whether gamma and beta are frozen by their own flags; a layer that says so is no surprise."""
    affine = _affine(one.layer)
    said = getattr(one.layer, "trains_affine", True) is False
    return bool(affine) and not said and not any(variable.trainable for variable in affine)


def _between_frozen(examined: Examination) -> list[Normalizer]:
    """Normalizers whose statistics move, with frozen weights right before and after them."""
    by_layer = {id(one.layer): one for one in examined.normalizers if one.moves}
    found: list[Normalizer] = []
    pending: list[Normalizer] = []
    frozen: Optional[bool] = None  # the last layer with weights of another kind
    for layer in examined.model._flatten_layers(include_self=False):
        if id(layer) in by_layer:
            if frozen:
                pending.append(by_layer[id(layer)])
        elif not statistics.is_batch_normalizer(layer) and layer._trainable_variables:
            frozen = not layer.trainable
            if frozen:
                found += pending
            pending = []
    return found


FAR, OTHER = 1.0, 4.0  # of frozen averages: standard deviations of the mean, factor of the variance


@FINDINGS.register(
    "frozen_off", title="frozen averages are not those of these data", severity="risk",
    needs=("data",),
)
def frozen_off(examined: Examination) -> Iterator[Finding]:
    """What goes into frozen normalizers is far from the averages that they were frozen with.

    No other finding compares these: a frozen layer's averages are right for the weights that were
    trained with them, whatever the data. So this speaks of data of another scale or domain only.
    """
    found = {}
    for one, seen in zip(examined.normalizers, examined.observed, strict=True):
        if one.moves or not one.finite or seen is None:
            continue
        found[one.index] = distance(
            one.layer, {"moving_mean": one.mean, "moving_variance": one.variance},
            {"moving_mean": seen.inputs.mean, "moving_variance": seen.inputs.variance},
        )
    off = [index for index, (shift, factor) in found.items() if shift > FAR or factor > OTHER]
    if not off:
        return
    first = off[0]  # those behind it may only pass it on
    paths = [examined.normalizers[index].path for index in off]
    shift, factor = found[first]
    yield Finding(
        f"{named(paths, len(examined.normalizers))} are frozen with averages that are not those of "
        f"these data: in {paths[0]} the mean is off by {shift:.2g} standard deviations and the "
        f"variance by a factor of {factor:.2g}. Look at the scale of the inputs first.",
        "import bn_keras; model, _ = bn_keras.recalibrate(bn_keras.unfreeze(model)[0], "
        f"{'train' if examined.has_train else 'data'})",
        tuple(paths),
        {"shift": {path: found[index][0] for path, index in zip(paths, off)},
         "factor": {path: found[index][1] for path, index in zip(paths, off)}},
        cost_note="not measured: averages that were frozen are right for data like those of then",
    )
