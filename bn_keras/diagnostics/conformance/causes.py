"""Causes: what a wrong layer does in place of batch normalization, told by formulas that fit.

A layer is watched in two training steps and one inference call. Where the right formula does not
fit what came out, others are tried: each is the right one with one thing, or two, done as people do
it wrong. The one that fits with the fewest mistakes is the cause; where none fits, nothing is told.
"""

import dataclasses
import functools
import itertools
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from bn_keras.diagnostics.conformance.foreign import Foreign
from bn_keras.diagnostics.conformance.suite import Maker, array, gradients, set_weights

FITS = 2e-5  # largest error of a formula that fits, relative to the largest output
MOMENTUM = 0.8  # far from 1 - momentum
EPSILON = 0.3  # so large that its place shows
EPSILONS = (1e-3, 1e-5, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 0.0, 1e-12, 0.1)
RIGHT = "right"

# Cause: (what is wrong, what to write). The order is that in which a learner wants to hear them.
TEXTS: Dict[str, Tuple[str, str]] = {
    "nothing is normalized": (
        "The inputs come out without having been normalized",
        "return the normalized values, not the inputs"),
    "training is ignored, always inference": (
        "The flag `training` changes nothing, and training normalizes with moving statistics",
        "if training: use the mean and variance of this batch"),
    "training is ignored, always training": (
        "The flag `training` changes nothing, and inference normalizes with the batch and moves "
        "the averages",
        "if not training: use moving_mean and moving_variance, and leave them as they are"),
    "moving statistics in training": (
        "In training, the moving statistics normalize and not those of the batch",
        "in training, normalize with x.mean and x.var of this batch"),
    "batch statistics at test time": (
        "At test time the batch normalizes itself, so that predictions depend on their neighbours",
        "in inference, normalize with moving_mean and moving_variance"),
    "averages move at test time": (
        "The averages move at test time, so that each evaluation changes the model",
        "update moving_mean and moving_variance only if training"),
    "statistics of each example": (
        "Mean and variance are over the wrong axis, the features of each example and not the batch "
        "(which is layer normalization)",
        "x.mean(axis=0), x.var(axis=0) for rows"),
    "one statistic for all channels": (
        "Mean and variance are over all axes, one number for all channels",
        "x.mean(axis=0), x.var(axis=0): one number for each channel"),
    "wrong axes of images": (
        "For images, mean and variance are over the wrong axes",
        "average over batch, height and width: one mean and one variance for each channel"),
    "images reshaped without moving the channels": (
        "For images, a reshape mixes the channels, since the channel axis is not the last one when "
        "the array is made into rows",
        "move the channel axis to the end (transpose) before reshape(-1, channels), and back"),
    "averages never move": (
        "The moving statistics are never updated",
        "moving = momentum * moving + (1 - momentum) * batch, stored where the layer keeps it"),
    "momentum the other way round": (
        "Your momentum is the other way round",
        "moving = momentum * moving + (1 - momentum) * batch"),
    "only the last batch": (
        "The averages are those of the last batch alone, momentum is not used",
        "moving = momentum * moving + (1 - momentum) * batch"),
    "weights do not sum to one": (
        "The average's two weights do not sum to 1",
        "moving = momentum * moving + (1 - momentum) * batch"),
    "deviation averaged": (
        "The moving variance averages the standard deviation, not the variance",
        "average x.var(axis=0); take the root when you normalize"),
    "second moment averaged": (
        "The moving variance averages the mean of x², without the square of the mean taken off",
        "average x.var(axis=0), which is mean((x - mean)**2)"),
    "variance starts at 0": (
        "The moving variance starts at 0, and inference divides by almost nothing at first",
        "start moving_variance with ones, moving_mean with zeros"),
    "n - 1 in normalizing": (
        "The batch is normalized with the variance of n − 1; batch normalization takes that of n",
        "x.var(axis=0), in NumPy ddof=0, in PyTorch unbiased=False"),
    "epsilon outside the root": (
        "Epsilon is outside the root",
        "(x - mean) / sqrt(variance + epsilon)"),
    "epsilon left out": (
        "Epsilon is left out, so that a constant channel divides by 0",
        "(x - mean) / sqrt(variance + epsilon)"),
    "another epsilon": (
        "Epsilon is not the one that was asked for, but a number of its own",
        "use the argument epsilon in the formula"),
    "no root": (
        "The division is by the variance, not by its root",
        "(x - mean) / sqrt(variance + epsilon)"),
    "variance taken for a deviation": (
        "At test time the root is missing, or the variance is squared",
        "(x - moving_mean) / sqrt(moving_variance + epsilon)"),
    "mean not taken off": (
        "The mean is not taken off",
        "(x - mean) / sqrt(variance + epsilon)"),
    "gamma and beta not applied": (
        "Gamma and beta are never applied, so that they can learn nothing",
        "y = gamma * x_hat + beta"),
    "gamma not applied": ("Gamma is never applied", "y = gamma * x_hat + beta"),
    "beta not applied": ("Beta is never applied", "y = gamma * x_hat + beta"),
    "gamma and beta swapped": ("Gamma and beta are swapped", "y = gamma * x_hat + beta"),
    "beta inside": ("Beta is scaled by gamma, too", "y = gamma * x_hat + beta"),
    "statistics are constants in the gradient": (
        "The gradient takes mean and variance as constants, though both depend on x",
        "let the gradient flow through mean and variance (no detach, no stop_gradient), or add "
        "their two terms in backward"),
    "variance is a constant in the gradient": (
        "The gradient takes the variance as a constant, though it depends on x",
        "let the gradient flow through the variance, or add its term in backward"),
    "mean is a constant in the gradient": (
        "The gradient takes the mean as a constant, though it depends on x",
        "let the gradient flow through the mean, or add its term in backward"),
    "statistics hang on the graph": (
        "The moving statistics have a gradient, so that they keep the graph of every old batch, or "
        "an optimizer moves them",
        "update them without gradients (torch.no_grad(), detach, trainable=False)"),
}
ORDER = list(TEXTS)


