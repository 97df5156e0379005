"""`bn_keras.run` and `bn_keras.load`: a study or stored results as one call, for notebooks.

    report = bn_keras.run("learning_rates", quick=True)

The verb `train` shares `train_and_tell` and `same_data_everywhere`.
"""

import contextlib
import pathlib
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from bn_keras import experiment
from bn_keras.config import COUNT, INDEX, NAMES, RUN_FIELDS, ConfigError, check_value, names_of
from bn_keras.data import absolute
from bn_keras.plan import Plan, make_plan
from bn_keras.registry import STUDIES, did_you_mean
from bn_keras.report.report import Report, read
from bn_keras.results import Store
from bn_keras.texts import plain

if TYPE_CHECKING:
    from rich.console import Console


def run(
    study: str,
    *,
    quick: bool = False,
    seeds: Optional[int] = None,
    first_seed: int = 0,
    arms: Sequence[str] = (),
    logdir: Union[str, pathlib.Path] = "runs",
    workers: Optional[int] = None,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Trains a study, or goes on where an earlier call stopped, and reports on it.

    Ctrl-C keeps the runs that are finished; the same call trains the others.

    Args:
        study: its name, such as "comparison" or "learning_rates"; `bn-keras list` has them all.
        quick: whether to take its short version, of some seconds.
        seeds: how many runs of each arm; None for the study's own number.
        first_seed: seeds count up from here.
        arms: the only arms to train; none named means all. Those of "comparison" are normalizers,
            of which `none` is the baseline.
        logdir: folder in which a work directory for these settings is made.
        workers: how many nets are trained at the same time; None for as many as there are cores.
        progress: whether to tell how far it is; False prints nothing.
        **settings: fields of RunConfig, in place of the study's own in every arm. In "comparison" a
            list of values makes an axis: learning_rate=[0.01, 0.1].

    Returns:
        The Report on all runs in the work directory, those of earlier calls with other arms or
        seeds included. A notebook shows it as a table with its picture.

    Raises:
        ConfigError: settings that do not exist, do not go together or are out of range.
        UnknownName: an unknown study, model, dataset, …; the message lists the known ones.
        DataError: missing, altered or unfit data.
        OSError: a result could not be stored; those before it are.

    Example:
        >>> from bn_keras import run
        >>> report = run("comparison", seeds=1, steps=2, model="ioffe_mlp", batch_size=8,
        ...              train_size=64, validation_size=32, test_size=32, progress=False)
        >>> report
        <Report on comparison: 2 arms, 2 of 2 runs>
        >>> [arm.name for arm in report.arms]
        ['none', 'batch']
    """
    if type(quick) is not bool:
        raise ConfigError(f"quick={quick!r}: expected True or False")
    check_value("first_seed", first_seed, INDEX)
    takes_normalizers = STUDIES.properties(study).get("normalizers")
    values, axes = split(settings)
    as_normalizers = bool(takes_normalizers and arms)
    plan = make_plan(
        study, same_data_everywhere(values), seeds=seeds, first_seed=first_seed, quick=quick,
        arms=() if as_normalizers else arms, normalizers=arms if as_normalizers else None,
        axes=axes,
    )
    return finish(plan, logdir, workers, progress)


def load(work_dir: Union[str, pathlib.Path]) -> Report:
    """The report on a work directory that is there; trains nothing and writes nothing.

    TensorFlow is not loaded, so this answers at once, on any machine.

    Args:
        work_dir: the folder of one study or comparison, such as `runs/NAME`.

    Returns:
        The Report on all of its runs; those that are not finished are in `report.missing`.

    Raises:
        ValueError: the folder has no plan of this version, or no readable result.
    """
    return read(Store(work_dir))


def finish(
    plan: Plan, logdir: Union[str, pathlib.Path], workers: Optional[int], progress: bool
) -> Report:
    """Trains what is missing of a plan and reports on it; arguments and errors as for `run`."""
    from rich.console import Console

    if workers is not None:
        check_value("workers", workers, COUNT)
    console = _console() if progress else Console(quiet=True, force_terminal=False)
    work = experiment.prepare(plan, logdir)
    try:
        train_and_tell(work, workers, console)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # there may be nothing to report on yet
            experiment.report(work.store)
        tell(console, f"stopped; finished runs are kept in {work.store.work_dir}, and the same "
                      "call trains the others")
        raise
    return experiment.report(work.store)


def _console() -> "Console":
    """Standard output; in a notebook lines of text, and not an output of HTML for each."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_jupyter:
        console = Console(highlight=False, force_jupyter=False, force_terminal=False)
    return console


def train_and_tell(
    work: experiment.Work, workers: Optional[int], console: "Console"
) -> None:
    """Trains the missing runs of a prepared plan; a console is told how far it is.

    Raises:
        ConfigError, OSError: as for `experiment.train`.
        KeyboardInterrupt: after Ctrl-C; finished runs are stored.
    """
    planned, missing = len(work.plan.runs), len(work.missing())
    for note in work.notes:
        tell(console, note)
    if missing < planned:
        tell(console, f"{planned - missing} of {planned} runs are stored in {work.store.work_dir} "
                      "and are not repeated (delete the folder to train them again)")
    if not missing:
        return
    at_once = experiment.workers_of(work.plan, workers)
    tell(console, f"{missing} to train, {at_once} at a time; loading TensorFlow")
    from bn_keras.writers.terminal import Terminal

    with Terminal(console) as terminal:
        for result in experiment.train(work, workers, terminal.stack):
            terminal.stored(work.store.run_name(result.config), result)


def tell(console: "Console", text: str) -> None:
    """Prints a sentence in one line, of whatever length; it is no markup."""
    console.print(plain(text), markup=False, soft_wrap=True)


def split(settings: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, List[Any]]]:
    """Settings with one value, and those with several, which make axes.

    Raises:
        ConfigError: a setting that does not exist, or one that the arms set.
    """
    if "normalizer" in settings:
        raise ConfigError(
            f"normalizer={settings['normalizer']!r}: expected arms in its place, such as "
            f"arms=['none', {settings['normalizer']!r}]"
        )
    several = {
        name: list(value) for name, value in settings.items()
        if isinstance(value, (list, tuple, np.ndarray, range)) and name != "measure"
    }
    for name in settings:
        if name not in RUN_FIELDS:
            raise ConfigError(
                f"unknown setting {name!r}{did_you_mean(name, RUN_FIELDS)}; expected fields of "
                f"RunConfig: {', '.join(RUN_FIELDS)}"
            )
    axes = {
        name: [value.item() if isinstance(value, np.generic) else value for value in values]
        for name, values in several.items()
    }
    values = {name: value for name, value in settings.items() if name not in several}
    if "measure" in values:
        measure = values["measure"]
        names = names_of(measure) if isinstance(measure, str) else measure
        values["measure"] = check_value("measure", names, NAMES)
    return values, axes


def same_data_everywhere(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Settings that name the same data from every working directory.

    Args:
        settings: by field of RunConfig. A folder alone goes with the study's own dataset.

    Raises:
        UnknownName: no such dataset.
        DataError: a path that cannot be resolved, such as one of an unknown ~user.
    """
    dataset = settings.get("dataset", RUN_FIELDS["dataset"].default)
    if not isinstance(dataset, str):
        return dict(settings)  # the check of the setting refuses it
    found = dict(zip(("dataset", "data_dir"), absolute(dataset, settings.get("data_dir"))))
    return {**settings, **{name: value for name, value in found.items() if name in settings}}
