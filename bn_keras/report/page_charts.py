"""The interactive charts of the HTML page: Vega-Lite by Altair, and the numbers that they draw.

A chart is one specification without data. The page's script fills in the numbers of the metric
that the reader picks, so that a page with a hundred metrics holds two specifications and no number
twice. Colours are CSS variables, which follow the reader's light or dark mode and print in light.
"""

import dataclasses
import functools
import math
from typing import Any, Mapping, Optional, Sequence

import altair as alt
import numpy as np

from bn_keras.metrics import describe
from bn_keras.report.figures.drawing import (
    accuracy_floor,
    by_arm,
    finite_points,
    median_curve,
)
from bn_keras.report.findings import Arm, outcome
from bn_keras.results import DIVERGED, RunResult
from bn_keras.study import Row, net_of
from bn_keras.texts import plain

MOST_POINTS = 60_000  # of all curves of a page, some 800 kB
MOST_DRAWN = 6_000  # of one chart: a browser draws each of them
MOST_OF_A_CURVE = 100
FEWEST_OF_A_CURVE = 20  # rather than fewer, seeds are left out
WIDE = 100  # values that span more orders of magnitude than this are drawn on a logarithmic axis
CROSS = "M-1,-1L1,1M1,-1L-1,1"
NOT_DRAWN = ("_images", "_commonest")  # properties of the data, the same for all runs


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of a report, as the page holds them.

    Attributes:
        groups: learning rate to curve to what the script draws; one group, without a rate, where
            the study is no ladder.
        left_out: a sentence on what is not drawn; empty if all is.
    """

    groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: str


@functools.cache
def curves_chart(arms: int, dashes: tuple[tuple[float, ...], ...]) -> dict[str, Any]:
    """The specification of the curves: a thin line a seed, a thick one an arm's median.

    Args:
        arms: how many.
        dashes: a pattern of each.
    """
    shown, seed, faint = _params(arms)
    near = alt.selection_point(
        name="near", fields=["run"], nearest=True, on="pointermove", clear="pointerout",
        empty=False,
    )
    color = alt.Color("arm:N", scale=_scale(arms), legend=None)
    dash = alt.StrokeDash(
        "arm:N", legend=None,
        scale=alt.Scale(domain=list(range(arms)), range=[list(dash) for dash in dashes]),
    )
    lines = alt.Chart().encode(
        x=alt.X("step:Q", title="training steps", scale=alt.Scale(zero=True, nice=False),
                axis=alt.Axis(grid=False, tickCount=alt.ExprRef("max(3, width / 90)"))),
        y=alt.Y("value:Q"), detail="run:N", color=color,
    )
    is_seed = "datum.seed !== null && (seed === 'all' || datum.seed === +seed)"
    seeds = lines.mark_line().transform_filter(is_seed).encode(
        strokeDash=dash, strokeWidth=_if(near, alt.datum.alone, 2.4, 1),
        strokeOpacity=_if(near, alt.datum.alone, 1, alt.ExprRef("faint")),
    )
    medians = lines.mark_line(strokeWidth=3).transform_filter("datum.seed === null").encode(
        strokeDash=dash
    )
    # Behind each median, in the page's colour, so that it is seen among a hundred seeds.
    halos = lines.mark_line(strokeWidth=6, strokeOpacity=0.7).transform_filter(
        "datum.seed === null").encode(color=alt.value("var(--paper)"))
    ends = lines.mark_point(shape=CROSS, size=60, strokeWidth=2.5, filled=False).transform_filter(
        f"datum.end && {is_seed}"
    )
    # Points are shown where the pointer is near, and where a curve is too short to be a line. Where
    # the nearest point is taken, Vega-Lite's own tooltips lose the texts; so this one is spelt out.
    point = "(datum.datum || datum)"
    tip = (f"{{arm: {point}.arm_name, seed: {point}.seed === null ? 'median' : {point}.seed, "
           f"step: format({point}.step, ','), value: format({point}.value, '.4~g')}}")
    points = lines.mark_point(filled=True, size=60, tooltip=alt.ExprRef(tip)).transform_filter(
        f"datum.seed === null || {is_seed}"
    ).encode(opacity=_if(near, alt.datum.few, 1, 0)).add_params(near)
    chart = alt.layer(seeds, halos, medians, ends, points, data=alt.NamedData("rows"))
    chart = chart.transform_filter("indexof(shown, datum.arm) >= 0").add_params(shown, seed, faint)
    return _finished(chart, 340)


@functools.cache
def finals_chart(arms: int) -> dict[str, Any]:
    """The specification of the final values: a dot a seed, a bar at an arm's median.

    Args:
        arms: how many.
    """
    shown, *_ = _params(arms)
    names = alt.param(name="names", value=[""] * arms)
    near = alt.selection_point(
        name="near", fields=["seed"], on="pointerover", clear="pointerout", empty=False
    )
    value = alt.X("value:Q", axis=alt.Axis(tickCount=alt.ExprRef("max(3, width / 90)")))
    base = alt.Chart().encode(
        y=alt.Y("arm:N", title=None, scale=alt.Scale(domain=list(range(arms))),
                axis=alt.Axis(labelExpr="names[datum.value]", ticks=False, domain=False)),
        color=alt.Color("arm:N", scale=_scale(arms), legend=None),
    )
    dots = base.mark_circle().transform_filter("datum.seed !== null").encode(
        x=value, yOffset=alt.YOffset("lane:Q", scale=alt.Scale(domain=[-3, 3])),
        size=alt.condition(near, alt.value(140), alt.value(50)),
        opacity=alt.condition(near, alt.value(1), alt.value(0.65)),
        tooltip=[alt.Tooltip("arm_name:N", title="arm"), alt.Tooltip("seed:N"),
                 alt.Tooltip("value:Q", format=".4~g"), alt.Tooltip("outcome:N")],
    ).add_params(near)
    medians = base.mark_tick(thickness=3, size=26).transform_filter("datum.seed === null").encode(
        x=value,
        tooltip=[alt.Tooltip("arm_name:N", title="arm"),
                 alt.Tooltip("value:Q", title="median", format=".4~g")],
    )
    chart = alt.layer(medians, dots, data=alt.NamedData("rows")).add_params(shown, names)
    return _finished(chart, 34 * arms)


def curves(
    rows: Sequence[Row], results: Sequence[RunResult], arms: Sequence[str]
) -> Curves:
    """The curves of all runs, thinned where they are too many for one page.

    Args:
        rows: the report's.
        results: the runs behind them, from which a ladder's curves are taken.
        arms: names, whose places stand for them.
    """
    groups = _groups(rows, results)
    names = list(dict.fromkeys(
        name for group in groups.values() for row in group for name in row.curves
        if len(finite_points(row.curves[name]))
    ))
    names.sort(key=_main_first)
    runs = max((len(group) for group in groups.values()), default=0)
    length = max((len(row.curves.get(name, ())) for group in groups.values() for row in group
                  for name in names), default=0)
    room = min(MOST_DRAWN, MOST_POINTS // max(1, len(names) * len(groups)))
    most = min(MOST_OF_A_CURVE, max(FEWEST_OF_A_CURVE, room // max(1, runs)))
    drawn_runs = max(len(arms), room // max(1, min(most, length)))
    left_out = []
    if length > most:
        left_out.append(f"Of curves with up to {length:,} points, {most} are drawn.")
    if runs > drawn_runs:
        left_out.append(f"Of {runs:,} runs, the first seeds of each arm are drawn, at most "
                        f"{drawn_runs:,} runs; the medians are those of all seeds.")
    found = {}
    for label, group in groups.items():
        laid = {name: _laid(group, name, arms, most, drawn_runs) for name in names}
        found[label] = {name: chart for name, chart in laid.items() if chart["lines"]}
    return Curves({label: group for label, group in found.items() if group}, " ".join(left_out))


def finals(
    rows: Sequence[Row], summaries: Sequence[Arm], compared: str, columns: Sequence[str]
) -> dict[str, Any]:
    """The final values of all rows by metric, the study's own metrics first.

    Args:
        rows: the report's.
        summaries: its arms.
        compared: the metric that the study compares arms in.
        columns: the metrics of the study's table.
    """
    known = dict.fromkeys(
        name for row in rows for name, value in row.metrics.items()
        if _is_finite(value) and not name.endswith(NOT_DRAWN)
    )
    own = [name for name in dict.fromkeys((compared, *columns)) if name in known]
    metrics = {}
    for name in [*own, *sorted(set(known) - set(own))]:
        values = [_short(row.metrics.get(name)) for row in rows]
        medians = [_short(arm.metrics.get(name, {}).get("median")) for arm in summaries]
        without = [
            [sum(row.arm == arm.name and name in row.metrics and not _is_finite(row.metrics[name])
                 for row in rows), arm.seeds] for arm in summaries
        ]
        metrics[name] = {
            **_axis(name, [value for value in values if value is not None]),
            "values": values, "medians": medians, "without": without,
        }
    places = {arm.name: place for place, arm in enumerate(summaries)}
    return {"rows": [[places[row.arm], row.seed, outcome(row)] for row in rows],
            "metrics": metrics}


def _params(arms: int) -> tuple[alt.Parameter, ...]:
    """The arms that are shown, the seed that is, and the opacity of a seed's line."""
    return (alt.param(name="shown", value=list(range(arms))), alt.param(name="seed", value="all"),
            alt.param(name="faint", value=0.5))