@dataclasses.dataclass(frozen=True)
class Hint:
    """One cause of wrong numbers, proved by a fit.

    Attributes:
        cause: its name, a key of TEXTS.
        text: what is wrong, in a sentence, with the error of the formula that fits.
        remedy: what to write.
    """

    cause: str
    text: str
    remedy: str


def find(make: Maker) -> List[Hint]:
    """The causes of wrong numbers, the most important first; none for a right layer.

    Args:
        make: the thing that failed, or did not.
    """
    found: Dict[str, str] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for study in (_outputs_and_averages, _images, _gradients):
            try:
                for cause, proof in study(make):
                    found.setdefault(cause, proof)
            except Exception:  # what cannot be watched cannot be explained; its probe has failed
                continue
    always = {"batch statistics at test time", "averages move at test time"}
    if always <= {*found}:
        found["training is ignored, always training"] = found["batch statistics at test time"]
        for cause in always:
            del found[cause]
    if {"moving statistics in training", "averages never move"} <= {*found}:
        found["training is ignored, always inference"] = found["moving statistics in training"]
        for cause in ("moving statistics in training", "averages never move"):
            del found[cause]
    if "nothing is normalized" in found:  # the rest follows from it
        for cause in ("gamma and beta not applied", "gamma not applied", "beta not applied"):
            found.pop(cause, None)
    return [
        Hint(cause, f"{TEXTS[cause][0]}: {found[cause]}.", TEXTS[cause][1])
        for cause in ORDER if cause in found
    ]


Cause = Tuple[str, str]  # with its proof


