"""The dictionary of metrics and curves: what each is called, its unit, and which end is the worse.

Probes and studies declare the metrics and curves that they add where they are registered:

    @PROBES.register("penalty", metrics={"penalty": ("penalty in the loss", "", "high")})

and here stand those that belong to no file of theirs. Tables, verdicts, TensorBoard and the docs
read them all from `describe`. A `{}` in a declared name stands for any text, and in its title for
that text.
"""

import dataclasses
import math
import re
from typing import Dict, Optional, Tuple

from bn_keras.expressions import ExpressionError, names_in
from bn_keras.registry import PROBES, STUDIES, UnknownName, did_you_mean
from bn_keras.study import Study, expressions_of

Declared = Tuple[str, str, Optional[str]]

LOW, HIGH = "low", "high"
DERIVED: Dict[str, Declared] = {
    "accuracy_at_{}": ("validation accuracy after {} steps", "", LOW),
    "train_accuracy_at_{}": ("training batch accuracy after {} steps", "", LOW),
    "lost_{}": ("accuracy lost when evaluated {}", "", None),
}
ON_A_LADDER: Dict[str, Declared] = {
    "test_accuracy_at_{}": ("test accuracy at rate {}", "", LOW),
    "largest_workable_rate": ("largest workable rate", "", LOW),
    "times_{}": ("largest workable rate over that of {}", "times", LOW),
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric or a curve in words.

    Attributes:
        name: as results hold it.
        title: as tables and pictures show it.
        unit: of its values; empty for shares and plain numbers.
        worse: the end, "low" or "high", at which a value is worse. None where neither is: what was
            never reached then decides nothing.
    """

    name: str
    title: str
    unit: str
    worse: Optional[str]

    @property
    def worst(self) -> float:
        """Counts for a run without a value: the infinity at the worse end, NaN if there is none."""
        return {LOW: -math.inf, HIGH: math.inf}.get(self.worse or "", math.nan)


def describe(name: str) -> Metric:
    """The metric or curve of that name; one that nobody has declared is titled by its name."""
    return _declared(name) or Metric(name, name.replace("_", " ").replace("/", " "), "", None)


def _declared(name: str) -> Optional[Metric]:
    known = declared()
    if name in known:
        return Metric(name, *known[name])
    # The pattern that says the most about the name describes it.
    for pattern in sorted(known, key=len, reverse=True):
        matched = matches(pattern, name)
        if matched:
            title, unit, worse = known[pattern]
            words = [text.replace("_", " ") for text in matched.groups()]
            return Metric(name, title.format(*words), unit, worse)
    return None


def matches(pattern: str, name: str) -> Optional["re.Match[str]"]:
    """The match of a metric's name with a declared one, whose groups are the texts for its `{}`."""
    return re.fullmatch("(.+)".join(map(re.escape, pattern.split("{}"))), name)


def declared() -> Dict[str, Declared]:
    """Names and patterns to (title, unit, worse end); imports no probe and no study."""
    found = {**DERIVED, **ON_A_LADDER}
    for registry in (PROBES, STUDIES):
        for name in registry.names():
            found.update(registry.properties(name).get("metrics", {}))
    return found


def check(study: Study) -> None:
    """Checks that every metric and curve that a study names is declared.

    Raises:
        ExpressionError, UnknownName: names the expression and the metric.
    """
    for expression in expressions_of(study):
        for names in names_in(expression):
            for name in names:
                try:
                    check_name(name)
                except UnknownName as error:
                    raise ExpressionError(f"expression {expression!r}: {error}") from error
    compared = [part for claim in study.claims for part in (*claim.effect, *claim.cause)]
    for name in (
        *study.columns, study.compared, *study.derived,
        *(name for view in study.views.values() for name in view.metrics),
        *(part.metric for part in compared),
        *(name for _, name in study.reported),
    ):
        check_name(name)


def check_name(name: str) -> None:
    """Raises UnknownName for a metric or curve that nobody has declared; names the nearest one."""
    if _declared(name) is None:
        hint = did_you_mean(name, declared())
        raise UnknownName(
            f"unknown metric {name!r}{hint}; expected one that a probe or study declares"
        )
