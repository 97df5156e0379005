"""Batch normalization folded into the layers next to it, for a net that is to be run as it is.

In inference mode a batch normalization is scale * x + shift for each channel. A dense or
convolutional layer next to it can do that with its own kernel and bias: `fold(model)` gives the
smaller model and a `Certificate`.
"""

import collections
import warnings
from typing import Any, Callable, Optional, Union

import keras
import numpy as np
from keras.src.models.functional import Functional
from numpy.typing import NDArray

from bn_keras.batch_norm.layer import BatchNorm
from bn_keras.normalizers.frozen import FrozenBatchNorm
from bn_keras.normalizers.ghost import GhostBatchNorm
from bn_keras.normalizers.renorm import BatchRenorm
from bn_keras.surgery import copies
from bn_keras.surgery.adapted import Adapted
from bn_keras.surgery.certificate import (
    LEFT,
    Certificate,
    OutputsDiffer,
    Row,
    certificate_of,
    not_in_config,
    paths,
)
from bn_keras.surgery.convert import own_code
from bn_keras.surgery.exchange import called_from_code, policy_name
from bn_keras.surgery.feeds import Call, forward_pass
from bn_keras.surgery.linear import LINEAR, Linear, wide
from bn_keras.surgery.removal import remove_layers
from bn_keras.surgery.statistics import moves_statistics
from bn_keras.surgery.surgeon import (
    KERAS,
    Stays,
    Surgeon,
    is_batch_normalization,
    name_of,
    told,
)

FOLDED = "folded"
# Classes that in inference mode compute gamma * (x - mean) / sqrt(variance + epsilon) + beta.
PLAIN = (FrozenBatchNorm, GhostBatchNorm, BatchRenorm, BatchNorm, KERAS)
# By the least precise dtype that a layer computes in. Rounding grows with the depth of a net.
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}

Array = NDArray[np.float64]
# The layers that take a batch normalization in, or why there are none.
Verdict = Union[list[Linear], str]


def fold(
    model: keras.Model, *, inputs: Any = None, tolerance: Optional[float] = None
) -> tuple[keras.Model, Certificate]:
    """A copy of a model in which neighbours do the work of its batch normalizations.

    A batch normalization goes into the Dense, convolution, transposed, depthwise or separable
    convolution in front of it: with scale = gamma / sqrt(moving_variance + epsilon),

        kernel' = kernel * scale
        bias' = bias * scale + beta - moving_mean * scale

    or else into the one behind it, if that pads nothing: kernel' = kernel * scale by input channel,
    bias' = bias + sum(kernel * (beta - moving_mean * scale)). (Jacob et al. 2018,
    https://arxiv.org/abs/1712.05877, section 3.2.) A layer that had no bias gets one.

    Which layer feeds which is read from the graph of a forward pass, in models of every kind. A
    layer takes a batch normalization in only if all that it gives, or takes, goes through that.

    >>> model = keras.Sequential([
    ...     keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    >>> folded, certificate = fold(model)
    >>> [type(layer).__name__ for layer in folded.layers], certificate.count("folded")
    (['Dense'], 1)

    Args:
        model: a keras.Model, built. It stays as it is.
        inputs: what both models are called on for the certificate, beside random values; also the
            shapes for a model of one's own that does not know them.
        tolerance: the largest relative difference of the outputs that is allowed. None for 1e-10,
            1e-5, 1e-2 or 5e-2, if float64, float32, float16 or bfloat16 is the least precise dtype
            that a layer computes in.

    Returns:
        `(new model, certificate)`. The new model is not compiled and is for inference: what was
        folded normalizes no batch in training. Penalties and constraints of changed kernels are
        left out. In functional and Sequential models the normalizations are gone; where code of the
        model's own calls one, a layer that does nothing stands in its place. The certificate has a
        row for every normalization, "folded" or "left" with the reason.

    Raises:
        TypeError: not a keras.Model, or a part of it cannot be copied, which is named.
        ValueError: the model is not built or cannot be traced; or the outputs differ by more than
            `tolerance` (`OutputsDiffer`).

    Warns:
        UserWarning: nothing was folded, with the reasons; or a layer could not be looked into.
    """
    copies.check_model(model, "fold")
    folding = _Folding(model, inputs)
    folding.run()
    copy, rows = folding.copy()
    left = told(row for row in rows if row.fate == LEFT)
    if not folding.norms and not left:
        warnings.warn(
            f"fold: {model.name!r} has no batch normalization; this is an equal copy.", stacklevel=2
        )
    elif not folding.folded:
        warnings.warn(f"fold: nothing in {model.name!r} could be folded: {left}.", stacklevel=2)
    elif folding.unseen(rows):
        warnings.warn(f"fold: nobody looked into {told(folding.unseen(rows))}.", stacklevel=2)
    if tolerance is None:
        tolerance = max((
            TOLERANCES.get(layer.compute_dtype, 0.0) for layer in model._flatten_layers()
            if not isinstance(layer, (Functional, keras.Sequential, keras.layers.InputLayer))
        ), default=0.0)
    return copy, _certificate(model, copy, rows, inputs, tolerance)


