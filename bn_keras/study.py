"""A study as data: arms, claims, derived figures. It can be listed, compared and printed.

A study trains nothing. `plan` expands it into runs, `runner` trains them, and `report` judges its
claims over the rows that `rows` makes of the stored results.

Figures that follow from measured ones are written as `bn_keras.expressions`.
"""

import dataclasses
import itertools
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from bn_keras.config import ConfigError
from bn_keras.expressions import NotMeasured, Number, evaluate, names_in
from bn_keras.results import DIVERGED, OK

RELATIONS = ("at least", "at most")


class StudyError(ConfigError):
    """A study that cannot be planned or judged; the message names the part that is wrong."""


@dataclasses.dataclass(frozen=True)
class Comparison:
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


@dataclasses.dataclass(frozen=True)
class Claim:
    """A tutorial's claim, and the comparisons that decide it.

    Attributes:
        text: the claim, in one sentence.
        source: who says so.
        effect: comparisons that all hold in a seed that shows the claimed effect.
        cause: comparisons on control arms that hold if the claimed cause is right.
        otherwise: the cause that the controls point to if those comparisons do not hold.
        expected: the verdict to expect, which kept runs have given; None where there are none yet.
    """

    text: str
    source: str
    effect: Tuple[Comparison, ...]
    cause: Tuple[Comparison, ...] = ()
    otherwise: str = ""
    expected: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurements of one arm and one seed, for claims, tables and figures.

    Attributes:
        arm: name of the arm, or of the net of a ladder.
        seed: the run's.
        status: "ok", or "diverged"; of a ladder's row "ok" if any of its runs is.
        metrics: name to number; None for what was never reached.
        curves: name to list of [step, value]; empty for ladders and views.
        normalizer: the run's, from which figures take its colour.
        steps: steps trained, the diverging one included; None for ladders.
        settings: of the axes of a sweep, setting to value.
        frames: what the run's layers saw while it was trained, arrays by name; of the first seed of
            the arms that the study animates.
    """

    arm: str
    seed: int
    status: str
    metrics: Mapping[str, Number]
    curves: Mapping[str, List[List[Any]]] = dataclasses.field(default_factory=dict)
    normalizer: str = ""
    steps: Optional[int] = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class View:
    """Another reading of an arm's runs, shown and judged as an arm of its own.

    Attributes:
        arm: the arm whose runs are read.
        metrics: metric to the expression that gives it.
    """

    arm: str
    metrics: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A row of learning rates, climbed by every net; the arms are named `NET at RATE`.

    Attributes:
        rates: the learning rates.
        baseline: the net whose largest workable rate of the same seed the others are divided by.
        workable: test accuracy that a rate must reach.
    """

    rates: Tuple[float, ...]
    baseline: str
    workable: float = 0.90


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
        columns: names of the metrics in its table.
        claims: what it decides.
        reported: (arm, metric) to the figure found elsewhere, as text.
        figures: registered names of the panels of its picture, `NAME` or `NAME:ARGUMENT`.
        quick: settings of the version that takes some seconds.
        seeds, quick_seeds: how many pairs.
        quick_arms: the arms of the short version; none named means all.
        baseline: the arm that all others are compared with, pair by pair; None for no such table.
        compared: the metric of that comparison.
        derived: metric to the expression that gives it, for every row, from measured figures.
        views: arm to the View of another arm that it is.
        ladder: the Ladder that its arms climb, or None.
        tables: registered names of further tables, each with the data that it lays out.
        files: registered names of text files that the report writes as well.
        animations: name to the two arms with frames that it shows, above and below.
        axes: setting to the values at which every net is tried; its arms are named `NET at VALUE`.
    """

    question: str
    source: str
    duration: str
    expected: str
    base: Mapping[str, object]
    arms: Mapping[str, Mapping[str, object]]
    columns: Tuple[str, ...]
    claims: Tuple[Claim, ...] = ()
    reported: Mapping[Tuple[str, str], str] = dataclasses.field(default_factory=dict)
    figures: Tuple[str, ...] = ()
    quick: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seeds: int = 5
    quick_seeds: int = 1
    quick_arms: Tuple[str, ...] = ()
    baseline: Optional[str] = None
    compared: str = "validation_accuracy"
    derived: Mapping[str, str] = dataclasses.field(default_factory=dict)
    views: Mapping[str, View] = dataclasses.field(default_factory=dict)
    ladder: Optional[Ladder] = None
    tables: Mapping[str, object] = dataclasses.field(default_factory=dict)
    files: Tuple[str, ...] = ()
    animations: Mapping[str, Tuple[str, str]] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, Tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def swept(study: Study, axes: Mapping[str, Sequence[Any]]) -> Study:
    """The study with each of its arms at every combination of the axes' values.

    Every arm is compared with the baseline at the setting that is best for it, in a test metric;
    which one that is, validation says.

    Args:
        study: of a few nets.
        axes: setting to values.
    """
    arms = {
        f"{net} at {_at(axes, values)}": {**settings, **dict(zip(axes, values))}
        for net, settings in study.arms.items() for values in itertools.product(*axes.values())
    }
    compared = study.compared.replace("validation_", "test_")
    return dataclasses.replace(
        study, arms=arms, axes={name: tuple(values) for name, values in axes.items()},
        compared=compared, columns=(study.compared, compared),
        figures=tuple(f"over:{name}" for name in axes),
    )


def _at(axes: Iterable[str], values: Iterable[Any]) -> str:
    """`0.1` of a learning rate, `0.1, batch_size 16` of more."""
    told = [f"{value:g}" if type(value) is float else str(value) for value in values]
    return ", ".join(
        value if name == "learning_rate" else f"{name} {value}" for name, value in zip(axes, told)
    )


def of_numbers(study: Study) -> Study:
    """The study for labels that are numbers: losses in place of accuracies."""
    return dataclasses.replace(
        study, compared="validation_loss", columns=("validation_loss", "test_loss"),
        figures=("curve:loss/train", "curve:loss/validation", "outcomes"),
    )


def ladder_arms(
    nets: Mapping[str, Mapping[str, object]], rates: Sequence[float]
) -> Dict[str, Dict[str, object]]:
    """Arms of a study with a Ladder: every net at every rate.

    Args:
        nets: name to settings.
        rates: the learning rates.
    """
    return {
        f"{net} at {rate:g}": {**settings, "learning_rate": rate}
        for net, settings in nets.items() for rate in rates
    }


def net_of(arm: str) -> str:
    """The net's name in an arm of a ladder or a sweep, `NET at VALUE`."""
    return arm.rpartition(" at ")[0]


