"""From a plan to its report: what commands, notebooks and tests call. Prints nothing.

    report = experiment.run(plan.make_plan("comparison", {"steps": 50}, seeds=6))

`prepare`, `train` and `report` are its three parts, for callers that report progress in between.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile
import threading
import time
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from bn_keras import data, executors
from bn_keras.config import STEPS, ConfigError, DataSettings, RunConfig
from bn_keras.data import Splits
from bn_keras.native_log import quiet_native_log
from bn_keras.plan import PLAN_FILE, Plan, groups, loss_name
from bn_keras.report.report import Report, write
from bn_keras.results import RunResult, Store, write_atomically
from bn_keras.writers import Writer

TIMED = 3  # graphs that an estimate looks at


@dataclasses.dataclass(frozen=True)
class Work:
    """A plan with its data and its folder.

    Attributes:
        plan: the Plan that was asked for.
        store: Store of its work directory.
        notes: sentences on what was assumed when the data were read, and what was left out.
    """

    plan: Plan
    store: Store
    notes: Tuple[str, ...]
    splits: Dict[DataSettings, Splits] = dataclasses.field(repr=False)

    def load(self, config: RunConfig) -> Splits:
        """The data of a run."""
        return self.splits[config.part(DataSettings)]

    def missing(self) -> List[RunConfig]:
        """The runs of the plan that are not stored; `prepare` dropped those of other data."""
        return [config for config in self.plan.runs if self.store.find(config) is None]


def run(
    plan: Plan, logdir: Union[str, pathlib.Path] = "runs", workers: Optional[int] = None
) -> Report:
    """Trains what is not stored yet, and reports on all of it.

    Args:
        plan: Plan.
        logdir: folder in which the plan's work directory is made.
        workers: as for `train`.

    Raises:
        ConfigError, DataError, OSError: as for `prepare` and `train`.
    """
    work = prepare(plan, logdir)
    for _ in train(work, workers):
        pass
    return report(work.store)


def prepare(plan: Plan, logdir: Union[str, pathlib.Path] = "runs") -> Work:
    """Reads the data of a plan and makes its work directory; TensorFlow is not loaded.

    Args:
        plan: Plan.
        logdir: folder in which the work directory is made.

    Raises:
        ConfigError: settings that do not go together, or a folder that cannot be written to.
        DataError: missing, altered or unfit data.
    """
    splits: Dict[DataSettings, Splits] = {}
    for config in plan.runs:
        settings = config.part(DataSettings)
        if settings not in splits:
            splits[settings] = data.load(
                settings.dataset, settings.data_dir, settings.train_size,
                settings.validation_size, settings.test_size, settings.image_size,
            )
        if splits[settings].regression:
            plan = plan.of_numbers()
        _check_data(plan, config, splits[settings])
    notes = dict.fromkeys(note for split in splits.values() for note in split.notes)
    store = store_of(plan, logdir)
    _make_folder(store.work_dir)
    known = _with_earlier_runs(plan, store)
    stale = _of_other_data(known, store, splits)
    for config in stale:
        store.remove(config)
    if stale:
        notes[f"{len(stale)} stored runs were trained on other data and are dropped"] = None
    runs = tuple(run for run in known.runs if run in plan.runs or run not in stale)
    write_atomically(store.work_dir / PLAN_FILE, dataclasses.replace(known, runs=runs).to_json())
    return Work(plan, store, tuple(notes), splits)


def train(
    work: Work,
    workers: Optional[int] = None,
    show: Optional[Callable[[str, int], Writer]] = None,
) -> Iterator[RunResult]:
    """Trains the missing runs.

    Args:
        work: as `prepare` made it.
        workers: how many graphs are trained at the same time; None for as many as there are cores.
        show: as for `runner.Runner`.

    Yields:
        Each run's RunResult as soon as it is stored.

    Raises:
        ConfigError: settings that do not go together, known once the model is built.
        OSError: a result could not be stored; those before it are.
    """
    missing = set(work.missing())
    if not missing:
        return
    stacks, workers = _to_train(work), workers_of(work.plan, workers)
    _load_tensorflow(workers)
    from bn_keras import runner

    stop = threading.Event()
    train_stack = runner.Runner(work.load, work.store, show, stop)
    for found in executors.in_threads(train_stack, stacks, workers, stop):
        for result in found:
            if result.config in missing:
                work.store.add(result)
                yield result


def estimate(work: Work, workers: Optional[int] = None) -> float:
    """About how many seconds the missing runs take, TensorFlow's import left out.

    Trains the first missing run of at most TIMED graphs for 10 and for 20 steps, and keeps nothing
    of it. All further graphs count as the mean of those.

    Args:
        work: as `prepare` made it.
        workers: as for `train`.

    Raises:
        ConfigError: settings that do not go together, known once the model is built.
    """
    stacks, workers = _to_train(work), workers_of(work.plan, workers)
    _load_tensorflow(workers)
    from bn_keras import runner

    found = []
    for group in stacks[:TIMED]:
        total = group[0][0].total_steps(len(work.load(group[0][0]).train))
        with tempfile.TemporaryDirectory() as folder:
            train_stack = runner.Runner(work.load, Store(folder))
            seconds = []
            for steps in (10, 10, 20):  # the first one builds and traces
                started = time.perf_counter()
                train_stack([
                    dataclasses.replace(run, steps=min(steps, total), epochs=None)
                    for run in group[0]
                ])
                seconds.append(time.perf_counter() - started)
        first, short, longer = seconds
        step = max(longer - short, 0.0) / 10
        one = short + step * (total - 10) if total > 20 else longer
        found.append(max(first - short, 0.0) + one * len(group))
    if not found:
        return 0.0
    mean = sum(found) / len(found)
    return (sum(found) + mean * (len(stacks) - len(found))) / workers


def _to_train(work: Work) -> List[List[List[RunConfig]]]:
    """The groups of stacks that have missing runs.

    All of it follows from the plan and not from what is missing, so that a command that goes on
    computes the same digits: a stack with a missing run is trained whole.
    """
    missing = set(work.missing())
    found = [[stack for stack in group if missing & set(stack)] for group in groups(work.plan.runs)]
    return [group for group in found if group]


def _load_tensorflow(workers: int) -> None:
    """Loads what trains, quietly, with threads for that many nets at the same time."""
    # One core a run wastes less than all cores on each op of one run after the other.
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, _cores() // workers)))
    with quiet_native_log():
        from bn_keras import runner

        runner.start_devices()


def report(store: Store) -> Report:
    """Writes and returns the report of a work directory; arguments and errors as `report.write`.

    In a process that has trained, TensorBoard's folder gets the comparison of all runs as well.
    """
    found = write(store)
    if "tensorflow" in sys.modules:
        from bn_keras.report.tensorboard import comparison
        from bn_keras.writers import tensorboard

        tensorboard.write_comparison(store.work_dir / "tensorboard", **comparison(found))
    return found


def workers_of(plan: Plan, workers: Optional[int] = None) -> int:
    """How many graphs of a plan are trained at the same time, if at most `workers` may be."""
    return min(len(groups(plan.runs)), workers or _cores())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_data(plan: Plan, config: RunConfig, splits: Splits) -> None:
    """Checks the settings of a run that depend on its data."""
    if config.batch_size > len(splits.train):
        raise ConfigError(
            f"batch_size={config.batch_size}: the dataset has {len(splits.train)} training "
            f"images; expected at most {len(splits.train)}."
        )
    steps = config.total_steps(len(splits.train))
    if not STEPS.accepts(steps):
        raise ConfigError(
            f"epochs={config.epochs:g}: {steps:,} steps of training; expected {STEPS.expected}"
        )
    if splits.regression and "accuracy" in plan.study.compared and plan.study.baseline is not None:
        raise ConfigError(
            f"dataset={config.dataset}: its labels are numbers, and this comparison is one of "
            "accuracies; expected a dataset of classes, or --study=bad_init_regression"
        )
    loss_name(config, splits.regression)


def store_of(plan: Plan, logdir: Union[str, pathlib.Path]) -> Store:
    """The Store of a plan's work directory, which may not be there yet."""
    try:
        return Store(pathlib.Path(logdir).expanduser() / plan.folder_name())
    except RuntimeError as error:  # no such ~user
        raise _unwritable(logdir, error) from error


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # or a NUL in the name
        raise _unwritable(path.parent, error) from error


def _unwritable(logdir: Union[str, pathlib.Path], error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"logdir={str(logdir)!r}: cannot be written to ({reason}); name another folder."
    )


def _with_earlier_runs(plan: Plan, store: Store) -> Plan:
    """The plan with the runs of earlier plans for this folder, so that a report shows all."""
    try:
        earlier = Plan.from_json((store.work_dir / PLAN_FILE).read_text(encoding="utf-8"))
        return plan.merged(earlier)
    except (OSError, ValueError):
        return plan  # there is none, or it is damaged or of another version


def _of_other_data(
    plan: Plan, store: Store, splits: Mapping[DataSettings, Splits]
) -> List[RunConfig]:
    """The runs whose stored results are of data that have changed since."""
    found = []
    for config in plan.runs:
        data_now = splits.get(config.part(DataSettings))  # of an earlier plan's arm not read
        result = store.find(config)
        if data_now is not None and result is not None and result.data != data_now.digest():
            found.append(config)
    return found
