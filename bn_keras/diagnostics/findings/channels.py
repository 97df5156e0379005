"""Findings on single channels: those that are stuck behind their activation, or scaled to 0."""

from typing import Any, Iterator, Union

import numpy as np

from bn_keras.diagnostics.examination import Examination, Normalizer
from bn_keras.diagnostics.finding import RISK, WRONG_RESULTS, Finding, NotLooked, named
from bn_keras.diagnostics.findings.front import unseen
from bn_keras.diagnostics.findings.statistics import layers_in
from bn_keras.diagnostics.findings.training import optimizer_of
from bn_keras.registry import FINDINGS

STUCK = 0.99  # share of positions at an end of the activation from which on a channel is dead
FEWEST_VALUES = 50  # that say so: half of all values are below 0 by right
SHARE = 0.1  # of a layer's channels: single ones are lost in many a good net
SMALL = 1e-3  # a gamma below it scales a channel to a thousandth of its normalized values


@FINDINGS.register(
    "dead_channels", title="channels are dead behind their activation", severity="risk",
    needs=("data",),
)
def dead_channels(examined: Examination) -> Iterator[Union[Finding, NotLooked]]:
    """A tenth of a layer's channels or more never leave an end of the activation behind it.

    With exact statistics, gamma and beta alone decide that: an offset far below 0 in front of a
    relu, or a factor so large that tanh is at -1 or 1 for all examples. No gradient comes back
    through such a channel, so that it stays as it is.
    """
    yield from unseen(examined)
    batches = examined.batches
    with examined.passes.having(examined.evaluations.exact_of_data):
        stuck = examined.surroundings.stuck([batch.x for batch in batches.batches])
    found = {}
    for one, shares in zip(examined.normalizers, stuck, strict=True):
        seen = examined.observed[one.index]
        if shares is None or seen is None:
            continue
        if seen.outputs.values.min() < FEWEST_VALUES:
            yield NotLooked(
                "", f"fewer than {FEWEST_VALUES} values per channel: give more examples", one.path
            )
        elif np.mean(shares >= STUCK) >= SHARE:
            found[one.path] = one, int(np.sum(shares >= STUCK))
    if not found:
        return
    paths = sorted(found, key=lambda path: -found[path][1] / len(found[path][0].mean))
    worst, count = found[paths[0]]
    kinds = {path: sorted(set(examined.surroundings.activations[found[path][0].index]))
             for path in paths}
    saturated = any(kind in ("Tanh", "Sigmoid") for kind in kinds[paths[0]])
    again = "one.gamma.assign(one.gamma * 0 + 1)" if saturated else "one.beta.assign(one.beta * 0)"
    every = count == len(worst.mean)
    where = {"Relu": "at 0", "Relu6": "at 0 or 6"}.get(kinds[paths[0]][0], "at an end of its range")
    yield Finding(
        f"{count} of {len(worst.mean)} channels of {worst.path} are {where} behind "
        f"{kinds[paths[0]][0].lower()} in at least {STUCK:.0%} of all positions"
        f"{_others(paths, examined)}.",
        f"import bn_keras; [{again} {layers_in(examined, [found[path][0] for path in paths])}]"
        "  # and train on",
        tuple(paths),
        {"dead": {path: found[path][1] for path in paths},
         "channels": {path: len(found[path][0].mean) for path in paths}, "behind": kinds},
        cost_note="not measured: what these channels could learn takes training",
        severity=WRONG_RESULTS if every else RISK,
    )


@FINDINGS.register(
    "gamma_decayed", title="gamma is near 0, where a channel carries nothing", severity="risk",
    needs=(),
)
def gamma_decayed(examined: Examination) -> Iterator[Finding]:
    """A tenth of a layer's gammas or more are almost 0, but not all exactly: those start there."""
    found: dict[str, tuple[Normalizer, int]] = {}
    for one in examined.normalizers:
        if one.gamma is not None and one.gamma.any():
            count = int(np.sum(np.abs(one.gamma) < SMALL))
            if count / len(one.gamma) >= SHARE:
                found[one.path] = one, count
    if not found:
        return
    paths = sorted(found, key=lambda path: -found[path][1] / len(found[path][0].mean))
    worst, count = found[paths[0]]
    penalized = [path for path in paths if _regularizer(found[path][0]) is not None]
    decays = _decay(examined.model)
    causes, remedies = [], []
    if penalized:
        causes.append(f"{len(penalized)} of them have a penalty on gamma")
        layers = layers_in(examined, [found[path][0] for path in penalized])
        # The variable's is the one that counts, the layer's goes into its config.
        remedies.append(
            "import bn_keras; [setattr(part, name, None) "
            f"{layers} for part, name in ((one.gamma, 'regularizer'), (one, 'gamma_regularizer'))]"
        )
    if decays:
        causes.append(f"the optimizer's weight decay of {decays:g} takes gamma too")
        remedies.append(_without_decay(examined.model))
    cause = " and ".join(causes) or "nothing in the model says why"
    remedy = "; ".join(remedies) or (
        "# no penalty and no weight decay is left to take off: train on, and gamma may grow again"
    )
    yield Finding(
        f"{count} of {len(worst.mean)} gammas of {worst.path} are below {SMALL:g}, so that these "
        f"channels give beta whatever comes in{_others(paths, examined)}; {cause}.",
        remedy, tuple(paths),
        {
            "near 0": {path: found[path][1] for path in paths},
            "channels": {path: len(found[path][0].mean) for path in paths},
            "median of abs(gamma)": {
                path: float(np.median(np.abs(one.gamma)))
                for path, (one, _) in found.items() if one.gamma is not None
            },
            "penalized": penalized, "weight decay": decays,
        },
        cost_note="not measured: what these channels could learn takes training",
    )


def _without_decay(model: Any) -> str:
    """Code that compiles a model as it is, with an optimizer that leaves gamma and beta alone."""
    inner = ".inner_optimizer" if optimizer_of(model) is not model.optimizer else ""
    return (
        "optimizer = type(model.optimizer).from_config(model.optimizer.get_config()); "
        f"optimizer{inner}.exclude_from_weight_decay(var_names=['gamma', 'beta']); "
        "model.compile_from_config(model.get_compile_config()); model.optimizer = optimizer"
    )


def _others(paths: list[str], examined: Examination) -> str:
    """The end of a sentence on the worst of several layers."""
    if len(paths) == 1:
        return ""
    return f"; in {named(paths, len(examined.normalizers))} it is at least {SHARE:.0%}"


def _regularizer(one: Normalizer) -> Any:
    return getattr(getattr(one.layer, "gamma", None), "regularizer", None)


def _decay(model: Any) -> float:
    """The optimizer's weight decay, where it takes gamma; 0 for none."""
    optimizer = optimizer_of(model)
    gammas = [one for one in model.trainable_variables if one.name == "gamma"]
    decay = getattr(optimizer, "weight_decay", None)
    if not decay or not gammas:
        return 0.0
    return float(decay) if any(optimizer._use_weight_decay(one) for one in gammas) else 0.0