def row_names(study: Study) -> List[str]:
    """Names of all rows that a study can have: arms or, on a ladder, nets, and views."""
    arms = study.arms if study.ladder is None else dict.fromkeys(map(net_of, study.arms))
    return [*arms, *study.views]


def rows(study: Study, results: Sequence[Any]) -> List[Row]:
    """The rows of a study from its stored results.

    Args:
        study: Study.
        results: RunResults, in any order.

    Returns:
        A Row for each run or, on a ladder, for each net and seed, with the study's derived metrics;
        behind it, one for each View of it.
    """
    plain = (
        [_row(run, study.axes) for run in results] if study.ladder is None
        else _ladder_rows(study.ladder, results)
    )
    found = []
    for row in plain:
        metrics = {**row.metrics, **_evaluated(study.derived, row)}
        row = dataclasses.replace(row, metrics=metrics)
        found.append(row)
        for name, view in study.views.items():
            seen = _evaluated(view.metrics, row) if view.arm == row.arm else {}
            if seen:
                found.append(dataclasses.replace(row, arm=name, metrics=seen, curves={}))
    return found


def _row(run: Any, axes: Iterable[str]) -> Row:
    config = run.config
    return Row(
        config.arm_name, config.seed, run.status, run.metrics, run.curves, config.normalizer,
        run.steps, {name: getattr(config, name) for name in axes},
    )


def _evaluated(expressions: Mapping[str, str], row: Row) -> Dict[str, Number]:
    """The metrics among these that the row can give."""
    found = {}
    for name, expression in expressions.items():
        try:
            found[name] = evaluate(expression, row)
        except NotMeasured:
            continue
    return found


