"""Findings in words: the lines of the verdict, the notes, and the cells of the table of arms."""

import math
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import numpy as np

from bn_keras import intervals, verdicts
from bn_keras.config import MeasureSettings
from bn_keras.metrics import describe, matches
from bn_keras.plan import Plan
from bn_keras.registry import PROBES, TABLES
from bn_keras.report.findings import (
    ACCURACY,
    FINISHED,
    LEARNED,
    STUCK,
    Arm,
    Compared,
    best_settings,
    outcome,
    workable_rates,
)
from bn_keras.report.numbers import count, difference, number, p_value, share, spread
from bn_keras.results import DIVERGED
from bn_keras.study import Row, net_of
from bn_keras.texts import plain

if TYPE_CHECKING:
    from bn_keras.report.report import Report

BATCH_ACCURACY = "validation_accuracy_batch_statistics"
LAG = 0.05  # of accuracy, between batch statistics and moving averages; less is noise of batches
ARMS, CLAIMS = "Arms", "Claims"  # captions of tables
SAME_START = (
    "All seeds start from the same weights: a seed sets the order of the batches and the dropout "
    "masks alone, and the spread over seeds is that of training from this one start."
)
BEST = (
    "Best at: the setting with the best median over seeds in validation; the figures that are "
    "compared are of the test examples, which had no part in the choice."
)
RATES = (
    "Largest workable learning rate: the largest one that was tried that ends within a tenth of "
    "the best median of all, none below it failing."
)
QUICK = "This is the quick version: it shows that all of it works, and decides little."
SEEDS_VARY = (
    "A seed sets the initial weights, the order of the batches and the dropout masks; split and "
    "test images are the same for all seeds."
)
FIXED_IN_ADVANCE = "The tests hold for a number of seeds that was fixed in advance."
ONE_SIDED = (
    "A claim says beforehand which way a difference goes, so 5 of 5 seeds decide (one-sided test, "
    "95 %)."
)
TWO_SIDED = "A comparison of arms looks both ways, so it takes 6 of 6 (two-sided test, 95 %)."
MOST_ASKED_FOR = 6  # columns beside the study's own; a probe of all layers has a hundred


def verdict(report: "Report") -> Iterator[str]:
    """The findings, a line each."""
    plan, study = report.plan, report.plan.study
    yield f"{study.question} ({study.source})" if study.source else study.question
    if plan.quick:
        yield QUICK
    if report.missing:
        told = "; ".join(f"{plain(run)} ({plain(why)})" for run, why in report.missing.items())
        verb = "is" if len(report.missing) == 1 else "are"
        yield f"{len(report.missing)} of {count(len(plan.runs), 'run')} {verb} missing: {told}"
    yield from against_baseline(report)
    for found in report.judged:
        yield f"• {found.claim.text} ({found.claim.source}): {found.verdict.upper()}"
        yield f"    {found.reason}"
        if found.verdict == verdicts.OTHER_REASON:
            yield f"    {found.claim.otherwise}"
        for line in found.figures:
            yield f"    {line}"


def against_baseline(report: "Report") -> Iterator[str]:
    """How the arms ended and compare with the study's baseline; nothing if it has none."""
    study = report.plan.study
    if study.baseline is None:
        return
    yield from _best(report) if study.axes else _counts(report)
    yield from (against(report, compared) for compared in report.comparisons)
    if not report.comparisons:
        names = [net_of(arm.name) if study.axes else arm.name for arm in report.arms]
        absent = plain(study.baseline) if study.baseline not in names else (
            "a normalizer" if study.baseline == "none" else "none"
        )
        yield f"To compare, train {absent} too."
    yield from _lagging(report)