def _certificate(
    model: keras.Model, copy: keras.Model, rows: list[Row], inputs: Any, tolerance: float
) -> Certificate:
    """The certificate over random and given inputs."""
    figures: dict[str, Any] = {
        "weights": f"{model.count_params()} before, {copy.count_params()} after"
    }
    if inputs is None:
        return certificate_of("fold", model, copy, rows, tolerance=tolerance, figures=figures)
    drawn = certificate_of("fold", model, copy, rows)
    if drawn.relative is not None and drawn.relative > tolerance:
        raise OutputsDiffer(
            f"fold: the outputs of the new model may differ by {tolerance:g} of the largest; "
            f"received:\n{drawn}"
        )
    figures["relative difference on random inputs"] = (
        f"not measured ({drawn.measured})" if drawn.relative is None else drawn.relative
    )
    return certificate_of(
        "fold", model, copy, rows, inputs=inputs, tolerance=tolerance, figures=figures
    )


class _Folding:
    """Decides what is folded into what, and makes the copy.

    Args:
        model: the given model, which stays as it is.
        inputs: as for `fold`.

    Attributes:
        norms: its batch normalizations.
        folded: id of each one that was folded → the layers that took it in.
    """

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        self._model, self._paths = model, paths(model)
        every = model._flatten_layers()
        self.norms = [layer for layer in every if is_batch_normalization(layer)]
        self.folded: dict[int, list[keras.Layer]] = {}
        self._linears = {id(layer): Linear(layer) for layer in every if isinstance(layer, LINEAR)}
        watched = [*self.norms, *(linear.layer for linear in self._linears.values())]
        self._calls: dict[int, list[Call]] = collections.defaultdict(list)
        self._tied: set[int] = set()
        if self.norms:
            calls, self._tied = forward_pass(model, watched, inputs, "fold")
            for call in calls:
                self._calls[id(call.layer)].append(call)
        self._unfit = {id(norm): self._reason(norm) for norm in self.norms}

    def run(self) -> None:
        """Folds until nothing more can be: each fold may bring new neighbours together.

        Into the layer in front where that is possible, since padding does not matter there.
        """
        while self._fold_one(self._in_front) or self._fold_one(self._behind):
            pass

    def copy(self) -> tuple[keras.Model, list[Row]]:
        """The new model, and a row for each normalization and each layer that hides what it has."""
        in_code = called_from_code(self._model)
        instead = {
            id(norm): _nothing(norm, id(norm) in in_code)
            for norm in self.norms if id(norm) in self.folded
        }
        surgeon = Surgeon(
            self._model, is_batch_normalization, lambda layer, _: Stays(LEFT, self._why_left(layer))
        )
        copy, parts = copies.copy_with_parts(
            self._model, lambda layer: instead.get(id(layer)) or surgeon(layer)
        )
        new = {id(old): new for old, new in parts}
        changed = {id(layer): layer for taken in self.folded.values() for layer in taken}
        dropped = {key: self._linears[key].write(new[key]) for key in changed}
        wrappers = [
            layer for layer in self._model._flatten_layers()
            if type(layer) is keras.layers.TimeDistributed and id(layer.layer) in instead
        ]
        gone = [key for key in [*instead, *map(id, wrappers)] if key not in in_code]
        remove_layers(copy, [new[key] for key in gone])
        stays = {id(layer) for layer in copy._flatten_layers()}
        unsaved = not_in_config(copy, {key: new[key] for key in changed})
        rows = surgeon.rows(copy)
        for norm in self.norms:
            if id(norm) not in self.folded:
                continue
            taken = self.folded[id(norm)]
            note = [f"into {', '.join(map(self._told, taken))}"]
            names = sorted({name for layer in taken for name in dropped[id(layer)]})
            note += [f"without the {', '.join(names)} of that"] if names else []
            remains = id(instead[id(norm)]) in stays
            if id(norm) in in_code or any(id(layer) in unsaved for layer in taken):
                note.append(
                    "not in the model's config: fold again after loading a file, or export it"
                )
            rows.append(Row(
                self._paths[id(norm)], name_of(type(norm)), "Identity" if remains else None,
                FOLDED, "; ".join(note),
            ))
        order = {path: number for number, path in enumerate(self._paths.values())}
        return copy, sorted(rows, key=lambda row: order.get(row.path, len(order)))

    def unseen(self, rows: list[Row]) -> list[Row]:
        """The rows of layers that may hold a normalization, and of those unknown to Keras."""
        known = {self._paths[id(norm)] for norm in self.norms}
        return [row for row in rows if row.path not in known]

    def _fold_one(self, way: Callable[[keras.Layer], Verdict]) -> bool:
        """Folds the first normalization that can be folded that way; whether there is one."""
        for norm in self.norms:
            if id(norm) in self.folded or self._unfit[id(norm)]:
                continue
            verdict = way(norm)
            if not isinstance(verdict, str):
                self._linears.update({id(linear.layer): linear for linear in verdict})
                self.folded[id(norm)] = [linear.layer for linear in verdict]
                self._skip(norm)
                return True
        return False

    def _in_front(self, norm: keras.Layer) -> Verdict:
        """Folding into the layers whose outputs it takes."""
        linears = {}
        for call in self._calls[id(norm)]:
            source = call.source
            if source is None:
                return f"{call.before} stands in front of it"
            linear = self._linears.get(id(source.layer))
            if linear is None:
                return f"{self._told(source.layer)} stands in front of it"
            problem = self._problem(linear)
            if problem is not None:
                return problem
            name = self._told(linear.layer)
            if linear.is_activated:
                return f"{name} in front of it has an activation"
            if _from_end(norm.axis, call) != _from_end(linear.axis, source):
                return f"its axis {norm.axis} is not the channel axis of {name} in front of it"
            linears[id(linear.layer)] = linear
        for key, linear in linears.items():
            for source in self._calls[key]:
                others = [self._told(use.layer) for use in source.uses if use.layer is not norm]
                if source.others or others:
                    return (
                        f"{self._told(linear.layer)} in front of it also feeds "
                        f"{(others + source.others)[0]}"
                    )
        scale, shift = _affine(norm)
        return _all([linear.scaled_outputs(scale, shift) for linear in linears.values()])

    def _behind(self, norm: keras.Layer) -> Verdict:
        """Folding into the layers that take its outputs."""
        linears = {}
        scale, shift = _affine(norm)
        for call in self._calls[id(norm)]:
            if call.others:
                return f"{call.others[0]} takes its output"
            for use in call.uses:
                linear = self._linears.get(id(use.layer))
                name = self._told(use.layer)
                if linear is None:
                    return f"{name} takes its output"
                problem = self._problem(linear)
                if problem is not None:
                    return problem
                if _from_end(norm.axis, call) != _from_end(linear.axis, use):
                    return f"its axis {norm.axis} is not the channel axis of {name} behind it"
                if linear.pads and np.any(shift):
                    return (
                        f"{name} behind it pads with zeros, which it does not give: at the borders "
                        "another bias would be needed"
                    )
                linears[id(linear.layer)] = linear
        for key, linear in linears.items():
            if any(use.source is None or use.source.layer is not norm for use in self._calls[key]):
                return f"{self._told(linear.layer)} behind it takes something else, too"
        return _all([linear.scaled_inputs(scale, shift) for linear in linears.values()])

    def _problem(self, linear: Linear) -> Optional[str]:
        """Why the weights of a layer cannot be changed; None if they can."""
        problem = linear.problem
        if problem is None and id(linear.layer) in self._tied:
            problem = "has weights that are also used outside of it"
        return None if problem is None else f"{self._told(linear.layer)} {problem}"

    def _skip(self, norm: keras.Layer) -> None:
        """Connects what stands in front of a normalization to what stands behind it."""
        for call in self._calls.pop(id(norm)):
            for use in call.uses:
                use.source, use.before = call.source, call.before
            if call.source is not None:
                call.source.uses.remove(call)
                call.source.uses += call.uses
                call.source.others += call.others

    def _reason(self, norm: keras.Layer) -> Optional[str]:
        """Why a normalization can be folded nowhere; None if it is a plain one."""
        own = own_code(norm, PLAIN)
        if own is not None:
            return f"computes something else in inference mode, as far as anyone knows: {own}"
        calls = self._calls[id(norm)]
        if not norm.built or not calls:
            return "the model does not call it in inference mode"
        if any(call.training for call in calls) and moves_statistics(norm):
            return "is called with training=True, and normalizes with the batch in inference mode"
        given = {call.dtype for call in calls} - {norm.compute_dtype}
        if given:
            return f"takes {', '.join(sorted(given))} and gives {norm.compute_dtype}"
        if not all(np.isfinite(values).all() for values in _affine(norm)):
            return "its statistics, gamma or beta are not finite, or its variance is negative"
        return None

    def _why_left(self, norm: keras.Layer) -> str:
        if id(norm) not in self._unfit:
            return "nobody looked at what feeds it"
        reason = self._unfit[id(norm)]
        if reason is None:
            reason = "; ".join(map(str, (self._in_front(norm), self._behind(norm))))
        return reason

    def _told(self, layer: keras.Layer) -> str:
        return f"{self._paths[id(layer)]} ({name_of(type(layer))})"


