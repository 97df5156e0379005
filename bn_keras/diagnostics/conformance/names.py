"""Names: what people call the parts of a batch normalization, and which of them are conventions."""

import inspect
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

NAMES: Dict[str, Tuple[str, ...]] = {  # Keras's name: what it is called elsewhere as well
    "gamma": ("gamma", "weight", "scale", "bngain"),
    "beta": ("beta", "bias", "shift", "offset", "bnbias"),
    "moving_mean": (
        "moving_mean", "running_mean", "moving_average_mean", "ema_mean", "population_mean",
        "pop_mean", "bnmean_running", "mean", "mu",
    ),
    "moving_variance": (
        "moving_variance", "moving_var", "running_var", "running_variance", "ema_var",
        "ema_variance", "moving_average_variance", "population_variance", "pop_variance",
        "pop_var", "variance", "var",
    ),
    "training": ("training", "is_training", "train", "is_train", "train_mode", "istrain"),
    "inference": ("inference", "use_running_average", "use_global_stats", "is_test", "test"),
    "mode": ("mode",),  # "train" or "test"
    "momentum": ("momentum", "decay", "decay_rate", "ema_decay", "alpha", "rho"),
    "epsilon": ("epsilon", "eps", "variance_epsilon"),
    "rank": ("num_dims", "ndim", "ndims", "rank"),  # of the inputs, as in "Dive into Deep Learning"
    "settings": ("bn_param", "params", "config"),  # a dictionary, as in Stanford's CS231n
}
WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
WRAP = """
This is what is understood; call yours from it:
    class Mine:
        def __init__(self, channels, momentum=0.99, epsilon=1e-3):
            self.gamma, self.beta = np.ones(channels), np.zeros(channels)
            self.moving_mean, self.moving_variance = np.zeros(channels), np.ones(channels)
        def __call__(self, x, training): ..."""


def role_of(name: str) -> Optional[str]:
    """Which part a name stands for; None if it is in no list."""
    bare = name.lower().strip("_")
    return next((role for role, names in NAMES.items() if bare in names), None)


def roles(names: Iterable[str]) -> Dict[str, str]:
    """Role to the name that fills it; of several, the one that stands first in the list."""
    found: Dict[str, str] = {}
    for name in names:
        role = role_of(name)
        if role is None:
            continue
        others, bare = NAMES[role], name.lower().strip("_")
        if role not in found or others.index(bare) < others.index(found[role].lower().strip("_")):
            found[role] = name
    return found


def parameters(call: Any) -> Dict[str, inspect.Parameter]:
    """The parameters of a call by name, without *args and **kwargs; none if they are unknown."""
    try:
        found = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {one.name: one for one in found if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


def is_needed(parameter: inspect.Parameter) -> bool:
    """Whether a call must give it."""
    return parameter.default is parameter.empty


def synonyms(found: Mapping[str, str]) -> Optional[str]:
    """A line on the names that differ from Keras's; None if all are Keras's."""
    told = [f"{name} is Keras's {role}" for role, name in found.items()
            if role in (*WEIGHTS, "momentum", "epsilon", "training") and name != role]
    return "; ".join(told) + "." if told else None


def looked_for(*wanted: str) -> str:
    """The names that were looked for, for messages."""
    return "; ".join(f"{role}: {', '.join(NAMES[role][:5])}" for role in wanted)