# ---------------------------------------------------------------- outputs


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What a layer held before a call, and what the call was given."""

    x: np.ndarray
    gamma: Optional[np.ndarray]
    beta: Optional[np.ndarray]
    mean: Optional[np.ndarray]
    variance: Optional[np.ndarray]
    mean_after: Optional[np.ndarray]
    variance_after: Optional[np.ndarray]


def _outputs_and_averages(make: Maker) -> Iterator[Cause]:
    """Causes that show in two training steps and one call of inference."""
    settings = {"momentum": MOMENTUM, "epsilon": EPSILON}
    start = make.where(**settings)
    start.build((None, 3))
    first = _value(start, "moving_variance")
    layer = set_weights(make.where(**settings), (None, 3))
    epsilons = (EPSILON,) if make.takes("epsilon") else EPSILONS
    calls = []
    for seed, training in ((1, True), (2, True), (3, False)):
        rng = np.random.default_rng(seed)
        x = rng.normal([1.0, -2.0, 3.0], [0.5, 1.0, 2.0], (6, 3)).astype("float32")
        before = [_value(layer, name) for name in ("moving_mean", "moving_variance")]
        y = array(layer(x, training=training))
        after = [_value(layer, name) for name in ("moving_mean", "moving_variance")]
        calls.append((y, _Weights(
            x.astype(float), _value(layer, "gamma"), _value(layer, "beta"), *before, *after
        )))
    for number, training in ((1, True), (2, False)):
        yield from _explain(*calls[number], training, epsilons)
    if make.foreign is None or make.foreign.updates:
        for cause, proof in _averages([one for _, one in calls], make.takes("momentum")):
            if cause == "momentum the other way round" and make.has_no_default("momentum"):
                proof += " (if PyTorch's momentum is meant, give it a default such as 0.1)"
            yield cause, proof
    if first is not None and not first.any():
        yield "variance starts at 0", f"its first values are {first}"


def _value(layer: Any, name: str) -> Optional[np.ndarray]:
    found = getattr(layer, name, None)
    return None if found is None else array(found)


def _statistics(of: _Weights, training: bool) -> List[Tuple[str, Any, Any]]:
    """Cause, mean and variance that a layer may normalize with; the right ones first."""
    x = of.x
    batch = x.mean(0), x.var(0)
    moving = of.mean, of.variance
    found: List[Tuple[str, Any, Any]] = []
    if training:
        found.append((RIGHT, *batch))
        found.append(("moving statistics in training", *moving))
        found.append(("moving statistics in training", of.mean_after, of.variance_after))
    else:
        found.append((RIGHT, *moving))
        found.append(("batch statistics at test time", *batch))
        found.append(("averages move at test time", of.mean_after, of.variance_after))
        found.append(("variance taken for a deviation", of.mean, _squared(of.variance)))
    found.append(("n - 1 in normalizing", x.mean(0), x.var(0, ddof=1)))
    found.append(("statistics of each example", x.mean(1)[:, None], x.var(1)[:, None]))
    found.append(("one statistic for all channels", x.mean(), x.var()))
    found.append(("nothing is normalized", 0.0, None))
    return [one for one in found if np.size(one[1]) in (1, 3, len(x)) and one[1] is not None]


def _squared(values: Optional[np.ndarray]) -> Optional[np.ndarray]:
    return None if values is None else values ** 2


def _denominators(epsilons: Sequence[float]) -> List[Tuple[str, Callable[[Any], Any]]]:
    """Cause and what a layer may divide by, as a function of the variance; the right one first."""
    found: List[Tuple[str, Callable[[Any], Any]]] = []
    for e in epsilons:
        found.append((RIGHT, functools.partial(_root, e)))
    for e in epsilons:
        found.append(("epsilon outside the root", functools.partial(_root_and, e)))
        found.append(("no root", functools.partial(np.add, e)))
    found.append(("epsilon left out", np.sqrt))
    if len(epsilons) == 1:
        found += [("another epsilon", functools.partial(_root, e)) for e in EPSILONS]
    return found


def _root(epsilon: float, variance: Any) -> Any:
    return np.sqrt(variance + epsilon)


def _root_and(epsilon: float, variance: Any) -> Any:
    return np.sqrt(variance) + epsilon


def _affines(of: _Weights) -> List[Tuple[str, Callable[[Any], Any]]]:
    """Cause and what a layer may do with gamma and beta; the right thing first."""
    gamma = 1.0 if of.gamma is None else of.gamma
    beta = 0.0 if of.beta is None else of.beta
    found: List[Tuple[str, Callable[[Any], Any]]] = [(RIGHT, lambda x: gamma * x + beta)]
    both = of.gamma is not None and of.beta is not None
    if of.gamma is not None:
        found.append(("gamma not applied", lambda x: x + beta))
    if of.beta is not None:
        found.append(("beta not applied", lambda x: gamma * x))
    if both:
        found.append(("gamma and beta not applied", lambda x: x))
        found.append(("gamma and beta swapped", lambda x: beta * x + gamma))
        found.append(("beta inside", lambda x: gamma * (x + beta)))
    return found


def _explain(
    y: np.ndarray, of: _Weights, training: bool, epsilons: Sequence[float]
) -> Iterator[Cause]:
    """The fewest mistakes that explain an output; none if it is right, or nothing fits."""
    if y.shape != of.x.shape:
        return
    best: Optional[Tuple[int, List[str], float]] = None
    for (one, mean, variance), (two, center), (three, root), (four, affine) in itertools.product(
        _statistics(of, training), ((RIGHT, True), ("mean not taken off", False)),
        _denominators(epsilons), _affines(of),
    ):
        nothing = one == "nothing is normalized"
        mistakes = [cause for cause in (one, two, three, four) if cause != RIGHT]
        if len(mistakes) > 3 or (best is not None and len(mistakes) >= best[0]):
            continue
        x_hat = of.x if nothing else (of.x - mean * center) / root(variance)
        error = _error(y, affine(x_hat))
        if error <= FITS:
            best = len(mistakes), mistakes, error
            if not mistakes:
                return
    mode = "in training" if training else "at test time"
    if best is not None:
        for cause in best[1]:
            yield cause, f"with that formula your outputs {mode} fit within {best[2]:.0e}"


def _error(found: Any, expected: Any) -> float:
    """The largest error relative to the largest expected value; infinite for NaN."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    if found.shape != np.broadcast_shapes(found.shape, expected.shape):
        return float("inf")
    error = np.abs(found - expected).max() / max(1e-30, np.abs(expected).max())
    return float(error) if np.isfinite(error) else float("inf")