def _counts(report: "Report") -> Iterator[str]:
    """In how many seeds the arms learned, and how far those came that did."""
    settings = _settings(report.plan)
    metric = report.plan.study.compared
    if all(arm.seeds == 1 for arm in report.arms):
        numbers = ", ".join(f"{plain(row.arm)} {_single(row, metric)}" for row in report.rows)
        yield f"{settings or 'In the end'}, {plain(describe(metric).title)} of one seed: {numbers}."
        return
    told = []
    for arm in report.arms:
        if arm.learned is None:
            if arm.diverged:
                told.append(f"{plain(arm.name)} diverged in {arm.diverged} of {arm.seeds}")
            continue
        text = f"{plain(arm.name)} learned in {arm.learned} of {count(arm.seeds, 'seed')}"
        if told:
            text = f"{plain(arm.name)} in {arm.learned} of {arm.seeds}"
        if arm.learned_interval is not None:
            text += " [{}, {}]".format(*(share(end, 2) for end in arm.learned_interval))
        if arm.diverged:
            text += f" ({arm.diverged} diverged)"
        told.append(text)
    if told:
        yield f"{settings}, {_listed(told)}." if settings else f"{_listed(told)}."
    if metric != ACCURACY:
        return
    reached = []
    for arm in report.arms:
        values = [row.metrics[ACCURACY] for row in report.rows
                  if row.arm == arm.name and outcome(row) == LEARNED]
        if values:
            reached.append(f"{plain(arm.name)} {spread(values)}")
    if reached:
        yield ("Validation accuracy of those that learned, median [lowest, highest]: "
               f"{', '.join(reached)}.")


def _lagging(report: "Report") -> Iterator[str]:
    """Arms whose moving averages have not caught up with their weights."""
    told = []
    for arm in report.arms:
        mine = [row.metrics for row in report.rows if row.arm == arm.name]
        pairs = [(metrics.get(ACCURACY), metrics.get(BATCH_ACCURACY)) for metrics in mine]
        known = [(moving, batch) for moving, batch in pairs
                 if moving is not None and batch is not None]
        if known and float(np.median([batch - moving for moving, batch in known])) > LAG:
            moving, batch = (float(np.median(values)) for values in zip(*known))
            told.append(f"{plain(arm.name)} ({number(moving)}, with batch statistics "
                        f"{number(batch)})")
    if told:
        yield (f"The moving averages of {_listed(told)} lag behind the weights: too few steps, or "
               "too high a momentum, leave the population statistics near where they started. "
               "Train longer, or with a lower momentum.")


def _best(report: "Report") -> Iterator[str]:
    """Where the nets of a sweep are best, and what the best ones give."""
    study = report.plan.study
    metric = describe(study.compared)
    for net, best in best_settings(study, report.rows).items():
        tried = ", ".join(f"{name}={setting(value)}" for name, value in best.settings.items())
        mine = [row for row in report.rows if row.arm == best.arm]
        values = [row.metrics.get(metric.name) for row in mine]
        ends = [outcome(row) for row in mine]
        some = "" if FINISHED in ends else f", {ends.count(LEARNED)} of {len(ends)} seeds learned"
        edge = [
            name for name, value in best.settings.items()
            if len(study.axes[name]) > 2 and value in (min(study.axes[name]), max(study.axes[name]))
        ] if all(type(value) in (int, float) for value in best.settings.values()) else []
        more = f"; it is the end of what was tried of {', '.join(edge)}" if edge else ""
        yield (f"{plain(net)} is best at {tried} (chosen on validation): {plain(metric.title)} "
               f"{spread(values, metric.worst)}{some}{more}.")


def table_of_sweep(report: "Report") -> tuple[list[str], list[list[str]]]:
    """Headings and cells: the best setting of each net, its figures, its largest workable rate."""
    study = report.plan.study
    chosen, reported = map(describe, study.columns)
    rates = workable_rates(study, report.rows)
    headings = ["net", "best at", chosen.title, reported.title]
    headings += ["largest workable learning rate"] if rates else []
    cells = []
    for net, best in best_settings(study, report.rows).items():
        mine = [row for row in report.rows if row.arm == best.arm]
        cells.append([
            plain(net), "\n".join(f"{name} {setting(v)}" for name, v in best.settings.items()),
            *(spread([row.metrics.get(metric.name) for row in mine], metric.worst)
              for metric in (chosen, reported)),
        ])
        if rates:
            cells[-1].append(spread(rates[net], -math.inf, "none") if rates[net] else "–")
    return headings, cells


def setting(value: object) -> str:
    """A setting's value in a sentence."""
    return f"{value:g}" if type(value) is float else plain(value)


