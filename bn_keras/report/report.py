"""What the results of a plan say: counts first, then those that learned, then pairs and claims.

Nothing is claimed that the seeds cannot carry: fewer than six pairs are counted and not tested, and
one seed gives its numbers alone. Every row keeps its status, and runs that are missing are named.
"""

import csv
import dataclasses
import functools
import io
import json
import math
import statistics
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Sequence

import numpy as np

from bn_keras import intervals
from bn_keras import study as studies
from bn_keras import verdicts
from bn_keras.plan import Plan
from bn_keras.registry import FILES, TABLES
from bn_keras.report.numbers import count, difference, number, p_value, share, spread
from bn_keras.report.texts import describe, plain
from bn_keras.results import DIVERGED, RunResult, Store, write_atomically
from bn_keras.study import Row

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult

LEARNED, STUCK, FINISHED = "learned", "stuck", "finished"
ACCURACY = "validation_accuracy"
SEEDS_VARY = (
    "A seed sets the initial weights, the order of the batches and the dropout masks; split and "
    "test images are the same for all seeds."
)
FIXED_IN_ADVANCE = "The tests hold for a number of seeds that was fixed in advance."
INEXACT = 0.01  # values without a known sampling error tie if they differ by less than this share


@dataclasses.dataclass(frozen=True)
class Arm:
    """All seeds of one arm, or of one net of a ladder.

    Attributes:
        name: the arm's.
        normalizer: its runs'.
        seeds: how many rows.
        learned, stuck: how many did; None where no accuracy was measured to tell. A run is stuck if
            it does no better than naming the commonest class; see `intervals.is_stuck`.
        diverged: how many did.
        learned_interval: exact 95 % interval of the share of all seeds that learn, or None.
        seconds: median of a run, or None.
        metrics: metric to `{"median", "lowest", "highest", "known"}`: of all runs, those without a
            value being at the metric's worse end, and how many have a value.
    """

    name: str
    normalizer: str
    seeds: int
    learned: Optional[int]
    stuck: Optional[int]
    diverged: int
    learned_interval: Optional[intervals.Interval]
    seconds: Optional[float]
    metrics: Mapping[str, Mapping[str, Optional[float]]]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One arm against the baseline, seed by seed.

    Attributes:
        arm, baseline: their names.
        metric: what is compared.
        pairs: intervals.Pairs, as the arm sees them; None if no seed is finished in both.
        adjusted_p: the sign test's p value, adjusted for all comparisons of this report (Holm).
        alike: whether both runs of each pair started from the same weights.
        same_data: whether they were trained on the same examples.
    """

    arm: str
    baseline: str
    metric: str
    pairs: Optional[intervals.Pairs]
    adjusted_p: Optional[float]
    alike: bool
    same_data: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """What a plan's results say. Printed on a rich console, it is all of the report as text.

    Attributes:
        plan: the Plan.
        results: the RunResults that there are.
        missing: planned run, such as `batch, seed 3`, to why it is not there.
        rows: the Rows that all of the rest is made of.
        arms: an Arm for each.
        comparisons: every arm against the study's baseline, if it has one.
        judged: a Verdict for every claim that at least one seed says something about.
        verdict: all findings as text.
        notes: how to read the tables.
    """

    plan: Plan
    results: Sequence[RunResult]
    missing: Mapping[str, str]
    rows: Sequence[Row]
    arms: Sequence[Arm]
    comparisons: Sequence[Compared]
    judged: Sequence[verdicts.Verdict]
    verdict: str
    notes: Sequence[str]

    def table(self) -> "Group":
        """The study's own tables, the arms, and the claims with what became of them."""
        from rich.console import Group

        from bn_keras.report.layout import Columns

        study = self.plan.study
        own = [Columns(headings, cells) for name, data in study.tables.items()
               for headings, cells in TABLES.get(name)(self.rows, data)]
        tables = [*own, Columns(*_arms_table(self))]
        if self.judged:
            cells = [[found.claim.text, found.verdict,
                      f"{found.effect.seen} of {found.effect.seeds}"] for found in self.judged]
            tables.append(Columns(["claim", "verdict", "seen in seeds"], cells))
        return Group(*(part for table in tables for part in (table, "")))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from bn_keras.report.layout import Paragraph

        yield self.table()
        for note in self.notes:
            yield Paragraph(note, "dim")
        yield Paragraph(f"\n{self.verdict}\n")

    def to_json(self) -> str:
        """All of the report as a strict JSON text; what is infinite or missing is null."""
        study = self.plan.study
        content = {
            "study": self.plan.name,
            "quick": self.plan.quick,
            "question": study.question,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "missing": dict(self.missing),
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "comparisons": [dataclasses.asdict(compared) for compared in self.comparisons],
            "claims": [_claim(found) for found in self.judged],
            "rows": [
                {"arm": row.arm, "seed": row.seed, "status": row.status, "outcome": outcome(row),
                 "normalizer": row.normalizer, "metrics": dict(row.metrics)}
                for row in self.rows
            ],
            "runs": [
                {**dataclasses.asdict(result), "curves": sorted(result.curves)}
                for result in self.results
            ],
        }
        return json.dumps(_finite(content), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """Every metric of every row, a line each: arm, seed, status, metric, value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arm", "seed", "status", "metric", "value"])
        for row in self.rows:
            for metric, value in row.metrics.items():
                writer.writerow([row.arm, row.seed, row.status, metric, value])
        return text.getvalue()


def make_report(
    plan: Plan, results: Sequence[RunResult], missing: Optional[Mapping[str, str]] = None
) -> Report:
    """The Report on a plan's results.

    Args:
        plan: what was to be run.
        results: what there is of it.
        missing: planned run to why it is not there; by default all that has no result is said to be
            unfinished.
    """
    if missing is None:
        there = {result.config for result in results}
        missing = {_named(run): "not finished" for run in plan.runs if run not in there}
    return _report(plan, results, missing, studies.rows(plan.study, results))


def write(store: Store) -> Report:
    """Writes a work directory's report into it.

    Writes `results.json`, `results.csv`, `picture.png`, and the text files and animations that the
    study has.

    Args:
        store: Store of the work directory.

    Raises:
        ValueError: the folder has no plan of this version, or no readable result.
        OSError: the report cannot be written.
    """
    try:
        plan = Plan.from_json((store.work_dir / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{store.work_dir}: no work directory of this version's train command ({error})"
        ) from error
    results, missing = [], {}
    for run in plan.runs:
        result, reason = store.look_up(run)
        if result is None:
            missing[_named(run)] = reason
        else:
            results.append(result)
            continue
        path = store.work_dir / "runs" / f"{store.run_name(run)}.json"
        missing[_named(run)] = (
            f"{path} is damaged or of another run" if path.exists() else "not finished"
        )
    if not results:
        reasons = ", ".join(dict.fromkeys(missing.values()))
        raise ValueError(f"{store.work_dir}: not one of its {len(plan.runs)} runs can be reported "
                         f"({reasons})")
    rows = _with_frames(store, plan, results, studies.rows(plan.study, results))
    report = _report(plan, results, missing, rows)
    _write_pictures(store, report)
    for name in plan.study.files:
        for file, text in FILES.get(name)(rows).items():
            write_atomically(store.work_dir / file, text)
    write_atomically(store.work_dir / "results.csv", report.to_csv())
    write_atomically(store.work_dir / "results.json", report.to_json())
    return report


def outcome(row: Row) -> str:
    """How a run ended: learned, stuck or diverged; finished where no accuracy can tell."""
    if row.status == DIVERGED:
        return DIVERGED
    accuracy, images, commonest = (
        row.metrics.get(name) for name in (ACCURACY, "validation_images", "validation_commonest")
    )
    if accuracy is None or images is None or commonest is None:
        return FINISHED
    return STUCK if intervals.is_stuck(accuracy, int(images), commonest) else LEARNED


def _report(
    plan: Plan, results: Sequence[RunResult], missing: Mapping[str, str], rows: Sequence[Row]
) -> Report:
    arms = [_arm(name, rows, results) for name in dict.fromkeys(row.arm for row in rows)]
    comparisons = _compare(plan.study, rows, results)
    judged = [verdicts.judge(claim, rows) for claim in plan.study.claims]
    # Where no seed has what a claim is about, as with some arms alone, there is nothing to judge.
    judged = [found for found in judged if found.effect.seeds]
    report = Report(plan, results, missing, rows, arms, comparisons, judged, "", ())
    return dataclasses.replace(
        report, verdict="\n".join(_verdict(report)), notes=tuple(_notes(report))
    )


def _arm(name: str, rows: Sequence[Row], results: Sequence[RunResult]) -> Arm:
    mine = [row for row in rows if row.arm == name]
    ends = [outcome(row) for row in mine]
    told = FINISHED not in ends and any(ACCURACY in row.metrics for row in mine)
    learned = ends.count(LEARNED)
    seconds = [result.seconds for result in results if result.config.arm_name == name]
    found: dict[str, dict[str, Optional[float]]] = {}
    for metric in dict.fromkeys(metric for row in mine for metric in row.metrics):
        values = [row.metrics[metric] for row in mine if metric in row.metrics]
        known = [value for value in values if value is not None]
        worst = _worst(metric)
        counted = known if math.isnan(worst) else known + [worst] * (len(values) - len(known))
        found[metric] = {
            "median": float(np.median(counted)) if counted else None,
            "lowest": min(known, default=None), "highest": max(known, default=None),
            "known": len(known),
        }
    return Arm(
        name=name,
        normalizer=mine[0].normalizer,
        seeds=len(mine),
        learned=learned if told else None,
        stuck=ends.count(STUCK) if told else None,
        diverged=ends.count(DIVERGED),
        learned_interval=intervals.share_interval(learned, len(mine)) if told else None,
        seconds=statistics.median(seconds) if seconds else None,
        metrics=found,
    )


def _compare(
    study: studies.Study, rows: Sequence[Row], results: Sequence[RunResult]
) -> list[Compared]:
    """Every arm against the baseline in the study's compared metric, adjusted for their number."""
    metric, base = study.compared, study.baseline
    values: dict[str, dict[int, Optional[float]]] = {}
    for row in rows:
        if metric in row.metrics or row.status == DIVERGED:
            values.setdefault(row.arm, {})[row.seed] = row.metrics.get(metric)
    if base not in values:
        return []
    runs = {(run.config.arm_name, run.config.seed): (run.start, run.data) for run in results}
    worse = describe(metric).worse
    found = []
    for arm in [arm for arm in values if arm != base]:
        mine = values[arm]
        common = sorted(set(mine) & set(values[base]))
        pairs = intervals.compare_pairs(
            mine, values[base], functools.partial(_tie, images=_images(metric, rows)),
            np.random.default_rng(0), "high" if worse == "high" else "low",
        ) if common else None
        both = [(runs.get((arm, seed)), runs.get((base, seed))) for seed in common]
        alike, same_data = (
            all(one is None or other is None or one[part] == other[part] for one, other in both)
            for part in (0, 1)
        )
        found.append(Compared(arm, base, metric, pairs, None, alike, same_data))
    tested = [compared.pairs.p_value for compared in found
              if compared.pairs and compared.pairs.p_value is not None]
    # One comparison needs no adjustment, and its report no second's import.
    adjusted = iter(intervals.holm(tested) if len(tested) > 1 else tested)
    return [
        dataclasses.replace(compared, adjusted_p=next(adjusted))
        if compared.pairs and compared.pairs.p_value is not None else compared
        for compared in found
    ]


def _images(metric: str, rows: Sequence[Row]) -> Optional[int]:
    """How many images are behind an accuracy, or None."""
    name = {ACCURACY: "validation_images", "test_accuracy": "test_images"}.get(metric, "")
    found = [row.metrics[name] for row in rows if row.metrics.get(name)]
    return int(min(value for value in found if value is not None)) if found else None


def _tie(first: float, second: float, images: Optional[int]) -> float:
    """The smallest difference that counts: the evaluations' own sampling error, if it is known."""
    if images is None:
        return INEXACT * max(abs(first), abs(second))
    return intervals.tie_width(first, second, images)


def _worst(metric: str) -> float:
    return {"low": -math.inf, "high": math.inf}.get(describe(metric).worse or "", math.nan)


def _verdict(report: Report) -> Iterator[str]:
    """The findings, a line each."""
    plan, study = report.plan, report.plan.study
    yield f"{study.question} ({study.source})" if study.source else study.question
    if plan.quick:
        yield "This is the quick version: it shows that all of it works, and decides little."
    if report.missing:
        told = "; ".join(f"{plain(run)} ({plain(why)})" for run, why in report.missing.items())
        verb = "is" if len(report.missing) == 1 else "are"
        yield f"{len(report.missing)} of {count(len(plan.runs), 'run')} {verb} missing: {told}"
    if study.baseline is not None:
        yield from _counts(report)
        yield from (_against(report, compared) for compared in report.comparisons)
        if not report.comparisons:
            names = [arm.name for arm in report.arms]
            absent = plain(study.baseline) if study.baseline not in names else (
                "a normalizer" if study.baseline == "none" else "none"
            )
            yield f"To compare, train {absent} too."
    for found in report.judged:
        yield f"• {found.claim.text} ({found.claim.source}): {found.verdict.upper()}"
        yield f"    {found.reason}"
        if found.verdict == verdicts.OTHER_REASON:
            yield f"    {found.claim.otherwise}"
        for line in found.figures:
            yield f"    {line}"


def _counts(report: Report) -> Iterator[str]:
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


def _against(report: Report, compared: Compared) -> str:
    """One comparison as a sentence."""
    arm, base, pairs = plain(compared.arm), plain(compared.baseline), compared.pairs
    if pairs is None:
        return f"No seed is finished in both {arm} and {base} yet."
    start = "" if compared.alike else " The initial weights of its pairs DIFFER."
    start += "" if compared.same_data else " The data of its pairs DIFFER."
    title = plain(describe(compared.metric).title)
    ties = f"differences in {title} up to {number(pairs.tie)} count as ties"
    more = (f"at least {count(pairs.more_pairs, 'more pair')}, all won by the same arm, would "
            "decide")
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
        return f"{found} ({ties}): too few for a test; {more}.{start}"
    test = f"exact sign test p {p_value(pairs.p_value)}"
    tested = sum(other.adjusted_p is not None for other in report.comparisons)
    p = pairs.p_value if compared.adjusted_p is None else compared.adjusted_p
    if tested > 1:
        test += f", {p_value(p)} after Holm over the {tested} comparisons with {base}"
    size = ""
    if pairs.median is not None and math.isfinite(pairs.median):
        size = f", by {difference(pairs.median)}"
        if pairs.median_interval is not None and all(map(math.isfinite, pairs.median_interval)):
            size += " [{}, {}]".format(*map(difference, pairs.median_interval))
        size += " in the median"
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

    def common(name: str) -> Any:
        values = {getattr(run, name) for run in plan.runs}
        return values.pop() if len(values) == 1 else None

    rate, optimizer = common("learning_rate"), common("optimizer")
    steps, epochs = common("steps"), common("epochs")
    length = f"{epochs:g} epochs" if epochs else f"{steps} steps" if steps else None
    rest = ", ".join(plain(text) for text in (optimizer, length) if text)
    if rate is None:
        return ""
    return f"At learning rate {rate:g}" + (f" ({rest})" if rest else "")


def _title(plan: Plan) -> str:
    """The picture's: the question, and what all runs have in common."""
    told = []
    for name, text in (("model", "{}"), ("dataset", "on {}"), ("optimizer", "{}"),
                       ("learning_rate", "learning rate {:g}"), ("batch_size", "batches of {}")):
        values = {getattr(run, name) for run in plan.runs}
        if len(values) == 1:
            told.append(text.format(*values))
    return f"{plan.study.question}\n{', '.join(told).replace(', on ', ' on ')}"


def _notes(report: Report) -> Iterator[str]:
    if any(arm.seeds > 1 for arm in report.arms):
        yield ("Cells: median [lowest, highest] over seeds. A run without a value counts as worst "
               "in the median.")
    if any(arm.learned is not None for arm in report.arms):
        yield ("Learned: better than naming the commonest class (exact binomial test, p < .001); "
               "in brackets the exact 95 % interval of the share of all seeds.")
    if report.plan.study.reported:
        yield "Elsewhere: the figure that the source or an earlier run gives."
    yield SEEDS_VARY
    if any(arm.seeds > 1 for arm in report.arms) and (report.comparisons or report.judged):
        yield FIXED_IN_ADVANCE


def _arms_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the table of arms; no column is empty, no arm hides how it ended."""
    study = report.plan.study
    metrics = [metric for metric in study.columns
               if any(metric in row.metrics for row in report.rows)]
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
    absent = "never" if describe(metric).unit == "steps" else "no value"
    everyone = spread((row.metrics[metric] for row in having), _worst(metric), absent)
    learned = [row.metrics[metric] for row in having if outcome(row) == LEARNED]
    if "accuracy" in metric and 0 < len(learned) < len(having):
        return f"learned: {spread(learned)}\nall: {everyone}"
    return everyone


def _claim(found: verdicts.Verdict) -> dict[str, Any]:
    return {
        "claim": found.claim.text, "source": found.claim.source, "verdict": found.verdict,
        "reason": found.reason, "effect": dataclasses.asdict(found.effect),
        "cause": found.cause and dataclasses.asdict(found.cause),
    }


def _named(run: Any) -> str:
    return f"{run.arm_name}, seed {run.seed}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _finite(value: Any) -> Any:
    """JSON's values of a nested structure: no infinity, no NaN, no NumPy."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_frames(
    store: Store, plan: Plan, results: Sequence[RunResult], rows: Sequence[Row]
) -> list[Row]:
    """The rows, that of the first seed with readable frames having these, for each animated arm."""
    frames: dict[tuple[str, int], Mapping[str, Any]] = {}
    for arm in dict.fromkeys(arm for pair in plan.study.animations.values() for arm in pair):
        for result in results:
            if result.config.arm_name == arm:
                found = store.frames(result.config)
                if found is not None:
                    frames[arm, result.config.seed] = found
                    break
    return [
        dataclasses.replace(row, frames=frames[row.arm, row.seed])
        if (row.arm, row.seed) in frames else row
        for row in rows
    ]


def _write_pictures(store: Store, report: Report) -> None:
    from bn_keras.report import animation, figures  # matplotlib takes a second

    study = report.plan.study
    names = [f"outcomes:{study.compared}" if name == "outcomes" else name
             for name in study.figures]
    if names:
        picture = figures.picture(report.rows, names, _title(report.plan))
        write_atomically(store.work_dir / "picture.png", picture)
    captured = {row.arm: row for row in report.rows if row.frames}
    for name, (upper, lower) in study.animations.items():
        if upper in captured and lower in captured:
            title = f"{name}: what every layer sees"
            images = animation.layer_histograms(captured[upper], captured[lower], title)
            path = store.work_dir / f"animation-{name}"
            write_atomically(path.with_suffix(".gif"), animation.gif(images))
            write_atomically(path.with_suffix(".html"), animation.page(images, title))
