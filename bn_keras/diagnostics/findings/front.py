"""Findings on what stands in front of a normalizer: a bias, dropout, another channel axis."""

import contextlib
from typing import Any, Iterator, NamedTuple, Union

import keras
import numpy as np

from bn_keras.diagnostics import passes
from bn_keras.diagnostics.examination import BY_BATCH, LATE_FACTOR, Examination
from bn_keras.diagnostics.finding import COSTS_ACCURACY, RISK, Finding, NotLooked, named
from bn_keras.diagnostics.findings.statistics import cost_of_averages, exact_statistics
from bn_keras.diagnostics.passes import Array, Moments
from bn_keras.registry import FINDINGS
from bn_keras.surgery import calls


@FINDINGS.register(
    "redundant_bias", title="a bias in front of batch normalization", severity="note", needs=(),
)
def redundant_bias(examined: Examination) -> Iterator[Union[Finding, NotLooked]]:
    """A layer's bias goes straight into a normalizer, which takes the mean off again.

    Not so where the normalizer runs in inference mode in `fit`: there the bias shifts the outputs.
    """
    yield from unseen(examined)
    found = {}
    for one, fronts in zip(examined.normalizers, examined.surroundings.fronts, strict=True):
        for front in fronts:
            if front is None or getattr(front.layer, "bias", None) is None:
                continue
            if front.adds_constant and examined.mode(one.index) == BY_BATCH:
                found[front.path] = one.path, front.layer
    if not found:
        return
    first = next(iter(found))
    layer = found[first][1]
    count = sum(int(np.prod(layer.bias.shape)) for _, layer in found.values())
    yield Finding(
        f"{first}{f' and {len(found) - 1} more layers' if len(found) > 1 else ''} in front of BN "
        f"with a bias: {count} weights that change nothing in training, as the batch's mean is "
        "taken off; an optimizer such as Adam moves them by rounding errors.",
        _without_bias(examined.model, first, layer),
        tuple(path for path, _ in found.values()), {"biases": list(found), "weights": count},
        cost_note="none: outputs stay as they are",
    )


def _without_bias(model: keras.Model, path: str, layer: keras.Layer) -> str:
    """Code that makes a layer like the one at a path, but for its bias."""
    found, code = model, "model"
    try:
        for name in path.split("/"):
            found, code = found.get_layer(name), f"{code}.get_layer({name!r})"
        if "use_bias" in layer.get_config():
            return (
                f"layer = {code}; type(layer).from_config("
                f"{{**layer.get_config(), 'use_bias': False}})  # in place of {path}"
            )
    except (AttributeError, ValueError, NotImplementedError):  # inside of a layer that is no model
        pass
    return f"# the same layer without a bias, in place of {path}"


@FINDINGS.register(
    "channel_axis", title="the normalizer's axis is not the channel axis", severity="risk",
    needs=(),
)
def channel_axis(examined: Examination) -> Iterator[Union[Finding, NotLooked]]:
    """A convolution has its channels on another axis than the normalizer behind it."""
    yield from unseen(examined)
    found = {}
    for one, fronts in zip(examined.normalizers, examined.surroundings.fronts, strict=True):
        for front, call in zip(fronts, examined.in_inference[one.index]):
            form = getattr(front.layer, "data_format", None) if front is not None else None
            if front is not None and form is not None and isinstance(one.axis, int):
                rank = len(call.shape)
                channels = 1 if form == "channels_first" else rank - 1
                if one.axis % rank != channels:
                    found[one.path] = front, one.axis % rank, channels, call.shape
    if not found:
        return
    path = next(iter(found))
    front, axis, channels, shape = found[path]
    yield Finding(
        f"{named(list(found), len(examined.normalizers))} normalize over another axis than the "
        f"channels': {path} over axis {axis} of inputs of shape {shape}, while {front.path} has "
        f"data_format={front.layer.data_format!r}, with its channels on axis {channels}.",
        f"keras.layers.BatchNormalization(axis={channels})  # in place of {path}",
        tuple(found), {"axis": {path: one[1] for path, one in found.items()},
                       "channels": {path: one[2] for path, one in found.items()}},
        cost_note="not measured: the model has to be trained again",
    )