def _scale(arms: int) -> alt.Scale:
    return alt.Scale(domain=list(range(arms)), range=[f"var(--arm-{arm})" for arm in range(arms)])


def _if(near: alt.Parameter, always: Any, yes: float, no: Any) -> Any:
    """The one value for what the pointer is near to and where `always` is true, else the other."""
    return alt.when(near).then(alt.value(yes)).when(always).then(alt.value(yes)).otherwise(
        alt.value(no))


def _finished(chart: Any, height: int) -> dict[str, Any]:
    ink, faint = "var(--ink)", "var(--line)"
    font = "system-ui, sans-serif"
    found: dict[str, Any] = chart.properties(
        width="container", height=height, background="transparent",
    ).configure(font=font).configure_view(stroke=None).configure_mark(aria=False).configure_axis(
        labelColor=ink, titleColor=ink, tickColor=faint, gridColor=faint, gridOpacity=0.6,
        domainColor=faint,
        labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelOverlap=True,
    ).to_dict()
    return found


def _main_first(name: str) -> tuple[int, str]:
    main = ("accuracy/validation", "accuracy/train", "loss/validation", "loss/train")
    return (main.index(name) if name in main else len(main), name)


def _groups(rows: Sequence[Row], results: Sequence[RunResult]) -> dict[str, list[Row]]:
    """The rows that are runs; on a ladder, where none is, the runs of each learning rate."""
    runs = {(run.config.arm_name, run.config.seed) for run in results}
    mine = [row for row in rows if (row.arm, row.seed) in runs]
    if mine:
        return {"": mine}
    groups: dict[str, list[Row]] = {}
    for run in sorted(results, key=lambda run: run.config.learning_rate):
        groups.setdefault(f"{run.config.learning_rate:g}", []).append(Row(
            net_of(run.config.arm_name), run.config.seed, run.status, {}, run.curves,
            run.config.normalizer,
        ))
    return groups


