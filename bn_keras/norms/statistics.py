"""Population statistics: how much a batch counts, and what to do with the statistics of a model."""

import math

import numpy as np
from keras import ops


def check_momentum(momentum, debias):
    """Returns the momentum as a layer keeps it: a float, None or a schedule.

    Raises:
        ValueError: out of range, or a debiased average of something else than a constant momentum.
    """
    if debias and (momentum is None or callable(momentum)):
        raise ValueError(
            f"BatchNorm: debias=True with momentum={momentum!r}; expected a number as momentum."
        )
    if momentum is None or callable(momentum):
        return momentum
    number = float(momentum)
    if not 0 <= number <= 1:
        raise ValueError(f"BatchNorm: momentum={momentum!r}; expected 0 <= momentum <= 1.")
    return number


def counts_updates(momentum, debias):
    """Whether the weight of a batch depends on how many came before."""
    return debias or momentum is None or callable(momentum)


def momentum_at(momentum, debias, updates):
    """Weight of the old statistic in the update that follows `updates` earlier ones.

    With a constant m it is m. The cumulative average has t / (t + 1) after t updates. The debiased
    average, whose first batch replaces the initial value whatever that is, has
    1 - (1 - m) / (1 - m^(t + 1)): the values are those of Adam's bias correction (Kingma & Ba
    2015, section 3), but kept up to date in place, so that inference needs no division.

    Args:
        momentum: a number, None (cumulative) or a schedule `(updates) -> number`.
        debias: whether a constant momentum is debiased.
        updates: integer scalar tensor, or None where it does not matter.
    """
    if not counts_updates(momentum, debias):
        return momentum
    if callable(momentum):
        return momentum(updates)
    t = ops.cast(updates + 1, "float32")
    if momentum is None:
        return 1 - 1 / t
    if momentum == 1:
        return 1 - 1 / t  # the limit of the debiased average
    # 1 - m^t without cancellation for m close to 1.
    return 1 - (1 - momentum) / -ops.expm1(t * math.log(max(momentum, 1e-30)))


def batch_normalizers(model):
    """The layers of a model, nested ones and itself too, that keep population statistics."""
    return [layer for layer in model._flatten_layers() if is_batch_normalizer(layer)]


def is_batch_normalizer(layer):
    """Whether a layer keeps population statistics, whoever wrote it."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")


def skipped_batches(model):
    """How many training batches the BatchNorm layers of a model left out, added up (an int)."""
    return sum(getattr(layer, "skipped_batches", 0) for layer in batch_normalizers(model))


def reset_skipped_batches(model):
    """Lets every BatchNorm layer of a model count the batches it leaves out from 0."""
    for layer in batch_normalizers(model):
        if hasattr(layer, "skipped_batches"):
            layer.skipped_batches = 0


def snapshot(model):
    """Copies the population statistics of a model or layer.

    Returns:
        dict of weight path to array, such as `bn/moving_mean`; `restore` and `difference` take it.
    """
    return {
        weight.path: weight.numpy().copy()
        for layer in batch_normalizers(model) for weight in layer.non_trainable_variables
    }


def restore(model, statistics):
    """Puts a snapshot's statistics back.

    Raises:
        KeyError: the snapshot is of another model.
    """
    for layer in batch_normalizers(model):
        for weight in layer.non_trainable_variables:
            weight.assign(statistics[weight.path])


def difference(before, after):
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
        shift = np.abs(after[path].astype(np.float64) - old_mean) / np.sqrt(old)
        moved[layer] = float(shift.max()), float(np.exp(np.abs(np.log(new / old)).max()))
    return moved


def reset(model):
    """Gives all population statistics of a model or layer their initial values again.

    The counts of skipped batches start over, too.
    """
    for layer in batch_normalizers(model):
        fresh = type(layer).from_config(layer.get_config())
        shape = [1] * layer.input_spec.ndim
        for axis, size in layer.input_spec.axes.items():
            shape[axis] = size
        fresh.build(tuple(shape))
        for weight, initial in zip(
            layer.non_trainable_variables, fresh.non_trainable_variables, strict=True
        ):
            weight.assign(initial)
    reset_skipped_batches(model)