def against(report: "Report", compared: Compared) -> str:
    """One comparison as a sentence."""
    arm, base, pairs = plain(compared.arm), plain(compared.baseline), compared.pairs
    if pairs is None:
        return f"No seed is finished in both {arm} and {base} yet."
    start = "" if compared.alike else " The initial weights of its pairs DIFFER."
    start += "" if compared.same_data else " The data of its pairs DIFFER."
    title = plain(describe(compared.metric).title)
    ties = f"differences in {title} up to {number(pairs.tie)} count as ties"
    more = f"{count(pairs.more_pairs, 'more pair')}, all won by the same arm, would decide"
    if pairs.count == 1:
        return f"One pair of {arm} and {base} is too few to tell them apart; {more}.{start}"
    up, down = ("lower", "higher") if describe(compared.metric).worse == "high" else (
        "higher", "lower"
    )
    if pairs.lost > pairs.won:
        up, down = down, up
    most, least = max(pairs.won, pairs.lost), min(pairs.won, pairs.lost)
    rest = [f"{down} in {least}"] * bool(least) + [f"tied in {pairs.tied}"] * bool(pairs.tied)
    found = ", ".join([f"{arm} is {up} than {base} in {most} of {pairs.count} pairs", *rest])
    if pairs.p_value is None:
        total = len(report.comparisons)
        tests = "a two-sided test" if total == 1 else f"two-sided tests of {total} comparisons"
        return (f"{found} ({ties}): too few for {tests} ({intervals.fewest_pairs(total)} pairs "
                f"at least); {more}.{start}")
    test = f"exact sign test p {p_value(pairs.p_value)}"
    tested = sum(other.adjusted_p is not None for other in report.comparisons)
    p = pairs.p_value if compared.adjusted_p is None else compared.adjusted_p
    if tested > 1:
        test += f", {p_value(p)} after Holm over the {tested} comparisons with {base}"
    size = ""
    if pairs.median is not None and math.isfinite(pairs.median):
        size = f", in the median by {difference(pairs.median)}"
        if pairs.median_interval is not None and all(map(math.isfinite, pairs.median_interval)):
            low, high = map(difference, pairs.median_interval)
            size += f" (95 % interval {low} to {high})"
    if p >= intervals.SIGNIFICANCE:
        found = f"No difference between {arm} and {base} is shown: {found}"
        size += f"; {more}" if pairs.more_pairs else ""
    return f"{found} ({test}; {ties}){size}.{start}"


def _single(row: Row, metric: str) -> str:
    value, end = row.metrics.get(metric), outcome(row)
    shown = [] if value is None else [number(value)]
    return " ".join(shown + [f"({end})"] * (end != FINISHED)) or "no value"


def _settings(plan: Plan) -> str:
    """`At learning rate 3 (sgd, 100 steps)`, as far as all runs share it."""
    rate, steps, epochs = map(plan.common, ("learning_rate", "steps", "epochs"))
    length = f"{epochs:g} epochs" if epochs else f"{steps} steps" if steps else None
    rest = ", ".join(plain(text) for text in (plan.optimizer, length) if text)
    if rate is None:
        return ""
    return f"At learning rate {rate:g}" + (f" ({rest})" if rest else "")


def notes(report: "Report") -> Iterator[str]:
    """How to read the tables, and how far the findings go."""
    if any(arm.seeds > 1 for arm in report.arms):
        yield ("Cells: median [lowest, highest] over seeds. A run without a value counts as worst "
               "in the median.")
    if any(arm.learned is not None for arm in report.arms):
        yield ("Learned: better than naming the commonest class (exact binomial test, p < .001); "
               "in brackets the exact 95 % interval of the share of all seeds.")
    if report.plan.study.reported:
        full = ", for the full version and not for this quick one" * report.plan.quick
        yield f"Elsewhere: the figure that the source or an earlier run gives{full}."
    asked = len(_asked_for(report))
    if asked > MOST_ASKED_FOR:
        yield f"{asked} more metrics of the probes that were asked for stand in results.csv."
    if report.plan.study.axes:
        yield BEST
        if workable_rates(report.plan.study, report.rows):
            yield RATES
    starts = {(result.config.seed, result.start) for result in report.results}
    same = len(starts) > 1 and len({start for _, start in starts}) == 1
    yield SAME_START if same else SEEDS_VARY
    for note in dict.fromkeys(note for result in report.results for note in result.notes):
        yield plain(f"{note[0].upper()}{note[1:]}.")
    if any(arm.seeds > 1 for arm in report.arms) and (report.comparisons or report.judged):
        yield " ".join([
            FIXED_IN_ADVANCE, *[ONE_SIDED] * bool(report.judged),
            *[TWO_SIDED] * bool(report.judged and report.comparisons),
        ])