def _affine(norm: keras.Layer) -> tuple[Array, Array]:
    """What a normalization does in inference mode: scale and shift, (channels,) each."""
    with np.errstate(all="ignore"):  # a variance of training gone wrong
        scale = 1 / np.sqrt(wide(norm.moving_variance) + norm.epsilon)
        if norm.scale:
            scale = scale * wide(norm.gamma)
        shift = -wide(norm.moving_mean) * scale
    return scale, shift + wide(norm.beta) if norm.center else shift


def _from_end(axis: int, call: Call) -> Optional[int]:
    """An axis of a call's inputs as a number below 0; None if it is not known which one it is."""
    if axis < 0:
        return axis
    return None if call.rank is None else axis - call.rank


def _all(linears: list[Union[Linear, str]]) -> Verdict:
    """All of them, or the first reason why there is none."""
    reasons = [reason for reason in linears if isinstance(reason, str)]
    return reasons[0] if reasons else [linear for linear in linears if isinstance(linear, Linear)]


def _nothing(norm: keras.Layer, is_called_from_code: bool) -> keras.Layer:
    """A layer that gives what it takes, for the place of a normalization."""
    layer = keras.layers.Identity(name=norm.name, dtype=policy_name(norm))
    if is_called_from_code:  # which may say training= or mask=
        layer = Adapted(layer)
        layer.built = True
    layer._path, layer._parent_path = norm._path, norm._parent_path
    return layer
