"""What several test files share: where things are, numbers, ways to run a function, cases."""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent

# How a function of tensors is run.
MODES: dict[str, Callable[..., Any]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}
RENORM = {"plain": False, "renorm": True}


def normal(
    shape: Sequence[int], mean: float = 0.0, deviation: float = 1.0, seed: int = 0,
    dtype: str = "float32",
) -> np.ndarray:
    """Normally distributed numbers, the same for the same arguments.

    Args:
        shape: of the array.
        mean, deviation: of the distribution.
        seed: other seeds give other numbers.
        dtype: of the array.
    """
    return np.random.default_rng(seed).normal(mean, deviation, shape).astype(dtype)


def covering(
    factors: dict[str, list[Any]],
    allowed: Callable[[dict[str, Any]], bool] = lambda case: True,
    strength: int = 2,
    given: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Few cases in which all that is allowed occurs; always the same ones.

    Greedy: a case starts from a combination that is still missing, and takes for each further
    factor the value that adds most missing combinations.

    Args:
        factors: values by name.
        allowed: says whether a case may occur, also one in which factors are missing.
        strength: 2 covers every pair of two factors' values, 1 every value.
        given: cases that are there already, and come first.
    """

    def parts(case: dict[str, Any]) -> Iterable[tuple[tuple[str, int], ...]]:
        places = [(name, factors[name].index(case[name])) for name in factors if name in case]
        return itertools.combinations(places, strength)

    everything = [
        part
        for names in itertools.combinations(factors, strength)
        for values in itertools.product(*(factors[name] for name in names))
        if allowed(dict(zip(names, values)))
        for part in parts(dict(zip(names, values)))
    ]
    missing = dict.fromkeys(everything)  # a set in a fixed order
    cases = list(given)
    for case in cases:
        for part in parts(case):
            missing.pop(part, None)
    while missing:
        case = {name: factors[name][place] for name, place in next(iter(missing))}
        for name in [name for name in factors if name not in case]:
            options = [{**case, name: value} for value in factors[name]]
            case = max(
                filter(allowed, options),
                key=lambda option: sum(part in missing for part in parts(option)),
            )
        for part in parts(case):
            missing.pop(part, None)
        cases.append({name: case[name] for name in factors})
    return cases


def product_of(
    strength: int = 2, fast: int | None = None, **factors: Iterable[Any]
) -> pytest.MarkDecorator:
    """Decorator: the test runs with few of all combinations of the factors' values.

    By default every pair of two factors' values occurs in one of the cases, so that a fault that
    two settings make together shows. A fault that takes three of them, and only these, may not:
    give such settings as one factor.

    Args:
        strength: see `covering`.
        fast: the strength of the fast run, if it is lower; the cases beyond it are marked slow.
        factors: values by name of the test's argument, or a dict whose keys name its values.
    """
    named = {
        name: dict(values) if isinstance(values, dict) else {str(value): value for value in values}
        for name, values in factors.items()
    }
    assert all(named.values()), f"a factor without values in {named}"
    keys = {name: list(values) for name, values in named.items()}
    first = covering(keys, strength=fast or strength)
    assert first, f"no case in {named}"
    return pytest.mark.parametrize(
        list(named),
        [
            pytest.param(
                *(named[name][key] for name, key in case.items()),
                id="-".join(case.values()),
                marks=() if case in first else pytest.mark.slow,
            )
            for case in covering(keys, strength=strength, given=first)
        ],
    )


def models_with_normalizers(models: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names: each normalizer with a net of convolutions and with one of dense layers.

    The nets of a kind take turns, so that each gets several normalizers. Not all pairs: a net is
    handed a factory and never learns which. A normalizer that scales branches goes to a net that
    has some.

    Args:
        models: names of registered models.
    """
    from bn_keras.registry import MODELS, NORMALIZERS

    pairs = []
    for dense in (False, True):
        kind = [name for name in models if MODELS.properties(name).get("stacks", False) == dense]
        for turn, normalizer in enumerate(NORMALIZERS.names()):
            if not NORMALIZERS.properties(normalizer).get("scales_branches"):
                pairs.append((kind[turn % len(kind)], normalizer))
            elif with_branches := [n for n in kind if MODELS.properties(n).get("branches")]:
                pairs.append((with_branches[0], normalizer))
    return pairs


def bright_splits(examples: int = 60, size: int = 4, classes: int = 3) -> Any:
    """Small images whose brightness tells their class; three sets that differ.

    Args:
        examples: of each set.
        size: height and width.
        classes: how many.
    """
    from bn_keras.data import Split, Splits

    def part(seed: int) -> Split:
        rng = np.random.default_rng(seed)
        labels = (np.arange(examples) % classes).astype(np.int32)
        images = rng.integers(0, 80, (examples, size, size, 1))
        images += (170 // classes) * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels)

    return Splits(part(0), part(1), part(2), classes=classes)


def number_splits(examples: int = 40, shape: Sequence[int] = (1,)) -> Any:
    """A regression: the sum of squares of standard normal inputs."""
    from bn_keras.data import Split, Splits

    def part(seed: int) -> Split:
        inputs = normal((examples, *shape), seed=seed)
        return Split(inputs, np.square(inputs).reshape(examples, -1).sum(1))

    return Splits(part(0), part(1), part(2), classes=1)


def run_config(**changes: Any) -> Any:
    """A short run on `bright_splits`, in float64: two ways to compute it agree in ten digits."""
    from bn_keras.config import RunConfig

    settings = {
        "model": "ioffe_mlp", "optimizer": "sgd", "learning_rate": 0.1, "batch_size": 12,
        "steps": 8, "validation_size": 10, "log_interval": 2, "eval_interval": 4,
        "curve_size": 40, "dtype_policy": "float64", "measure": (),
    }
    return RunConfig(**{**settings, **changes})
