"""A work directory's results as a table, a verdict, a picture and a JSON file. No TensorFlow."""

import dataclasses
import json
import statistics
from typing import Optional

from rich import box
from rich.table import Table

from bn_keras import figures, stats, study_report
from bn_keras.results import DIVERGED, write_atomically

STUCK = "a run is stuck if its validation accuracy ends at no more than twice chance"


@dataclasses.dataclass(frozen=True)
class Arm:
    """All seeds of one normalizer.

    Attributes:
        name: the normalizer.
        seeds: how many runs.
        validation, test: (mean, low, high) accuracy; see `stats.mean_interval`.
        diverged, stuck: how many runs.
        steps_to_90_percent: median over the runs that got there, or None.
        reached: how many did.
        seconds: median of a run.
        by_seed: seed to validation accuracy.
        one_at_a_time: mean accuracy over 100 test images predicted singly; None where it was not
            measured, as of runs side by side in one graph.
    """

    name: str
    seeds: int
    validation: tuple
    test: tuple
    diverged: int
    stuck: int
    steps_to_90_percent: Optional[float]
    reached: int
    seconds: float
    by_seed: dict
    one_at_a_time: Optional[float]

    def failures(self):
        """(count, word) of each way to fail."""
        return [(self.diverged, "diverged"), (self.stuck, "stuck")]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a set of results says.

    Attributes:
        results: list of RunResult.
        arms: list of Arm.
        verdict: a sentence.
    """

    results: list
    arms: list
    verdict: str

    note = f"mean [95 % interval over seeds]; {STUCK}"

    def table(self):
        """A rich Table with a row for every arm."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("arm")
        for heading in ("seeds", "validation\naccuracy", "test\naccuracy", "failed",
                        "steps to\n90 %", "100 one\nby one", "s/run"):
            table.add_column(heading, justify="right")
        for arm in self.arms:
            failures = [f"{count} {word}" for count, word in arm.failures() if count]
            reached = "never"
            if arm.reached:
                reached = f"{arm.steps_to_90_percent:g} ({arm.reached}/{arm.seeds})"
            table.add_row(
                arm.name, str(arm.seeds), interval(arm.validation), interval(arm.test),
                "\n".join(failures) or "–", reached,
                "–" if arm.one_at_a_time is None else share(arm.one_at_a_time),
                f"{arm.seconds:.1f}",
            )
        return table

    def to_json(self):
        """Verdict, arms and runs as a JSON text."""
        runs = [
            {
                **dataclasses.asdict(result.config),
                **{key: getattr(result, key) for key in ("status", "steps", "seconds", "start")},
                **result.metrics,
                "versions": result.versions,
            }
            for result in self.results
        ]
        arms = [dataclasses.asdict(arm) for arm in self.arms]
        content = {"verdict": self.verdict, "arms": arms, "runs": runs}
        return json.dumps(content, indent=1, allow_nan=False)


def make_report(results):
    """Summarizes results that differ in normalizer and seed only.

    Args:
        results: list of RunResult, not empty.
    """
    arms = [_arm(name, runs) for name, runs in figures.by_arm(results).items()]
    return Report(list(results), arms, _verdict(results, arms))


def write(store):
    """Writes `accuracy.png` and `results.json` into a store's work directory.

    Of a study's folder, what `study_report.write` makes of it.

    Returns:
        `(Report or StudyReport, bytes of the PNG)`.

    Raises:
        FileNotFoundError: the folder has no plan, or no result yet.
        ValueError: the plan cannot be read.
    """
    results = store.results()
    if not results:
        raise FileNotFoundError(f"{store.work_dir}: no finished run yet")
    if store.study() is not None:
        return study_report.write(store, results)
    report = make_report(results)
    config = results[0].config
    rate = f"{config.optimizer}, learning rate {config.learning_rate:g}"
    title = f"{config.model} on {config.dataset}, {rate}, batch {config.batch_size}"
    picture = figures.accuracy_over_steps(results, title)
    write_atomically(store.work_dir / "accuracy.png", picture)
    write_atomically(store.work_dir / "results.json", report.to_json())
    return report, picture


def interval(values):
    """`mean [low, high]` of an accuracy, the bounds cut to what an accuracy can be."""
    mean, low, high = values
    return share(mean) if low is None else f"{share(mean)} [{share(low)}, {share(high)}]"


def share(value):
    """A share of 1 with three digits and no leading zero, such as .977."""
    text = f"{min(1, max(0, value)):.3f}"
    return text.removeprefix("0")


def _arm(name, runs):
    accuracies = {run.config.seed: run.metrics["validation_accuracy"] for run in runs}
    diverged = [run for run in runs if run.status == DIVERGED]
    stuck = [
        run.metrics for run in runs
        if run.status != DIVERGED
        and run.metrics["validation_accuracy"] <= 2 * run.metrics["chance"]
    ]
    reached = [
        run.metrics["steps_to_90_percent"] for run in runs
        if run.metrics["steps_to_90_percent"] is not None
    ]
    single = [run.metrics.get("one_at_a_time_accuracy") for run in runs]
    return Arm(
        name=name,
        seeds=len(runs),
        validation=stats.mean_interval(list(accuracies.values())),
        test=stats.mean_interval([run.metrics["test_accuracy"] for run in runs]),
        diverged=len(diverged),
        stuck=len(stuck),
        steps_to_90_percent=statistics.median(reached) if reached else None,
        reached=len(reached),
        seconds=statistics.median(run.seconds for run in runs),
        by_seed=accuracies,
        one_at_a_time=None if None in single else statistics.mean(single),
    )


def _verdict(results, arms):
    rate = f"At learning rate {results[0].config.learning_rate:g}"
    base = next((arm for arm in arms if arm.name == "none"), None)
    others = [arm for arm in arms if arm.name != "none"]
    if base is None or not others:
        outcomes = ", ".join(f"{arm.name} {_outcome(arm)}" for arm in arms)
        missing = "none" if base is None else "a normalizer"
        return f"{rate}, validation accuracy: {outcomes}. To compare, train {missing} too."
    return " ".join(f"{rate}, {_against(results, arm, base)}." for arm in others)


def _against(results, arm, base):
    both = f"{arm.name} {_outcome(arm)}, {base.name} {_outcome(base)}"
    if not set(arm.by_seed) & set(base.by_seed):
        return f"no seed is finished in both arms yet: {both}"
    mean, low, high, pairs, wins = stats.paired_difference(arm.by_seed, base.by_seed)
    if low is None:
        return f"one seed alone gives {both}; three would give an interval"
    low, high = max(-1, low), min(1, high)  # as far apart as two accuracies can be
    if low > 0:
        finding = f"{arm.name} is better than {base.name}"
    elif high < 0:
        finding = f"{arm.name} is worse than {base.name}"
    else:
        finding = f"no difference between {arm.name} and {base.name} is shown"
    return (
        f"{finding} in validation accuracy: {both}, difference {mean:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], higher in {wins} of {pairs} {_pairs(results, arm, base)}"
    )


def _pairs(results, arm, base):
    """What the pairs are, by the digests of the weights that their runs started from."""
    starts = {}
    for result in results:
        if result.config.normalizer in (arm.name, base.name):
            starts.setdefault(result.config.seed, set()).add(result.start)
    alike = all(len(digests) == 1 for digests in starts.values())
    return "pairs with equal initial weights" if alike else "pairs, whose initial weights DIFFER"


def _outcome(arm):
    told = [f"{count} of {arm.seeds} {word}" for count, word in arm.failures() if count]
    return f"{share(arm.validation[0])} ({', '.join(told)})" if told else share(arm.validation[0])
