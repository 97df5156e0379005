"""Findings on what goes into batch normalization: too few values, far from zero, single steps."""

from typing import Any, Iterator

import keras
import numpy as np

from bn_keras.diagnostics import passes
from bn_keras.diagnostics.evaluations import Batches
from bn_keras.diagnostics.examination import Examination, Normalizer
from bn_keras.diagnostics.finding import RISK, WRONG_RESULTS, Finding, NotLooked, named
from bn_keras.diagnostics.findings.modes import FREEZE
from bn_keras.registry import FINDINGS
from bn_keras.surgery import calls
from bn_keras.surgery.examples import length

FEW = 8  # values of a channel: the variance's own relative deviation, sqrt(2 / (n - 1)), is .53
FAR = 30.0  # deviations from zero from which on rounding is measured
LOST = 0.01  # of a standard deviation, by rounding: less is far under the noise of a batch
HALF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative rounding error
MOST_LOST = 1000.0  # deviations: more than that are no matter of digits, and no figure to print
SMALLEST = 1e-3  # deviation that inputs are divided by: a pixel may be the same in all examples
CONVERT = "import bn_keras; model, _ = bn_keras.convert(model)"


@FINDINGS.register(
    "few_values", title="batches have too few values per channel", severity="costs accuracy",
    needs=("data",),
)
def few_values(examined: Examination) -> Iterator[Finding]:
    """Statistics of a batch that are taken over a handful of values, or over one.

    Of one value the output is beta, whatever the input, and Keras's moving variance moves towards
    0. Where the size of the data is known, its last batch is looked at as well.
    """
    train = examined.train or examined.batches
    size, examples = train.size, length(examined.batches.first.x)
    values = {  # in a full batch of training, of which there may be none in the data
        one.path: size * min(
            call.values for call in examined.in_fit[one.index] if call.batch_mode
        ) // examples
        for one in examined.normalizers
        if any(call.batch_mode for call in examined.in_fit[one.index])
    }
    few = sorted((path for path in values if values[path] < FEW), key=lambda path: values[path])
    if few:
        least = values[few[0]]
        told = "1 value" if least == 1 else f"{least} values"
        follows = "its output is beta, whatever the input" if least == 1 else (
            f"the variance of so few is off by {np.sqrt(2 / (least - 1)):.0%} from batch to batch"
        )
        yield Finding(
            f"A batch of {size} has fewer than {FEW} values per channel in "
            f"{named(few, len(examined.normalizers))}: {few[0]} has {told}, and {follows}.",
            FREEZE, tuple(few), {"values": {path: values[path] for path in few}}, None,
            "in training, and not in inference",
            WRONG_RESULTS if least == 1 else "",
        )
    last = (train.total or 0) % train.size
    alone = [
        path for path, count in values.items()
        if path not in few and last and count * last // size <= 1
    ]
    if alone:
        name = "train" if examined.has_train else "data"
        yield Finding(
            f"{train.total} examples in batches of {train.size} leave a last batch of {last}, in "
            f"which {named(alone, len(examined.normalizers))} have one value per channel: their "
            "output is beta there, and the moving variance moves towards 0 once an epoch.",
            _without_last(name, train),
            tuple(alone), {"last_batch": last, "examples": train.total, "batch_size": train.size},
            None, "a step in an epoch", RISK,
        )


@FINDINGS.register(
    "far_from_zero", title="inputs so far from zero that rounding shows", severity="wrong results",
    needs=("data",),
)
def far_from_zero(examined: Examination) -> Iterator[Finding | NotLooked]:
    """Channels whose mean is many deviations from 0, in a layer that loses their digits.

    The layer is run on its own inputs, in both modes, and compared with float64. Keras's layer
    loses most with `synchronized=True`, which takes E[x²] - E[x]² for the variance.
    """
    worst: dict[str, tuple[float, float, str]] = {}  # path → lost, distance, how
    for one, observed in zip(examined.normalizers, examined.observed, strict=True):
        if observed is None:
            continue
        deviation = np.sqrt(observed.inputs.variance + one.epsilon)
        with np.errstate(all="ignore"):
            distance = np.abs(observed.inputs.mean) / deviation
        if not np.isfinite(distance).all() or distance.max(initial=0) < FAR:
            continue
        try:
            lost, how = _lost(one, examined, float(distance.max()))
        except Exception as error:  # a layer that takes more than inputs, such as a conditional one
            yield NotLooked("", f"it cannot be run alone: {error}", one.path)
            continue
        if lost > LOST:
            worst[one.path] = lost, float(distance.max()), how
    if not worst:
        return
    order = sorted(worst, key=lambda path: -worst[path][0])
    lost, far, how = worst[order[0]]
    yield Finding(
        f"{named(order, len(examined.normalizers))} get inputs far from zero: in {order[0]} a "
        f"channel's mean is {far:.3g} standard deviations from 0, and {how} is off by "
        + (f"{lost:.2g}" if lost <= MOST_LOST else f"more than {MOST_LOST:g}")
        + " standard deviations.",
        _scaled(examined.batches) if "its input" in how else CONVERT, tuple(order),
        {"lost": {path: worst[path][0] for path in order},
         "distance": {path: worst[path][1] for path in order},
         "how": {path: worst[path][2] for path in order}},
        None, "rounding errors differ from batch to batch", "" if lost > 10 * LOST else RISK,
    )