def unseen(examined: Examination) -> Iterator[NotLooked]:
    """The normalizers whose neighbours are not in the graph."""
    for index in sorted(examined.surroundings.unseen):
        yield NotLooked(
            "", "its neighbours are not seen: it is not called, or in a loop or a tf.function",
            examined.normalizers[index].path,
        )


class _Shift(NamedTuple):
    """By how much dropout changes the variance of what goes into a normalizer."""

    path: str
    ratio: float  # of the root mean square kind, over channels
    with_dropout: float
    without: float


@FINDINGS.register(
    "dropout_in_front", title="dropout in front shifts the variance", severity="risk",
    needs=("data",),
)
def dropout_in_front(examined: Examination) -> Iterator[Finding]:
    """Dropout raises the variance in training only, and the moving variance learns that one.

    Li, Chen, Hu & Yang (2019), https://arxiv.org/abs/1801.05134. Measured: the variance of what
    goes into each normalizer with dropout and without, each batch normalized by itself as in
    training, so that a shift is not handed on to the next normalizer.
    """
    layers = [
        layer for layer in examined.passes.model._flatten_layers() if _drops(layer)
    ]
    if not layers:
        return
    without, dropped = _inputs(examined, []), _inputs(examined, layers)
    shifts = []
    for one in examined.normalizers:
        if not one.moves or one.index not in without:
            continue
        before, after = (found[one.index].variance for found in (without, dropped))
        ratio = _mean_factor(after + one.epsilon, before + one.epsilon)
        if ratio > LATE_FACTOR:
            shifts.append(_Shift(one.path, ratio, float(after.mean()), float(before.mean())))
    if not shifts:
        return
    shifts.sort(key=lambda shift: -shift.ratio)
    worst, paths = shifts[0], {shift.path for shift in shifts}
    cost, note, _ = cost_of_averages(
        examined, [one for one in examined.normalizers if one.path in paths]
    )
    yield Finding(
        f"Dropout in front of {named([one.path for one in shifts], len(examined.normalizers))} "
        f"makes the variance {worst.ratio:.2f} times as large in training as in inference "
        f"({worst.path}), and the moving variance learns the larger one.",
        exact_statistics(examined), tuple(one.path for one in shifts),
        {"ratio": {one.path: one.ratio for one in shifts},
         "variance with dropout": {one.path: one.with_dropout for one in shifts},
         "variance without": {one.path: one.without for one in shifts},
         "dropout": [layer.name for layer in layers]},
        cost, note, COSTS_ACCURACY if cost else RISK,
    )


def _drops(layer: keras.Layer) -> bool:
    """Whether a layer drops values at random in training, whoever wrote it."""
    return "drop" in type(layer).__name__.lower() and bool(getattr(layer, "rate", None))


def _inputs(examined: Examination, dropping: list[keras.Layer]) -> dict[int, Moments]:
    """The moments of what goes into each normalizer, with batch statistics and some dropout."""
    found: dict[int, list[Moments]] = {}
    moving = [one.index for one in examined.normalizers if one.moves]

    def drop(layer: keras.Layer, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        return calls.in_mode(True, layer, call, *args, **kwargs)

    def see(seen: passes.Seen) -> None:
        layer = examined.passes.layers[seen.layer]
        found.setdefault(seen.layer, []).append(passes.moments(layer, seen.inputs, seen.mask))

    with contextlib.ExitStack() as stack:
        for layer in dropping:
            stack.enter_context(calls.redirected(layer, drop))
        for batch in examined.batches.batches:
            examined.passes.outputs(batch.x, moving, see, everywhere=True)
    return {index: passes.pooled(parts) for index, parts in found.items()}


def _mean_factor(values: Array, others: Array) -> float:
    """The geometric mean over channels of a ratio."""
    return float(np.exp(np.mean(np.log(values) - np.log(others))))
