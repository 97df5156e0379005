"""`doctor`: what is wrong with batch normalization in a model, what does it cost, what mends it?

    import bn_keras

    print(bn_keras.doctor(model, (x_validation, y_validation), train=(x_train, y_train)))

It looks at a copy: the model is left as it is. Each finding is a file in `diagnostics/findings/`.
"""

import dataclasses
import html
import json
import math
import traceback
from typing import Any, Iterator, Mapping, Optional, Sequence

import keras

from bn_keras.diagnostics.evaluations import BATCH_SIZE, EXAMPLES
from bn_keras.diagnostics.examination import NO_DATA, NOT_CALLED, UNKNOWN, Examination
from bn_keras.diagnostics.finding import (
    COSTS_ACCURACY,
    SEVERITIES,
    WRONG_RESULTS,
    CannotLook,
    Finding,
    NotLooked,
    Unusable,
)
from bn_keras.diagnostics.gap import Gap
from bn_keras.registry import FINDINGS
from bn_keras.texts import in_a_line, jsonable, plain, table

NEEDS = {
    "data": NO_DATA,
    "labels": "no labels: doctor(model, (x, y)) takes what `fit` takes",
}
NOT_SEEN = (
    "the model does not call it, or does so inside a tf.function that was traced before, where "
    "nobody can look"
)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """A batch normalization of the model in the doctor's table.

    Attributes:
        path: names of the layers around it and its own.
        kind: the name of its class.
        mode: what it normalizes with in `fit`: "batch", "averages", "both" (several calls), "not
            called" or "unknown".
        trainable: Keras's flag.
        momentum: None for a schedule or a cumulative average.
        window: steps that the averages reach back over, 1 / (1 - momentum).
        epsilon: added to the variance.
        statistics: "initial"; "lagging" behind the statistics of the examples; "exact": no further
            from these than training and the number of examples explain; "not finite"; or "not
            compared": nothing was measured, the layer is frozen, or no example reaches it in
            inference mode.
        values: per channel in a batch of the data, the fewest of its calls; None without data.
        shift: of the moving mean from the exact one, in exact standard deviations (root mean square
            over channels); None if not compared.
        factor: by which the moving variance is off, at least 1 (likewise, of logarithms).
        gap: how much the loss grows if this layer alone has its averages where all others have
            exact statistics; None if it was not measured.
    """

    path: str
    kind: str
    mode: str
    trainable: bool
    momentum: Optional[float]
    window: Optional[float]
    epsilon: float
    statistics: str
    values: Optional[int]
    shift: Optional[float]
    factor: Optional[float]
    gap: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What the doctor found; printed or shown in a notebook, it says so in words and as a table.

    Attributes:
        model: the name of the model, and its class.
        findings: Findings, the worst first.
        not_looked: a NotLooked for each finding that could not look, with the reason.
        looked: the names of the findings that did look.
        table: a LayerRow for each batch normalization.
        gap: the Gap between inference and training mode, or None (`not_looked` says why).
        examples: what was looked at, in words.
        blind: whether data were given, and no finding that needs them could look.
    """

    model: str
    findings: tuple[Finding, ...]
    not_looked: tuple[NotLooked, ...]
    looked: tuple[str, ...]
    table: tuple[LayerRow, ...]
    gap: Optional[Gap]
    examples: str
    blind: bool = False

    @property
    def ok(self) -> bool:
        """Whether it looked, and found neither wrong results nor lost accuracy."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """1: wrong results or lost accuracy; 2: none of the model or of the data was seen; or 0."""
        if any(one.severity in (WRONG_RESULTS, COSTS_ACCURACY) for one in self.findings):
            return 1
        return 0 if self.table and self.looked and not self.blind else 2

    def named(self, name: str) -> list[Finding]:
        """The findings of a name."""
        return [one for one in self.findings if one.name == FINDINGS.check(name)]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; numbers that are not finite are texts."""
        return jsonable({
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "findings": [one.to_dict() for one in self.findings],
            "gap": self.gap and self.gap.to_dict(),
            "ok": self.ok,
            "exit_status": self.exit_status,
        })

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def figure(self) -> Any:
        """A matplotlib Figure: how far each layer's averages are off, and the parts of the gap.

        Raises:
            ValueError: the model has no batch normalization, or nothing was measured.
        """
        from bn_keras.diagnostics import picture

        return picture.draw(self.model, self.table, self.gap)

    def words(self) -> list[str]:
        """Lines on what was found, the worst first, and on what could not be looked at."""
        count = len(self.findings)
        lines = [
            f"{self.model}: {len(self.table)} BN layer{'' if len(self.table) == 1 else 's'}, "
            f"{count or 'no'} finding{'' if count == 1 else 's'}; {self.examples}"
        ]
        if not self.table:
            lines[0] = f"{self.model}: no built batch normalization, so nothing was looked at"
        for number, one in enumerate(self.findings, 1):
            lines += [f"{number}. {one.severity} ({one.name}): {one.symptom}"]
            lines += [f"   cost: {one.cost or one.cost_note}"] if one.cost or one.cost_note else []
            lines += [f"   mend: {one.remedy}", f"   page: {one.page}"]
        for reason, names in self._reasons():
            lines.append(f"not looked: {', '.join(names)}: {reason}")
        found = {one.name for one in self.findings}
        nothing = [name for name in self.looked if name not in found]
        if nothing and self.table:
            lines.append(f"looked, and nothing found: {', '.join(nothing)}")
        return [plain(line) for line in lines]

    def _reasons(self) -> Iterator[tuple[str, list[str]]]:
        grouped: dict[str, list[str]] = {}
        for one in self.not_looked:
            name = " in ".join(filter(None, [one.name, one.layer])) or "forward passes"
            grouped.setdefault(one.reason, []).append(name)
        yield from grouped.items()

    def _cells(self) -> list[list[str]]:
        """The table, its head first."""
        head = ["layer", "class", "in fit", "trainable", "momentum", "steps", "epsilon",
                "statistics", "values", "mean off by", "variance off by", "loss"]
        rows = [
            [row.path, row.kind, row.mode, "yes" if row.trainable else "no",
             _number(row.momentum), _number(row.window), _number(row.epsilon), row.statistics,
             _number(row.values), _number(row.shift), _number(row.factor, "×"),
             _number(row.gap)]
            for row in self.table
        ]
        return [head, *([plain(cell) for cell in row] for row in rows)]

    def table_text(self) -> str:
        """The table, a line for each batch normalization."""
        return table(self._cells())

    def __str__(self) -> str:
        lines = self.words()
        if self.gap:
            lines += ["", str(self.gap)]
        if self.table:
            lines += ["", self.table_text()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Words and table as a notebook shows them."""
        words = "\n".join([*self.words(), *([str(self.gap)] if self.gap else [])])
        head, *rows = self._cells()
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        titles = "".join(f"<th>{cell}</th>" for cell in head)
        return (f"<pre style='white-space:pre-wrap'>{html.escape(words)}</pre>"
                f"<table><tr>{titles}</tr>{cells}</table>")


def doctor(
    model: keras.Model, data: Any = None, *, train: Any = None, batch_size: int = BATCH_SIZE,
    examples: int = EXAMPLES, loss: Any = None, layers: int = 0, only: Sequence[str] = (),
) -> Diagnosis:
    """Looks into a model's batch normalization: what is wrong, what it costs, what mends it.

    Args:
        model: a built keras.Model of any kind; it is left as it is.
        data: examples on which it does badly, such as (x_validation, y_validation), in any form
            that `fit` takes; without labels no loss is measured. Without data only weights and
            settings are looked at.
        train: training examples, if `data` are others: they tell late averages from other data.
        batch_size: that of training; data that come in batches have their own.
        examples: how many are looked at, of each; arrays are drawn from at random.
        loss: as `model.compile` takes it; None for the compiled one, or the only one that fits the
            labels.
        layers: for how many layers, those with the latest averages first, it is measured what they
            cost by themselves; two passes over the examples for each.
        only: names of findings; none means all. Gap and distances are measured only if one of these
            needs data, or for `layers`.

    Returns:
        A Diagnosis; print it, or leave it in a notebook's last line.

    Raises:
        TypeError: no keras.Model, or data in no form that is known.
        ValueError: the model is not built; there are no examples, or it cannot be run on them;
            `loss` is none, or the labels do not fit the loss.
        UnknownName: `only` has a name that is no finding's.
    """
    names = [FINDINGS.check(name) for name in ([only] if isinstance(only, str) else only)]
    names = names or FINDINGS.names()
    examined = Examination(
        model, data, train, batch_size=batch_size, examples=examples, loss=loss, layers=layers
    )
    try:
        return _diagnosis(examined, names)
    except Unusable as error:
        raise ValueError(f"doctor: {str(error).rstrip('.')}.") from error


def _diagnosis(examined: Examination, names: Sequence[str]) -> Diagnosis:
    """What some findings found in a model.

    Raises:
        Unusable: the model cannot be run on the data, or the labels do not fit the loss.
    """
    findings: list[Finding] = []
    not_looked, looked = list(examined.hidden), []
    for name in names:
        found, missing = _looked(name, examined)
        findings += found
        not_looked += missing
        layers_missing = {one.layer for one in missing}
        if None not in layers_missing and (
            not layers_missing or len(layers_missing) < len(examined.normalizers)
        ):
            looked.append(name)
    not_looked += [
        NotLooked("", NOT_SEEN, one.path) for one in examined.normalizers
        if examined.mode(one.index) == NOT_CALLED
    ]
    findings.sort(key=lambda one: SEVERITIES.index(one.severity))
    of_data = [name for name in names if "data" in FINDINGS.properties(name).get("needs", ())]
    found_gap = _gap(examined) if of_data or examined.singly else None
    rows = _rows(examined, _lags(examined) if of_data else {}, found_gap)
    return Diagnosis(
        f"{examined.model.name!r} ({type(examined.model).__name__})", tuple(findings),
        tuple(not_looked), tuple(looked), tuple(rows), found_gap, _told(examined),
        examined.data is not None and bool(of_data) and not set(of_data) & set(looked),
    )


def _looked(name: str, examined: Examination) -> tuple[list[Finding], list[NotLooked]]:
    """What a finding found, and where it could not look."""
    properties = FINDINGS.properties(name)
    labelled = examined.data is not None and examined.data.labelled
    for need, there in (("data", examined.data is not None), ("labels", labelled)):
        if need in properties.get("needs", ()) and not there:
            return [], [NotLooked(name, NEEDS[need])]
    found: list[Finding] = []
    missing: list[NotLooked] = []
    try:
        if "data" in properties.get("needs", ()):
            examined.in_inference  # on data that cannot be run, no such finding has looked
        for one in FINDINGS.get(name)(examined):
            if isinstance(one, NotLooked):
                missing.append(dataclasses.replace(one, name=name))
            else:
                severity = one.severity or properties["severity"]
                found.append(dataclasses.replace(one, name=name, severity=severity))
    except CannotLook as error:
        missing.append(NotLooked(name, str(error)))
    except Unusable:
        raise
    except Exception as error:  # a finding that fails must not cost the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        missing.append(NotLooked(
            name, f"it failed: {in_a_line(error)} ({place.name}, line {place.lineno})"
        ))
    return found, missing


def _lags(examined: Examination) -> dict[int, tuple[float, float]]:
    """Index of each layer that could be compared → its distance from exact statistics."""
    try:
        return {
            one.index: lag for one, lag in zip(examined.normalizers, examined.lags, strict=True)
            if one.moves and lag is not None
        }
    except CannotLook:
        return {}


def _rows(
    examined: Examination, lags: Mapping[int, tuple[float, float]], found: Optional[Gap]
) -> Iterator[LayerRow]:
    costs = {one.path: one.lag.value for one in found.layers} if found else {}
    for one in examined.normalizers:
        shift, factor = lags.get(one.index, (None, None))
        if not one.finite:
            state = "not finite"
        elif one.initial:
            state = "initial"
        elif one.index not in lags:
            state = "not compared"
        else:
            state = "lagging" if examined.is_late(one.index) else "exact"
        values = None
        if examined.data is not None and examined.mode(one.index) not in (UNKNOWN, NOT_CALLED):
            values = min(call.values for call in examined.in_fit[one.index])
        yield LayerRow(
            one.path, one.kind, examined.mode(one.index), one.trainable, one.momentum, one.window,
            one.epsilon, state, values, shift, factor, costs.get(one.path),
        )


def _gap(examined: Examination) -> Optional[Gap]:
    try:
        return examined.gap if examined.normalizers else None
    except CannotLook:
        return None


def _told(examined: Examination) -> str:
    if examined.data is None:
        return "no data, so only weights and settings were looked at"
    words = f"looked at {examined.data}"
    if examined.has_train:
        words += f", and at {examined.train} of training"
    return words


def _number(value: Optional[float], unit: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.3g}{unit}"