def _laid(
    rows: Sequence[Row], name: str, arms: Sequence[str], most: int, drawn_runs: int
) -> dict[str, Any]:
    """One curve of all rows: lines `[arm, seed, diverged, steps, values]`; a median has no seed.

    And for every arm `[runs without a point, all runs]`, such as of those that diverged at once.
    """
    lines: list[list[Any]] = []
    without = [[0, 0] for _ in arms]
    grouped = by_arm([row for row in rows if row.arm in arms])
    share = max(1, drawn_runs // max(1, len(grouped)))
    for arm, runs in grouped.items():
        points = [finite_points(row.curves.get(name, [])) for row in runs]
        place = arms.index(arm)
        without[place] = [sum(not len(curve) for curve in points), len(points)]
        for row, curve in list(zip(runs, points))[:share]:
            if len(curve):
                lines.append([place, row.seed, row.status == DIVERGED, *_thinned(curve, most)])
        steps, middle = median_curve(runs, points, describe(name).worst)
        if len(runs) > 1 and len(steps):
            lines.append([place, None, False, *_thinned(np.column_stack([steps, middle]), most)])
    values = [value for line in lines for value in line[4]]
    return {**_axis(name, values), "lines": lines, "without": without}


def _thinned(curve: np.ndarray, most: int) -> tuple[list[int], list[float]]:
    """Steps and values of at most so many points, the first and the last among them."""
    if len(curve) > most:
        curve = curve[np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))]
    return [int(step) for step in curve[:, 0]], [float(f"{value:.5g}") for value in curve[:, 1]]


def _axis(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Title and scale of a metric's axis."""
    known = describe(name)
    title = plain(known.title) + (f" [{known.unit}]" if known.unit else "")
    low, high = min(values, default=0.0), max(values, default=1.0)
    if "accuracy" in name:
        return {"title": title, "scale": {"domain": [accuracy_floor(low), 1], "nice": False}}
    if low > 0 and high / low > WIDE:
        scale = {"type": "log", "nice": False, "padding": 10}
        return {"title": f"{title} (logarithmic)", "scale": scale}
    return {"title": title, "scale": {"zero": False}}


def _is_finite(value: Optional[float]) -> bool:
    return value is not None and math.isfinite(value)


def _short(value: Optional[float]) -> Optional[float]:
    """A number in five digits; None if it is missing or not finite, which JSON does not have."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