def _ladder_rows(ladder: Ladder, results: Sequence[Any]) -> List[Row]:
    """One Row for each net and seed.

    Its metrics are `test_accuracy_at_RATE` and, where every rate was run, `largest_workable_rate`
    and `times_BASELINE`. With a rate missing, as after an interruption, the largest one is unknown:
    the missing rate may be the one that fails.
    """
    climbed: Dict[Tuple[str, int], Dict[float, Any]] = {}
    for run in results:
        runs = climbed.setdefault((net_of(run.config.arm_name), run.config.seed), {})
        runs[run.config.learning_rate] = run
    accuracies = {
        key: {rate: run.metrics.get("test_accuracy") for rate, run in runs.items()}
        for key, runs in climbed.items()
    }
    largest = {
        key: largest_workable_rate(by_rate, ladder.workable)
        for key, by_rate in accuracies.items() if set(ladder.rates) <= set(by_rate)
    }
    found = []
    for (net, seed), runs in climbed.items():
        metrics: Dict[str, Number] = {
            f"test_accuracy_at_{rate:g}": value for rate, value in accuracies[net, seed].items()
        }
        if (net, seed) in largest:
            metrics["largest_workable_rate"] = mine = largest[net, seed]
            if (ladder.baseline, seed) in largest:
                base = largest[ladder.baseline, seed]
                times = None if mine is None or base is None else mine / base
                metrics[f"times_{ladder.baseline}"] = times
        status = OK if any(run.status == OK for run in runs.values()) else DIVERGED
        normalizer = next(iter(runs.values())).config.normalizer
        found.append(Row(net, seed, status, metrics, normalizer=normalizer))
    return found


def largest_workable_rate(by_rate: Mapping[float, Number], workable: float) -> Number:
    """The largest rate that ends with a workable accuracy; None if none does.

    A rate counts only if no lower one fails, but for those that are too low to get there in time:
    one lucky run above a failure is no rate to work with.

    Args:
        by_rate: rate to accuracy; None for a run that diverged.
        workable: accuracy that a rate must reach.
    """
    largest = None
    for rate, accuracy in sorted(by_rate.items()):
        if accuracy is not None and accuracy >= workable:
            largest = rate
        elif largest is not None:
            break
    return largest


def check(study: Study) -> None:
    """Checks that the parts of a study fit together; `metrics.check` looks at metrics' names.

    Args:
        study: a Study with all of its arms.

    Raises:
        StudyError: names the part that does not fit.
    """
    nets = row_names(study) + ([net_of(arm) for arm in study.arms] if study.axes else [])
    for arm in (*study.quick_arms, *(arm for pair in study.animations.values() for arm in pair)):
        _known(arm, study.arms, "arm")
    if study.baseline is not None:
        _known(study.baseline, nets, "baseline")
    if study.ladder is not None:
        _known(study.ladder.baseline, nets, "baseline of the ladder")
    for view in study.views.values():
        _known(view.arm, nets, "arm of a view")
    for arm, _ in study.reported:
        _known(arm, nets, "arm of a reported figure")
    for claim in study.claims:
        if not claim.effect or bool(claim.cause) != bool(claim.otherwise):
            raise StudyError(
                f"claim {claim.text!r}: {len(claim.effect)} effects, {len(claim.cause)} causes, "
                f"otherwise={claim.otherwise!r}; expected an effect, and both or none of the others"
            )
        for compared in (*claim.effect, *claim.cause):
            _known(compared.arm, nets, f"arm of the claim {claim.text!r}")
            if isinstance(compared.than, str):
                _known(compared.than, nets, f"arm of the claim {claim.text!r}")
            if compared.relation not in RELATIONS:
                raise StudyError(
                    f"relation {compared.relation!r} of the claim {claim.text!r}; expected one of "
                    f"{', '.join(RELATIONS)}"
                )
    for expression in expressions_of(study):
        names_in(expression)


def expressions_of(study: Study) -> List[str]:
    """All expressions of a study."""
    views = [expression for view in study.views.values() for expression in view.metrics.values()]
    return [*study.derived.values(), *views]


def _known(name: str, names: Any, what: str) -> None:
    if name not in names:
        raise StudyError(f"{what}: received {name!r}; expected one of {'; '.join(names)}")