# ---------------------------------------------------------------- averages


def _averages(calls: Sequence[_Weights], known: bool) -> Iterator[Cause]:
    """Causes in how the moving statistics moved, in training and in inference."""
    step, test = calls[1], calls[2]
    for mean in (True, False):
        old, new = (step.mean, step.mean_after) if mean else (step.variance, step.variance_after)
        if old is None or new is None or old.shape != new.shape or old.shape != (3,):
            continue
        yield from _explain_average(old, new, _quantities(step.x, mean), mean, known)
    moved = [
        before is not None and after is not None and _error(after, before) > 0
        for before, after in ((test.mean, test.mean_after), (test.variance, test.variance_after))
    ]
    if any(moved):
        what = " and ".join(name for name, one in zip(("mean", "variance"), moved) if one)
        yield "averages move at test time", f"one call with training=False moved the {what}"


def _quantities(x: np.ndarray, mean: bool) -> List[Tuple[str, np.ndarray]]:
    """Cause and what may be averaged, the right things first."""
    if mean:
        return [(RIGHT, x.mean(0)), ("one statistic for all channels", np.full(3, x.mean()))]
    return [
        (RIGHT, x.var(0)),
        (RIGHT, x.var(0, ddof=1)),  # the paper's and PyTorch's; for a Keras layer, a probe says so
        ("deviation averaged", x.std(0)),
        ("deviation averaged", x.std(0, ddof=1)),
        ("second moment averaged", (x ** 2).mean(0)),
        ("one statistic for all channels", np.full(3, x.var())),
    ]


def _explain_average(
    old: np.ndarray, new: np.ndarray, quantities: Sequence[Tuple[str, np.ndarray]], mean: bool,
    known: bool,
) -> Iterator[Cause]:
    """The rule of averaging that fits, with the fewest mistakes; nothing for the right one."""
    what = "mean" if mean else "variance"
    if _error(new, old) == 0:
        yield "averages never move", f"two training steps left the {what} as it was"
        return
    rules = [
        (RIGHT, MOMENTUM, 1 - MOMENTUM),
        ("momentum the other way round", 1 - MOMENTUM, MOMENTUM),
        ("only the last batch", 0.0, 1.0),
        ("weights do not sum to one", MOMENTUM, 1.0),
        ("weights do not sum to one", 1.0, 1 - MOMENTUM),
    ]
    best: Optional[Tuple[int, List[str], float]] = None
    for (one, quantity), (two, keep, add) in itertools.product(quantities, rules):
        if not known:
            if two == RIGHT:  # a momentum of its own, which the step tells
                keep = float(np.dot(new - quantity, old - quantity)
                             / np.dot(old - quantity, old - quantity))
                add, two = 1 - keep, RIGHT if 0.5 <= keep < 1 else "momentum the other way round"
            elif two != "only the last batch":
                continue
        mistakes = [cause for cause in (one, two) if cause != RIGHT]
        error = _error(new, keep * old + add * quantity)
        if error <= FITS and (best is None or len(mistakes) < best[0]):
            best = len(mistakes), mistakes, error
    if best is not None:
        for cause in best[1]:
            how = "with 1 − m" if cause == "momentum the other way round" else "with that formula"
            yield cause, f"{how} your averages fit within {best[2]:.0e}"


