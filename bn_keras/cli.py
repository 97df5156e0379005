"""The training command: flags → runs → report. TensorFlow is not loaded before work starts."""

import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import threading

from absl import flags

from bn_keras import config as configs
from bn_keras.config import ConfigError, RunConfig
from bn_keras.native_log import quiet_native_log
from bn_keras.registry import (
    DATASETS,
    LOSSES,
    MODELS,
    NORMALIZERS,
    OPTIMIZERS,
    STUDIES,
    UnknownName,
)

REGISTRIES = {
    "model": MODELS,
    "normalizer": NORMALIZERS,
    "loss": LOSSES,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
}
# The flags that say which runs to make; every other flag is a field of RunConfig.
ARMS = "Arms and seeds"
USAGE = """Trains a net with and without batch normalization and compares them.

  python train.py                     both arms, 3 seeds, about a minute
  python train.py --is_bn             only with batch normalization
  python train.py --is_bn=False       only without
  python train.py --learning_rate=0.001 --seeds=5
  python train.py --study=learning_rates   a study, with its claims and verdicts
"""


class Refusal(Exception):
    """Something a user can put right; the message says how."""


def main(argv=None):
    """Runs the command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    argv = list(sys.argv if argv is None else argv)

    def refuse(error, status):
        print(f"{pathlib.Path(argv[0]).name}: {error}", file=sys.stderr)
        return status

    try:
        options = parse_flags(argv)
        if options is None:
            return 0
        study = options["study"] and STUDIES.get(options["study"])()
        runs = plan_study(study, options) if study else plan(options)
        from bn_keras import data

        first = runs[0]
        try:
            splits = data.load(
                first.dataset, first.data_dir, first.train_size, first.validation_size,
                first.test_size,
            )
        except (data.DataError, OSError) as error:
            raise Refusal(str(error)) from error
        if first.batch_size > len(splits.train):
            raise Refusal(
                f"batch_size={first.batch_size}: the dataset has {len(splits.train)} training "
                f"images; expected at most {len(splits.train)}."
            )
        if splits.train.labels.dtype.kind == "f" and not study:
            raise Refusal(
                f"--dataset={first.dataset}: its labels are numbers, and this comparison is one of "
                "accuracies; expected a dataset of classes, or --study=bad_init_regression"
            )
        work_dir = make_work_dir(options, runs)
    except (Refusal, ConfigError, UnknownName, flags.Error) as error:
        return refuse(error, 2)
    except KeyboardInterrupt:
        return 130
    try:
        return train(runs, splits, work_dir, options)
    except KeyboardInterrupt:
        print(f"stopped; finished runs are kept in {work_dir}", file=sys.stderr)
        return 130
    except ConfigError as error:  # a model that does not fit the images, known once it is built
        return refuse(error, 2)
    except OSError as error:
        kept = f"finished runs are kept in {work_dir}, the same command goes on from there."
        return refuse(f"{error}; {kept}", 1)


def parse_flags(argv):
    """Values by flag name; None after `--help`, which it prints.

    Raises:
        flags.Error, Refusal: an unknown flag, a value that the flag does not accept, or flags that
            do not go together.
    """
    values = flags.FlagValues()
    groups = flag_groups()
    names = [name for rules in groups.values() for name in rules]
    for rules in groups.values():
        for name, (rule, default, why) in rules.items():
            parser = _FlagParser(rule)
            if rule is YES_NO:
                values[name] = flags.BooleanFlag(name, default, why)  # also --is_bn and --nois_bn
                values[name].parser = parser
            else:
                serializer = flags.ArgumentSerializer()
                values[name] = flags.Flag(parser, serializer, name, default, why)
    if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
        print(help_text())
        return None
    try:
        rest = values(argv)[1:]
    except ValueError as error:  # absl's own word on --nois_bn=3
        raise Refusal(str(error)) from error
    if rest:
        near = difflib.get_close_matches(rest[0].lstrip("-").split("=")[0], names, n=1)
        hint = f" (did you mean --{near[0]}?)" if near else ""
        raise Refusal(f"unexpected argument {rest[0]!r}; expected flags like --seeds=3{hint}")
    given = [name for name in names if values[name].present]
    if {"steps", "epochs"} <= set(given):
        raise Refusal(
            f"--steps={values['steps'].value} and --epochs={values['epochs'].value}: "
            "expected one of them"
        )
    for name in ("quick", "arms"):
        if values[name].value and not values["study"].value:
            raise Refusal(
                f"--{name} without --study: expected a study, such as --study=learning_rates"
            )
    return {**{name: values[name].value for name in names}, "given": given}


YES_NO = configs.Rule(str, lambda text: True, "true or false")
NAMES = configs.Rule(str, lambda text: bool(text), "names with commas between")


def flag_groups():
    """Group title to flag name to (rule, default, why)."""
    groups = {
        ARMS: {
            "is_bn": (YES_NO, None, "unset: both arms, which is the comparison"),
            "study": (configs.TEXT, None,
                      "a tutorial or paper, with the arms, controls and claims that it needs; "
                      "other flags change its settings. bn-keras list tells them all"),
            "quick": (YES_NO, False, "with --study: a short version, under 20 s"),
            "arms": (configs.TEXT, None, "with --study: only these of its arms, with ; between"),
            "seeds": (configs.COUNT, 3, "the fewest that give an interval worth a look"),
            "first_seed": (configs.INDEX, 0, "seeds count up from here"),
            "workers": (configs.COUNT, None,
                        "unset: the arms train side by side, as far as there are cores; with 1 "
                        "the seconds of the arms can be compared"),
        },
        "Output": {
            "logdir": (configs.TEXT, "runs", "a folder is made in it for these settings; the same "
                       "command goes on where it stopped"),
        },
    }
    for name, field in configs.RUN_FIELDS.items():
        if name == "seed" or field.metadata["group"] == configs.ARM:
            continue
        rule, why = field.metadata["rule"], field.metadata["why"]
        if name == "normalizer":
            rule, why = NAMES, why + "; several with commas between"
        groups.setdefault(field.metadata["group"], {})[name] = (rule, field.default, why)
    return groups


def help_text():
    """All flags by group, each with its default, the reason for it and what it accepts."""
    lines = [USAGE]
    for group, rules in flag_groups().items():
        lines.append(f"{group}:")
        for name, (rule, default, why) in rules.items():
            shown = "" if default is None else f"={default}"
            lines.append(f"  --{name}{shown}")
            lines.append(f"        {why}")
            choices = ", ".join(REGISTRIES[name].names()) if name in REGISTRIES else rule.expected
            lines.append(f"        ({choices})")
        lines.append("")
    lines.append("--flagfile=FILE reads flags from a file, one a line.")
    return "\n".join(lines)


def plan(options):
    """The RunConfigs that the flags ask for: every arm with every seed.

    Raises:
        ConfigError, UnknownName, Refusal: settings that do not exist or do not go together.
    """
    settings = {name: options[name] for name in configs.RUN_FIELDS if name in options}
    _check_names(settings)
    asked = [NORMALIZERS.check(name.strip()) for name in settings.pop("normalizer").split(",")]
    named = [name for name in asked if name != "none"]
    if options["is_bn"] is True and not named:
        raise Refusal("--is_bn=True with --normalizer=none: expected a normalizer, such as batch")
    arms = {
        None: ["none", *named],
        True: named,
        False: ["none"],
    }[options["is_bn"]]
    seeds = range(options["first_seed"], options["first_seed"] + options["seeds"])
    return [
        RunConfig(**settings, normalizer=arm, seed=seed)
        for arm in dict.fromkeys(arms) for seed in seeds
    ]


def plan_study(study, options):
    """The RunConfigs of a study, with the flags that were given in place of its own settings.

    Raises:
        ConfigError, Refusal: flags that do not go with a study.
    """
    for name in ("is_bn", "normalizer"):
        if name in options["given"]:
            raise Refusal(f"--{name} with --study={options['study']}: a study has arms of its own")
    overrides = {name: options[name] for name in options["given"] if name in configs.RUN_FIELDS}
    _check_names(overrides)
    seeds = study.quick_seeds if options["quick"] else study.seeds
    if "seeds" in options["given"]:
        seeds = options["seeds"]
    arms = study.quick_arms if options["quick"] else ()
    if options["arms"]:
        arms = [name.strip() for name in options["arms"].split(";")]
    if arms:
        study = study.only(arms)
    first = options["first_seed"]
    return study.expand(overrides, range(first, first + seeds), options["quick"])


def _check_names(settings):
    for name, kind in REGISTRIES.items():
        value = settings.get(name)
        if name != "normalizer" and value is not None:
            kind.check(value.partition(":")[0] if name == "dataset" else value)


def make_work_dir(options, runs):
    """Makes the folder for runs of these settings, whatever their seeds.

    Raises:
        Refusal: it cannot be written to.
    """
    config, logdir = runs[0], options["logdir"]
    if options["study"]:
        readable = options["study"] + ("-quick" if options["quick"] else "")
        arms = {run.arm: dataclasses.asdict(dataclasses.replace(run, seed=0)) for run in runs}
    else:
        readable = f"{config.model}-{config.dataset}-{config.optimizer}-{config.learning_rate:g}"
        arms = {
            name: value for name, value in dataclasses.asdict(config).items()
            if name not in ("normalizer", "seed")
        }
    digest = hashlib.sha256(json.dumps(arms, sort_keys=True).encode()).hexdigest()[:6]
    name = re.sub(r"[^\w.-]+", "_", readable)[:80]
    path = pathlib.Path(logdir).expanduser() / f"{name}-{digest}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise Refusal(
            f"--logdir={logdir}: cannot be written to ({error.strerror}); name another folder."
        ) from error
    return path


def train(runs, splits, work_dir, options):
    """Trains what is not stored yet, then reports on all of it; returns the exit status."""
    from bn_keras.results import Store

    console = make_console()
    store = Store(work_dir)
    if options["study"]:
        store.write_study(options["study"], options["quick"])
    store.write_plan(runs)
    missing = [run for run in runs if store.find(run) is None]
    if len(missing) < len(runs):
        console.print(
            f"{len(runs) - len(missing)} of {len(runs)} runs are stored in {work_dir} and are not "
            "repeated (delete the folder to train them again)"
        )
    interrupted = bool(missing) and not _train_missing(
        missing, splits, store, console, options["workers"]
    )
    if not store.results():
        console.print("stopped before the first run was finished; nothing to report")
        return 130
    report_on(store, console, tensorboard=bool(missing))
    if interrupted:
        done = len(store.results())
        console.print(
            f"stopped: {done} of {len(runs)} runs are finished and kept; the same command goes on "
            "with the rest"
        )
        return 130
    return 0


def make_console():
    """The terminal; where there is none, lines are wide enough for the table."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


