"""What a study is: arms, claims, derived figures. Data only: it can be listed, compared, printed.

A study trains nothing. `plan` expands it into runs, `runner` trains them, and `report` judges its
claims over the rows that `rows` makes of the stored results.
"""

import dataclasses
from typing import Mapping, Optional, Tuple, Union

Number = Optional[float]


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
    """What a tutorial says, and what decides it.

    Attributes:
        text: the claim, in one sentence.
        source: who says so.
        effect: comparisons that hold where what the claim describes is seen.
        cause: comparisons on control arms that hold where it is seen for the reason given.
        otherwise: the reason that the controls point to where they do not hold.
    """

    text: str
    source: str
    effect: Tuple[Comparison, ...]
    cause: Tuple[Comparison, ...] = ()
    otherwise: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one arm gave for one seed: what claims, tables and figures read.

    Attributes:
        arm: name of the arm, or of the net of a ladder.
        seed: the run's.
        status: "ok", or "diverged"; of a ladder's row "ok" if any of its runs is.
        metrics: name to number; None for what was never reached.
        curves: name to list of [step, value].
        normalizer: the run's, from which figures take its colour.
    """

    arm: str
    seed: int
    status: str
    metrics: Mapping[str, Number]
    curves: Mapping[str, list] = dataclasses.field(default_factory=dict)
    normalizer: str = ""


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
        derived: metric to the expression that gives it, for every row.
        views: arm to the View of another arm that it is.
        ladder: the Ladder that its arms climb, or None.
        tables: registered names of further tables, each with the data that it lays out.
        files: registered names of text files that the report writes as well.
        animations: name to the two arms with frames that it shows, above and below.
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