@FINDINGS.register(
    "inside_wrapper", title="normalizes each time step by itself", severity="risk", needs=(),
)
def inside_wrapper(examined: Examination) -> Iterator[Finding]:
    """A batch normalization that `TimeDistributed` or an RNN cell gives one time step at a time."""
    for giver in ("a TimeDistributed wrapper", "an RNN cell"):
        found = [
            one for one in examined.normalizers
            if one.moves and any(call.giver == giver for call in examined.in_fit[one.index])
        ]
        if not found:
            continue
        cell = giver == "an RNN cell"
        steps = max(len(examined.in_fit[one.index]) for one in found)
        yield Finding(
            f"{named([one.path for one in found], len(examined.normalizers))} get one time step at "
            f"a time from {giver}: each of the {steps} calls is normalized by itself and moves the "
            "moving statistics by itself, while inference uses the same for all steps.",
            "from bn_keras.surgery.exchange import exchange, replacement; model, _ = exchange("
            "model, lambda layer: replacement(layer, 'layer'))" if cell else CONVERT,
            tuple(one.path for one in found), {"giver": giver, "calls": steps}, None,
            "not measured: the mended layer has to be trained" if cell
            else "not measured: statistics over all steps have to be trained or recalibrated",
        )


def _without_last(name: str, data: Batches) -> str:
    """The remedy for a last batch that is too small, for the form that the data have."""
    end = f"[:{(data.total or 0) // data.size * data.size}]"
    return {
        "array": f"{name} = {name}{end}",
        "tuple": f"{name} = tuple(part{end} for part in {name})",
        "dataset": f"{name} = {name}.unbatch().batch({data.size}, drop_remainder=True)",
    }.get(data.form, f"# where {name} is made: leave out the last batch")


def _scaled(data: Batches) -> str:
    """The remedy for inputs far from zero, for the form that the data have."""
    scale = f"({{0}} - {{0}}.mean(0)) / np.maximum({{0}}.std(0), {SMALLEST:g})"
    return {
        "array": f"import numpy as np; data = {scale.format('data')}",
        "tuple": f"import numpy as np; data = ({scale.format('data[0]')}, *data[1:])",
        "dataset": "norm = keras.layers.Normalization(); norm.adapt(data.map(lambda x, *_: x)); "
        "data = data.map(lambda x, *more: (norm(x), *more))",
    }.get(data.form, "# where data are made: subtract the mean, divide by the standard deviation")


def _lost(one: Normalizer, examined: Examination, distance: float) -> tuple[float, str]:
    """The largest error of a layer on its inputs, in standard deviations, and of what."""
    seen: list[passes.Seen] = []
    with examined.passes.having(examined.evaluations.exact_of_data):
        examined.passes.outputs(
            examined.batches.batches[0].x,
            see=lambda call: seen.append(call) if call.layer == one.index else None,
        )
        layer = examined.passes.layers[one.index]
        errors = [
            (_error(one, layer, inputs, training), f"its output in {mode} mode")
            for inputs in [call.inputs for call in seen]
            for training, mode in ((False, "inference"), (True, "training"))
        ]
    dtype = keras.backend.standardize_dtype(seen[0].inputs.dtype)
    if dtype in HALF:
        errors.append((HALF[dtype] * distance, f"its input, in {dtype},"))
    return max(errors)


def _error(one: Normalizer, layer: keras.Layer, inputs: Any, training: bool) -> float:
    """The largest error of normalized values, in a mode, against float64."""
    outputs = passes.as_array(calls.in_mode(training, layer, layer.call, inputs))
    x = passes.as_array(inputs)
    shape = [1] * x.ndim
    shape[one.axis] = -1
    if training and one.moves:
        axes = tuple(np.delete(np.arange(x.ndim), one.axis))
        mean, variance = x.mean(axes), x.var(axes)
    else:
        mean, variance = (
            passes.as_array(getattr(layer, name)) for name in ("moving_mean", "moving_variance")
        )
    gamma = np.ones_like(mean) if one.gamma is None else one.gamma
    beta = np.zeros_like(mean) if one.beta is None else one.beta
    right = (x - mean.reshape(shape)) * (gamma / np.sqrt(variance + one.epsilon)).reshape(shape)
    right += beta.reshape(shape)
    scale = np.maximum(np.abs(gamma), 1e-6).reshape(shape)
    # Outputs in half precision are rounded, which is no fault of the layer.
    rounding = HALF.get(layer.compute_dtype, 0.0) * np.abs(right)
    return float((np.maximum(np.abs(outputs - right) - rounding, 0) / scale).max(initial=0))