def report_on(store, console, tensorboard=False):
    """Writes and prints the report of a work directory.

    Args:
        store: a Store.
        console: a rich Console.
        tensorboard: also write figure and verdict into the TensorBoard folder.
    """
    from bn_keras import report

    summary, picture = report.write(store)
    console.print(summary.table())
    console.print(summary.note, style="dim", markup=False)
    console.print(f"\n{summary.verdict}\n", soft_wrap=True, markup=False)
    if tensorboard:
        from bn_keras import summaries

        logs = store.work_dir / "tensorboard" / "comparison"
        summaries.write_comparison(logs, picture, summary.verdict)
    for what, where in (
        ("picture", store.work_dir / ("picture.png" if store.study() else "accuracy.png")),
        *(("animation", path) for path in sorted(store.work_dir.glob("animation-*"))),
        ("results", store.work_dir / "results.json"),
        ("curves", store.work_dir / "runs" / "*" / "*.csv"),
        ("TensorBoard", f"tensorboard --logdir {store.work_dir / 'tensorboard'}"),
    ):
        console.print(f"{what:12s} {where}", soft_wrap=True)


def _train_missing(runs, splits, store, console, workers):
    """Returns whether all runs came to their end."""
    from bn_keras import executors

    graphs = len({run.graph_key() for run in runs})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(graphs, workers or cores)
    # One core a run wastes less than all cores on each op of one run after the other.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, cores // workers)))
    console.print(f"{len(runs)} to train, {workers} at a time; loading TensorFlow")
    with quiet_native_log():
        from bn_keras import runner, stack, summaries

        runner.start_devices()
    stop = threading.Event()
    done = 0
    with summaries.Terminal(console) as terminal:
        train_some = stack.Dispatcher(splits, store, terminal, stop)
        try:
            for found in executors.in_threads(train_some, stack.groups(runs), workers, stop):
                for result in found:
                    store.add(result)
                    done += 1
        except KeyboardInterrupt:
            pass
    return done == len(runs)


class _FlagParser(flags.ArgumentParser):
    """Turns a flag's text into a value by the rule of its setting."""

    def __init__(self, rule):
        super().__init__()
        self._rule = rule

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument
        if self._rule is YES_NO:
            return _yes_no(argument)
        return configs.parse_text(self._rule, argument)

    def flag_type(self):
        return self._rule.parse.__name__


def _yes_no(text):
    known = {"true": True, "t": True, "1": True, "yes": True,
             "false": False, "f": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ConfigError(f"received {text!r}; expected {YES_NO.expected}")
    return known[text.lower()]
