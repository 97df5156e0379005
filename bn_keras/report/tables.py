"""Further tables of studies: a registered function lays out rows by the data that the study gives.

    @TABLES.register("by_layer")
    def by_layer(rows, data): ...; return [(headings, lines of cells)]
"""

import statistics
from typing import Any, Mapping, Sequence

from bn_keras.registry import TABLES
from bn_keras.report.numbers import number
from bn_keras.results import DIVERGED
from bn_keras.study import Row
from bn_keras.texts import plain

Laid = list[tuple[Sequence[str], list[list[str]]]]
BATCHES = {"whole": "in one batch", "16": "by 16", "2": "by 2", "1": "one by one", "loss": "loss"}


@TABLES.register("by_layer")
def by_layer(rows: Sequence[Row], data: Sequence[tuple[str, str, str, Mapping[int, str]]]) -> Laid:
    """A line for every layer, medians over seeds.

    Args:
        rows: Rows with metrics such as `start_std_layer_3`.
        data: a column each: its heading, the arm, the metric without `_layer_3`, and figures found
            elsewhere by layer.
    """
    layers = sorted({
        int(name.rpartition("_layer_")[2]) for row in rows for name in row.metrics
        if name.rpartition("_layer_")[2].isdigit()
    })
    cells = []
    for layer in layers:
        line = [str(layer)]
        for _, arm, metric, elsewhere in data:
            mine = [row for row in rows if row.arm == arm]
            shown = _median(mine, f"{metric}_layer_{layer}")
            line.append(f"{shown} ({elsewhere[layer]})" if layer in elsewhere else shown)
        cells.append(line)
    return [(["layer (elsewhere)", *(column[0] for column in data)], cells)] if cells else []


@TABLES.register("pitfalls")
def pitfalls(rows: Sequence[Row], data: Sequence[Any]) -> Laid:
    """Accuracies under each bug; its symptom, how to notice it, and the remedy.

    Args:
        rows: Rows with metrics such as `pitfall/correct/whole`.
        data: Pitfalls in words, with name, see, notice, remedy, evaluation, arms and reported; see
            `bn_keras.studies.pitfalls`.
    """
    costs: list[list[str]] = []
    words: list[list[str]] = []
    for pitfall in data:
        before = len(costs)
        for arm in pitfall.arms:
            mine = [row for row in rows if row.arm == arm]
            found = {what: _median(mine, f"pitfall/{pitfall.evaluation}/{what}")
                     for what in BATCHES}
            lost = sum(row.status == DIVERGED for row in mine)
            if set(found.values()) == {"–"} and not lost:
                continue
            net = plain(arm if arm == "CNN, no BN" else arm.partition(",")[0])
            net += f" ({lost} of {len(mine)} diverged)" * bool(lost)
            costs.append([f"{pitfall.name}: {net}", *found.values()])
            if pitfall.reported and arm == pitfall.arms[0]:
                costs.append([f"{pitfall.name}: elsewhere",
                              *(pitfall.reported.get(what, "") for what in BATCHES)])
        if len(costs) > before:
            words.append([pitfall.name, pitfall.see, pitfall.notice, pitfall.remedy])
    if not costs:
        return []
    return [
        (["pitfall and net", *BATCHES.values()], costs),
        (["pitfall", "symptom", "how to notice", "remedy"], words),
    ]


def _median(rows: Sequence[Row], metric: str) -> str:
    known = [value for value in (row.metrics.get(metric) for row in rows) if value is not None]
    return number(statistics.median(known)) if known else "–"