def seen(judged: verdicts.Verdict) -> str:
    """In how many seeds the effect of a claim is seen and, where it names one, its cause."""
    text = f"{judged.effect.seen} of {judged.effect.seeds}"
    if judged.cause is None:
        return text
    cause = f"{judged.cause.seen} of {judged.cause.seeds}" if judged.cause.seeds else "not measured"
    return f"{text}\ncause: {cause}"


def tables(report: "Report") -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """(caption, headings, cells) of every table: the study's own, arms, best settings, claims."""
    study = report.plan.study
    for name, data in study.tables.items():
        laid = TABLES.get(name)(report.rows, data)
        for part, (headings, cells) in enumerate(laid, 1):
            caption = name.replace("_", " ").capitalize()
            yield f"{caption} ({part})" if len(laid) > 1 else caption, headings, cells
    yield ARMS, *table_of_arms(report)
    if study.axes:
        yield "Best settings", *table_of_sweep(report)
    if report.judged:
        yield CLAIMS, *table_of_claims(report)


def table_of_arms(report: "Report") -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the table of arms; no column is empty, no arm hides how it ended."""
    study = report.plan.study
    asked = _asked_for(report)
    metrics = [metric for metric in study.columns
               if any(metric in row.metrics for row in report.rows)]
    metrics += asked if len(asked) <= MOST_ASKED_FOR else []
    timed = all(arm.seconds is not None for arm in report.arms)
    headings = ["arm", "runs", *(plain(describe(metric).title) for metric in metrics)]
    cells = []
    for arm in report.arms:
        mine = [row for row in report.rows if row.arm == arm.name]
        line = [plain(arm.name), _ends(arm)]
        for metric in metrics:
            text = _cell(metric, mine)
            before = study.reported.get((arm.name, metric))
            line.append(text if before is None else f"{text}\nelsewhere: {before}")
        cells.append(line + ([f"{arm.seconds:.1f}"] if timed else []))
    return headings + (["seconds per run"] if timed else []), cells


def table_of_claims(report: "Report") -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the table of claims."""
    cells = [[found.claim.text, found.verdict, seen(found)] for found in report.judged]
    return ["claim", "verdict", "seen in seeds"], cells


def _asked_for(report: "Report") -> list[str]:
    """The metrics, beside the study's columns, of probes that its own settings do not name."""
    plan, study = report.plan, report.plan.study
    base = {**study.base, **(study.quick if plan.quick else {})}
    usual: set[str] = set()
    for settings in study.arms.values():
        measured: Any = {**base, **settings}.get("measure", MeasureSettings().measure)
        usual.update(measured)
    asked = {name for run in plan.runs for name in run.measure} - usual
    patterns = [pattern for probe in {name.partition(":")[0] for name in asked}
                for pattern in PROBES.properties(probe).get("metrics", {})]
    found = dict.fromkeys(metric for row in report.rows for metric in row.metrics)
    return [metric for metric in found if metric not in study.columns
            and any(matches(pattern, metric) for pattern in patterns)]


def _ends(arm: Arm) -> str:
    if arm.learned is None:
        lines = [str(arm.seeds)]
    else:
        lines = [f"{arm.learned} of {arm.seeds} learned"]
        if arm.learned_interval is not None and arm.seeds > 1:
            lines.append("[{}, {}]".format(*(share(end, 2) for end in arm.learned_interval)))
    lines += [f"{number} {word}" for number, word in (
        (arm.stuck, STUCK), (arm.diverged, DIVERGED)) if number]
    return "\n".join(lines)


def _cell(metric: str, rows: Sequence[Row]) -> str:
    """A metric of one arm: of an accuracy, those that learned apart from all."""
    having = [row for row in rows if metric in row.metrics]
    known = describe(metric)
    absent = "never" if known.unit == "steps" else "no value"
    everyone = spread((row.metrics[metric] for row in having), known.worst, absent)
    learned = [row.metrics[metric] for row in having if outcome(row) == LEARNED]
    if "accuracy" in metric and 0 < len(learned) < len(having):
        return f"learned: {spread(learned)}\nall: {everyone}"
    return everyone


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
