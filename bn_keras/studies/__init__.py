"""Studies, one a file: a question, the runs that answer it, and the claims they decide.

A study is a value. It trains nothing itself: `train.py --study=NAME` expands it into runs, and the
report judges its claims over what they left behind.
"""

import dataclasses
from typing import Callable, Dict, Mapping, Optional, Tuple, Union

from bn_keras.config import ConfigError, RunConfig
from bn_keras.results import DIVERGED


@dataclasses.dataclass(frozen=True)
class Test:
    """One comparison, made for every seed: a metric of an arm against a number or another arm.

    Attributes:
        metric: name of the metric.
        arm: whose.
        relation: "at least" or "at most".
        than: a number, or the arm whose metric of the same seed is compared with.
        factor, margin: the other side is multiplied by and moved by these.
    """

    metric: str
    arm: str
    relation: str
    than: Union[float, str]
    factor: float = 1.0
    margin: float = 0.0

    __test__ = False  # not one of pytest's


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a tutorial says, and what decides it.

    Attributes:
        text: the claim, in one sentence.
        source: who says so.
        effect: tests that hold where what the claim describes is seen.
        cause: tests on control arms that hold where it is seen for the reason given.
        otherwise: the reason that the controls point to where they do not hold.
    """

    text: str
    source: str
    effect: Tuple[Test, ...]
    cause: Tuple[Test, ...] = ()
    otherwise: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one arm gave for one seed: the metrics that claims and tables read."""

    arm: str
    seed: int
    metrics: Mapping[str, Optional[float]]


def values_at(run, curve, steps, metric):
    """The values of a run's curve at some steps, as metrics.

    Args:
        run: RunResult.
        curve: such as `accuracy/validation`.
        steps: training steps.
        metric: the metrics' name in front of `_at_STEP`.

    Returns:
        dict of metric to value: None where the run had diverged before. A step at which a run that
        went on was not evaluated is left out: not measured is not bad.
    """
    values = dict(map(tuple, run.curves.get(curve, [])))
    return {
        f"{metric}_at_{step}": values.get(step) for step in steps
        if step in values or (run.status == DIVERGED and step >= run.steps)
    }


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison with its claims.

    Attributes:
        question: what it asks.
        source: the tutorial or paper.
        duration: on 2 cores, in words.
        expected: the outcome to expect, in words.
        base: settings of every run, by field of RunConfig.
        arms: arm to the settings in which it differs.
        metrics: names of the metrics in its table.
        claims: what it decides.
        reported: (arm, metric) to the figure found before, as text.
        picture: name of the function in `bn_keras.figures` that draws it; where there are frames
            for animations, `bn_keras.animation` draws it from these.
        quick: settings of the version that takes some seconds.
        seeds, quick_seeds: how many pairs.
        quick_arms: the arms of the short version; none named means all.
        animations: name to the two captured arms that it shows, above and below.
        derive: results to the Rows that are judged; None makes one of each result.
        files: results to texts by file name that the report writes as well.
        tables: Rows to a list of further tables, each `(headings, list of rows of texts)`.
    """

    question: str
    source: str
    duration: str
    expected: str
    base: Dict[str, object]
    arms: Dict[str, Dict[str, object]]
    metrics: Tuple[str, ...]
    claims: Tuple[Claim, ...]
    reported: Dict[Tuple[str, str], str]
    picture: str
    quick: Dict[str, object]
    seeds: int = 3
    quick_seeds: int = 3
    quick_arms: Tuple[str, ...] = ()
    animations: Mapping[str, Tuple[str, str]] = dataclasses.field(default_factory=dict)
    derive: Optional[Callable] = None
    files: Optional[Callable] = None
    tables: Optional[Callable] = None

    def expand(self, overrides, seeds, quick=False):
        """The RunConfigs of the study: every arm with every seed.

        Args:
            overrides: settings that take the place of the study's own, in every arm.
            seeds: iterable of seeds.
            quick: whether to take the short version.

        Raises:
            ConfigError: an override of what the arms differ in, or a value that no run accepts.
        """
        varied = sorted({name for arm in self.arms.values() for name in arm} & set(overrides))
        if varied:
            raise ConfigError(
                f"{', '.join(varied)}: the arms of this study differ in it; expected other settings"
            )
        base = {**self.base, **(self.quick if quick else {}), **overrides}
        return [
            RunConfig(**{**base, **settings, "arm": arm, "seed": seed})
            for arm, settings in self.arms.items() for seed in seeds
        ]

    def only(self, names):
        """The study with these of its arms.

        Raises:
            ConfigError: it has no such arm.
        """
        for name in names:
            if name not in self.arms:
                raise ConfigError(
                    f"received the arm {name!r}; expected some of: {'; '.join(self.arms)}"
                )
        return dataclasses.replace(self, arms={name: self.arms[name] for name in names})

    def rows(self, results):
        """The Rows of stored results, in their order."""
        if self.derive is not None:
            return self.derive(results)
        return [Row(run.config.arm_name, run.config.seed, run.metrics) for run in results]
