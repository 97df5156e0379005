"""A Flax linen module as a function of its inputs and weights, for `functions` to adapt."""

import inspect
from typing import Any, Dict, List, Tuple

import numpy as np

from bn_keras.diagnostics.conformance.functions import FunctionAdapter
from bn_keras.diagnostics.conformance.kits import KITS
from bn_keras.diagnostics.conformance.names import parameters, role_of, roles


def is_linen(thing: Any) -> bool:
    """Whether it is a linen module or a class of them; imports nothing to know."""
    own = thing if inspect.isclass(thing) else type(thing)
    return any(f"{base.__module__}.{base.__name__}" == "flax.linen.module.Module"
               for base in own.__mro__)


def linen_adapter(thing: Any, given: Dict[str, Any]) -> FunctionAdapter:
    """The adapter of a linen module, whose weights are two trees: `params` and `batch_stats`.

    Args:
        thing: the module, or its class.
        given: fields for the module, by its own names.
    """
    import jax

    module: Any = thing(**given) if inspect.isclass(thing) else thing.clone(**given)
    call = parameters(type(module).__call__)
    switch = next((name for name in call if role_of(name) in ("training", "inference")), None)
    known = roles(vars(module))
    settings = {role: known[role] for role in ("momentum", "epsilon") if role in known}

    def mode(training: bool) -> Dict[str, Any]:
        if switch is None:
            return {}
        return {switch: training if role_of(switch) == "training" else not training}

    start = module.init(jax.random.key(0), np.zeros((4, 3), np.float32), **mode(True))
    leaves, tree = jax.tree_util.tree_flatten_with_path(start)
    places = [role_of(str(path[-1].key)) for path, _ in leaves]
    affine = [role for role in ("gamma", "beta") if role in places]

    def batch_norm(x: Any, training: Any, **weights: Any) -> Tuple[Any, ...]:
        own = {settings[name]: weights.pop(name) for name in [*settings] if name in weights}
        values: List[Any] = [weights.get(str(role), leaf)
                             for role, (_, leaf) in zip(places, leaves)]
        variables = jax.tree_util.tree_unflatten(tree, values)
        y, moved = module.clone(**own).apply(
            variables, x, mutable=["batch_stats"], **mode(bool(training)))
        after = {**variables, **moved}
        named = {role: leaf for role, leaf in zip(places, jax.tree_util.tree_leaves(after))}
        return (y, *(named[role] for role in statistics))

    statistics = [role for role in ("moving_mean", "moving_variance") if role in places]
    kind = inspect.Parameter
    names = ["x", "training", *affine, *statistics]
    signature = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in names]
    signature += [kind(name, kind.POSITIONAL_OR_KEYWORD, default=getattr(module, own))
                  for name, own in settings.items()]
    function: Any = batch_norm
    function.__signature__ = inspect.Signature(signature)
    function.__name__ = type(module).__name__
    adapter = FunctionAdapter(function, {})
    adapter.kit = KITS["flax"]()
    adapter.kind, adapter.has_gradients = "a Flax module", True
    return adapter