# ---------------------------------------------------------------- images


def _images(make: Maker) -> Iterator[Cause]:
    """Causes that show in images only."""
    layer = make.images()
    x = np.random.default_rng(4).normal(size=(2, 4, 5, 3)).astype("float32")
    x = x * (1 + np.arange(3)) + np.arange(5)[:, None] + 2 * np.arange(4)[:, None, None]
    y = array(layer(x.astype("float32"), training=True))
    if y.shape != x.shape:
        return
    first = isinstance(layer, Foreign) and layer.layout.channels_first
    if min(_error(y, _normalized(x, (0, 1, 2), e)) for e in EPSILONS) <= FITS:
        return
    names = ("batch", "height", "width", "channels")
    for axes in ((0,), (1, 2), (0, 1), (0, 2), (1, 2, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3), (3,)):
        error = min(_error(y, _normalized(x, axes, e)) for e in EPSILONS)
        if error <= FITS:
            yield "wrong axes of images", (
                f"averaged over {' and '.join(names[axis] for axis in axes)} your outputs fit "
                f"within {error:.0e}"
            )
            return
    for order in ((0, 3, 1, 2), (0, 1, 2, 3), (3, 0, 1, 2)):
        mixed = np.transpose(x, order)
        for rows in (mixed.reshape(-1, 3), mixed.reshape(3, -1).T):
            for e in EPSILONS:
                flat = _normalized(rows, (0,), e)
                back = flat if rows.base is None or rows.shape[1] == 3 else flat
                tried = back.reshape(mixed.shape) if rows.flags.c_contiguous else (
                    back.T.reshape(mixed.shape))
                error = _error(y, np.transpose(tried, np.argsort(order)))
                if error <= FITS:
                    yield "images reshaped without moving the channels", (
                        f"so reshaped, with channels {'first' if first else 'last'}, your outputs "
                        f"fit within {error:.0e}"
                    )
                    return


def _normalized(x: np.ndarray, axes: Tuple[int, ...], epsilon: float) -> np.ndarray:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


# ---------------------------------------------------------------- gradients


def _gradients(make: Maker) -> Iterator[Cause]:
    """Causes that show in the gradient by the inputs."""
    make.needs_gradients()
    layer = set_weights(make.where(epsilon=EPSILON), (None, 3))
    if make.foreign:
        torch = make.foreign.holds and make.foreign.kit.name == "PyTorch"
        kept = make().holds_gradients() if torch else ""
        if kept:
            yield "statistics hang on the graph", f"after one training step {kept} has one"
    elif any(one is getattr(layer, "moving_mean", None) for one in layer.trainable_variables):
        yield "statistics hang on the graph", "moving_mean is a trainable variable"
    rng = np.random.default_rng(5)
    x, dy = (rng.normal(size=(6, 3)).astype("float32") for _ in range(2))
    gamma = _value(layer, "gamma")
    scaled = dy.astype(float) * (1.0 if gamma is None else gamma)
    found = gradients(layer, x, dy, True)[0]
    best: Optional[Cause] = None
    for e in (EPSILON,) if make.takes("epsilon") else EPSILONS:
        root = np.sqrt(x.astype(float).var(0) + e)
        x_hat = (x - x.mean(0)) / root
        through_variance = x_hat * (scaled * x_hat).mean(0)
        for cause, expected in (
            (RIGHT, scaled - scaled.mean(0) - through_variance),
            ("statistics are constants in the gradient", scaled),
            ("variance is a constant in the gradient", scaled - scaled.mean(0)),
            ("mean is a constant in the gradient", scaled - through_variance),
        ):
            error = _error(found, expected / root)
            if error <= 5 * FITS and (best is None or cause == RIGHT):
                best = cause, f"with that formula your gradients fit within {error:.0e}"
    if best is not None and best[0] != RIGHT:
        yield best
