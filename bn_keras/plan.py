"""Expands a study, overrides and seeds into runs, groups these and names their folder.

No TensorFlow: mistakes in flags answer before it is loaded.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import zipfile
import zlib
from typing import Any, Container, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from bn_keras import metrics, objects, own
from bn_keras import study as studies
from bn_keras.config import OWN_NET, RUN_FIELDS, SEEDS, ConfigError, RunConfig, check_value
from bn_keras.registry import (
    DATASETS,
    FIGURES,
    FILES,
    LOSSES,
    MODELS,
    NORMALIZERS,
    OPTIMIZERS,
    PROBES,
    STUDIES,
    TABLES,
    Registry,
    UnknownName,
    did_you_mean,
)
from bn_keras.study import Study

# The settings that are registered names. A dataset or a probe may have an argument, NAME:ARGUMENT.
REGISTRIES: Dict[str, Registry] = {
    "model": MODELS,
    "normalizer": NORMALIZERS,
    "loss": LOSSES,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "measure": PROBES,
}
PLAN_FILE = "plan.json"  # of a work directory
MOST_RUNS = 32  # in a stack: the indices of all steps and the activations must fit in memory
# What a plan's file consists of.
_PARTS: Dict[str, type] = {"study": str, "quick": bool, "numbers": bool, "axes": dict, "runs": list}
# Settings that give no axis: arms and seeds have arguments of their own, the others measure.
NO_AXES = ("arm", "seed", "normalizer", "measure", "log_interval", "eval_interval", "curve_size",
           "dataset", "data_dir", "validation_size", "test_size")
APPLICATIONS = "applications:"  # and the name of a net of keras.applications
KERAS_FILE = ".keras"
MOST_CONFIG = 10**8  # bytes of a model's config; a larger one is broken or hostile
# Settings in which the runs of one stack may differ: each run has its own weights and batches.
_OWN_IN_A_STACK = ("arm", "seed", "initializer", "bias", "batch_order")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The study and the runs of a work directory.

    Attributes:
        name: the study's registered name, "comparison" for the plain one.
        quick: whether it is the study's short version.
        study: Study, with the arms that are trained.
        runs: RunConfigs, arm by arm, each in the order of its seeds.
        numbers: whether the labels are numbers, so that losses are compared and not accuracies.
    """

    name: str
    quick: bool
    study: Study
    runs: Tuple[RunConfig, ...]
    numbers: bool = False

    def folder_name(self) -> str:
        """Name of the folder for runs of these settings, whatever their arms and seeds."""
        first, full, axes = self.runs[0], _study(self.name), list(self.study.axes)
        varied = {name for settings in full.arms.values() for name in settings}
        varied |= {"arm", "seed", *axes}
        shared = {
            name: value for name, value in dataclasses.asdict(first).items() if name not in varied
        }
        told = [self.name, self.quick, shared, *([axes] if axes else [])]
        text = json.dumps(told, sort_keys=True)
        readable = self.name
        if _takes_normalizers(self.name):  # such folders differ in little else
            rate = [] if "learning_rate" in axes else [f"{first.learning_rate:g}"]
            names = [own.short(name) if own.is_own(name) or objects.is_object_name(name) else name
                     for name in dict.fromkeys((first.model, first.dataset, first.optimizer))]
            readable = "-".join([*names, *rate, *axes])
        readable += "-quick" if self.quick else ""
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', readable)[:80]}-{digest}"

    def common(self, name: str) -> Any:
        """The value of a setting that all runs share; None if they differ in it."""
        values = {getattr(run, name) for run in self.runs}
        return values.pop() if len(values) == 1 else None

    @property
    def optimizer(self) -> Optional[str]:
        """The optimizer that all runs share, as titles show it; None if they differ in it."""
        name = self.common("optimizer")
        if name is not None and is_keras_file(name):
            return "optimizer as compiled"
        return None if name is None else own.short(name)

    def merged(self, other: "Plan") -> "Plan":
        """The plan of the runs of both, for one folder; of a run in both, this one's counts.

        Raises:
            ValueError: the other plan belongs into another folder.
        """
        if self.folder_name() != other.folder_name():
            raise ValueError(
                f"received plans for {self.folder_name()} and {other.folder_name()}; expected two "
                "for the same folder"
            )
        mine = {_key(run) for run in self.runs}
        more = [run for run in other.runs if _key(run) not in mine]
        axes = {
            name: tuple(sorted({*values, *other.study.axes[name]}))
            for name, values in self.study.axes.items()
        }
        return _plan(self.name, self.quick, [*self.runs, *more], axes, self.numbers)

    def of_numbers(self) -> "Plan":
        """The plan for data whose labels are numbers: a study of any normalizers compares losses.

        Other studies stay as they are.
        """
        if not _takes_normalizers(self.name):
            return self
        return _plan(self.name, self.quick, self.runs, self.study.axes, numbers=True)

    def to_json(self) -> str:
        """The plan as a text that `from_json` reads back."""
        runs = [dataclasses.asdict(run) for run in self.runs]
        content = {
            "study": self.name, "quick": self.quick, "numbers": self.numbers,
            "axes": self.study.axes, "runs": runs,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan in a text.

        Raises:
            ValueError: the text is damaged, or from a version in which the study had other arms.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the plan is no JSON text: {error}") from error
        if not isinstance(content, dict) or set(content) != set(_PARTS):
            raise ValueError(f"the plan has other parts than {', '.join(_PARTS)}")
        for part, kind in _PARTS.items():
            if type(content[part]) is not kind:
                raise ValueError(
                    f"the plan's {part} is of type {type(content[part]).__name__}; expected "
                    f"{kind.__name__}"
                )
        name, quick, numbers, axes, runs = (content[part] for part in _PARTS)
        for run in runs:
            if not isinstance(run, dict) or set(run) != set(RUN_FIELDS):
                raise ValueError(
                    "a run of the plan has other settings than this version's RunConfig"
                )
        configs = [RunConfig(**run) for run in runs]
        if not configs or len({_key(run) for run in configs}) < len(configs):
            raise ValueError(
                f"the plan has {len(configs)} runs, some of them twice or none at all; expected "
                "each arm and seed once"
            )
        try:
            return _plan(STUDIES.check(name), quick, configs, checked_axes(axes), numbers)
        except UnknownName as error:
            raise ValueError(
                f"{error}; one of your own is known once its module is imported: call "
                "bn_keras.experiment.report(Store(folder)) in a script that does so"
            ) from error


def make_plan(
    name: str,
    overrides: Mapping[str, Any],
    *,
    seeds: Optional[int] = None,
    first_seed: int = 0,
    quick: bool = False,
    arms: Sequence[str] = (),
    normalizers: Optional[Sequence[str]] = None,
    axes: Optional[Mapping[str, Sequence[Any]]] = None,
) -> Plan:
    """Expands a study into runs.

    Args:
        name: of the study; "comparison" for the plain one. A study that climbs a ladder of rates
            asks the same of any net that the overrides name: it becomes the plain comparison of
            that net with and without BN at each of its rates, with its other settings.
        overrides: settings by field of RunConfig, in place of the study's own in every arm.
        seeds: how many; None for the study's own number.
        first_seed: seeds count up from here.
        quick: whether to take the study's short version.
        arms: the only arms to train; none named means all, or those of the short version.
        normalizers: the arms of a study that takes any, such as "comparison".
        axes: setting to the values at which each of these is tried, in such a study.

    Raises:
        ConfigError: settings that do not exist, do not go together or differ between the arms.
        UnknownName: the message lists the known names.
    """
    STUDIES.check(name)
    for what, texts in (("arms", arms), ("normalizers", normalizers)):
        if isinstance(texts, str):
            raise ConfigError(
                f"{what}={texts!r}: expected a sequence of names, [{texts!r}] for one"
            )
    if normalizers is not None and not _takes_normalizers(name):
        raise ConfigError(
            f"normalizers={', '.join(normalizers)} with the study {name!r}, which has arms of its "
            f"own; expected some of them instead: {'; '.join(_study(name).arms)}"
        )
    if normalizers is not None and not normalizers:
        raise ConfigError("normalizers: received none; expected at least one name")
    for normalizer in normalizers or ():
        if not own.is_own(normalizer):
            NORMALIZERS.check(normalizer)
    axes = checked_axes(axes or {})
    asked = _study(name) if "model" in overrides and not _takes_normalizers(name) else None
    if asked is not None and asked.ladder is not None:
        if arms:
            raise ConfigError(
                f"arms={'; '.join(arms)} with model={overrides['model']!r}: the arms of {name!r} "
                "are nets of its own; expected the one or the other"
            )
        settings = {**asked.base, **(asked.quick if quick else {}), **overrides}
        if "learning_rate" not in overrides:
            axes = {"learning_rate": asked.ladder.rates, **axes}
        plain = next(other for other in STUDIES.names() if _takes_normalizers(other))
        return make_plan(plain, settings, seeds=seeds, first_seed=first_seed, axes=axes)
    if axes and not _takes_normalizers(name):
        raise ConfigError(
            f"{', '.join(axes)}: several values with the study {name!r}, which has arms of its "
            "own; expected one value each"
        )
    twice = set(axes) & set(overrides)
    if twice:
        raise ConfigError(f"{', '.join(sorted(twice))}: expected one value, or several, not both")
    study = _study(name, normalizers, axes)
    _check_study(name, study)
    _check_overrides(study, overrides)
    if seeds is None:
        seeds = study.quick_seeds if quick else study.seeds
    check_value("seeds", seeds, SEEDS)
    chosen = dict.fromkeys(arms or (study.quick_arms if quick else ()) or study.arms)
    for arm in chosen:
        if arm not in study.arms:
            known = "; ".join(study.arms)
            raise ConfigError(f"received the arm {arm!r}; expected some of: {known}")
    base = {**study.base, **(study.quick if quick else {}), **overrides}
    if "model" in base:
        base["model"] = full_name(base["model"])
    if str(base.get("optimizer", "")).endswith(KERAS_FILE):
        base["optimizer"] = full_name(base["optimizer"])
    of_own_net = OWN_NET if is_own_net(str(base.get("model", ""))) else {}
    base = {**of_own_net, **_compiled(base, axes or ()), **base}
    runs = [
        _run({**base, **study.arms[arm], "arm": arm, "seed": seed})
        for arm in chosen for seed in range(first_seed, first_seed + seeds)
    ]
    for run in runs:
        _check_names(run)
    return _plan(name, quick, runs, axes)


def is_own_net(model: str) -> bool:
    """Whether a run's model is none of the registered ones, as its name tells."""
    return own.is_own(model) or model.startswith(APPLICATIONS)


def is_keras_file(name: str) -> bool:
    """Whether a run's model or optimizer is that of a `.keras` file, as its name tells."""
    return own.place(name).endswith(KERAS_FILE)


def full_name(model: str) -> str:
    """The name by which runs hold a model: of a file its absolute path and the digest of it.

    Args:
        model: a registered name, `my_net.py:build`, `my_package.nets:build`, `net.keras` or
            `applications:NAME`; or a name that is full already.

    Raises:
        ConfigError: there is no such file, or it is of another kind.
        UnknownName: it is nothing of all this.
    """
    if is_own_net(model):
        return model
    if objects.is_object_name(model):
        name = objects.absolute_name(model)
        return f"{name}@{objects.digest_of(name)}"
    if model.endswith(KERAS_FILE):
        path = pathlib.Path(model).expanduser().absolute()
        try:
            return own.with_digest(path)
        except OSError as error:
            raise ConfigError(
                f"model={model!r}: {error.strerror or error}; expected a file that model.save wrote"
            ) from error
    if model not in MODELS.names() and pathlib.Path(model).expanduser().exists():
        raise ConfigError(
            f"model={model!r}: a file or folder of another kind; expected a .keras file: load it "
            "and save it again by model.save('net.keras'), or name a function that builds the net, "
            "my_net.py:build"
        )
    return MODELS.check(model)


def _compiled(base: Mapping[str, Any], axes: Iterable[str]) -> Dict[str, Any]:
    """The optimizer of a `.keras` file and its learning rate, as far as nothing else is asked for.

    A run's optimizer can be the name of such a file: that with which its model was compiled. The
    file of the model is the default. It is loaded when a run needs it, and only read here.
    """
    name = str(base.get("optimizer", base.get("model", "")))
    if "optimizer" in axes or not is_keras_file(name):
        return {}
    optimizer = _inside((compile_config(own.place(name)) or {}).get("optimizer"))
    if not optimizer:
        return {}
    rate = optimizer["config"].get("learning_rate")
    return optimizer_settings(name, rate, {*base, *axes}, f"optimizer of {own.place(name)}")


def optimizer_settings(
    name: str, rate: Any, set_already: Container[str], whose: str
) -> Dict[str, Any]:
    """The settings that an optimizer stands for: its name, and its rate if none is asked for.

    Args:
        name: as runs hold it.
        rate: the learning rate in its config: a number, or the config of a schedule.
        set_already: names of the settings that are asked for.
        whose: what it is called in a message.

    Raises:
        ConfigError: the rate is a schedule, and is needed.
    """
    if "learning_rate" in set_already:
        return {"optimizer": name}
    if not isinstance(rate, (int, float)):
        kind = f", {rate['class_name']}" if isinstance(rate, dict) and "class_name" in rate else ""
        raise ConfigError(
            f"{whose}: its learning rate is a schedule{kind}; expected a number, or learning_rate "
            "beside it"
        )
    shortest = float(str(np.float32(rate)))  # Keras keeps 0.07 as 0.07000000029802322
    same = np.float32(rate) == rate
    return {"optimizer": name, "learning_rate": shortest if same else float(rate)}


def _inside(optimizer: Any) -> Optional[Dict[str, Any]]:
    """The config of an optimizer, inside of what scales the loss for it; None if it has none."""
    while isinstance(optimizer, dict) and isinstance(optimizer.get("config"), dict):
        if "inner_optimizer" not in optimizer["config"]:
            return optimizer
        optimizer = optimizer["config"]["inner_optimizer"]
    return None


def compile_config(path: str) -> Optional[Dict[str, Any]]:
    """What the model of a `.keras` file was compiled with: configs of "optimizer", "loss", ….

    Empty if it was not compiled; None of a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MOST_CONFIG:
                return None
            found = json.loads(archive.read("config.json")).get("compile_config") or {}
        return found if isinstance(found, dict) else None
    except (
        OSError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, AttributeError,
        RuntimeError,
    ):
        return None  # whatever is wrong with the file, loading it will tell


def loss_name(run: RunConfig, numbers: bool) -> Optional[str]:
    """The registered name of a run's loss: the one asked for, or the model's own.

    None for a loss of the user's own, which the net tells or the user gave as an object.

    Args:
        run: RunConfig.
        numbers: whether the labels of its data are numbers; else they are classes.

    Raises:
        ConfigError: the loss is for classes where the labels are numbers, or the other way round.
    """
    if is_own_net(run.model) and run.loss is None or run.loss and own.is_own(run.loss):
        return None  # known once the net is built
    name: str = run.loss or MODELS.properties(run.model)["loss"]
    if numbers != LOSSES.properties(name).get("numbers", False):
        raise ConfigError(
            f"loss={name!r} of model={run.model!r} with dataset={run.dataset!r}, whose "
            f"labels are {'numbers' if numbers else 'classes'}; expected "
            + ("a model for numbers, such as bad_init_mlp, or loss='squared'." if numbers else
               "another loss, such as softmax, or a dataset of numbers, such as quadratic.")
        )
    return name


def groups(runs: Iterable[RunConfig]) -> List[List[List[RunConfig]]]:
    """Groups of stacks of runs.

    The runs of a stack are trained side by side in one graph. The stacks of a group share that
    graph and come one after another; groups can run at the same time.
    """
    graphs: Dict[str, Dict[str, List[RunConfig]]] = {}
    for run in runs:
        key = _stack_key(run) if stacks(run) else run.fingerprint()
        graphs.setdefault(run.graph_key(), {}).setdefault(key, []).append(run)
    return [
        [
            alike[start:start + MOST_RUNS]
            for alike in by_key.values() for start in range(0, len(alike), MOST_RUNS)
        ]
        for by_key in graphs.values()
    ]


def stacks(run: RunConfig) -> bool:
    """Whether runs of this configuration can stand side by side in one graph.

    The model must have an axis for them, and the normalizer must take every channel by itself, so
    that it cannot mix up the runs. mixed_float16 couples them: one loss scale would serve all, and
    a gradient that overflows in one run would skip the step of every other.
    """
    return (
        not is_own_net(run.model)
        and bool(MODELS.properties(run.model).get("stacks"))
        and not own.is_own(run.normalizer)
        and bool(NORMALIZERS.properties(run.normalizer).get("channelwise"))
        and run.dtype_policy != "mixed_float16"
    )


def _stack_key(run: RunConfig) -> str:
    """Equal for runs that can stand in one stack: they differ in nothing but what each has own."""
    rates = not own.is_own(run.optimizer) and OPTIMIZERS.properties(run.optimizer).get(
        "rate_per_run"
    )
    varying = [*_OWN_IN_A_STACK, *(["learning_rate"] if rates else [])]
    defaults = {name: RUN_FIELDS[name].default for name in varying}
    return dataclasses.replace(run, **defaults).fingerprint()


def _takes_normalizers(name: str) -> bool:
    """Whether the study makes an arm of any normalizer."""
    return bool(STUDIES.properties(name).get("normalizers"))


def _study(
    name: str, normalizers: Optional[Sequence[str]] = None,
    axes: Optional[Mapping[str, Sequence[Any]]] = None, numbers: bool = False,
) -> Study:
    make = STUDIES.get(name)
    study: Study = make() if normalizers is None else make(normalizers)
    if numbers:
        study = studies.of_numbers(study)
    return studies.swept(study, axes) if axes else study


def checked_axes(axes: Mapping[str, Sequence[Any]]) -> Dict[str, Tuple[Any, ...]]:
    """Setting to its values, each once.

    Raises:
        ConfigError: a setting that does not exist or cannot be varied, or a value that it does not
            accept.
    """
    found: Dict[str, Tuple[Any, ...]] = {}
    for name, values in axes.items():
        field = RUN_FIELDS.get(name)
        if field is None or name in NO_AXES:
            hint = did_you_mean(name, RUN_FIELDS) if field is None else ""
            raise ConfigError(
                f"{name}: received several values; expected a setting that can be varied{hint}, "
                f"none of {', '.join(NO_AXES)}"
            )
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"{name}={values!r}: expected a list of values")
        rule = field.metadata["rule"]
        found[name] = tuple(dict.fromkeys(check_value(name, value, rule) for value in values))
    return found


def _plan(
    name: str, quick: bool, runs: Sequence[RunConfig],
    axes: Optional[Mapping[str, Sequence[Any]]] = None, numbers: bool = False,
) -> Plan:
    """The plan of these runs, in the order of the study's arms.

    Raises:
        ConfigError: a run that is not of the study.
    """
    trained = list(dict.fromkeys(run.arm_name for run in runs))
    names = list(dict.fromkeys(run.normalizer for run in runs))
    study = _study(name, names if _takes_normalizers(name) else None, axes, numbers)
    for run in runs:
        settings: Any = study.arms.get(run.arm_name)
        if settings is None or dataclasses.replace(run, **settings) != run:
            raise ConfigError(
                f"the study {name!r} has no arm {run.arm_name!r} with these settings, as planned "
                "by another version; train it again in a new folder"
            )
    arms = {arm: settings for arm, settings in study.arms.items() if arm in trained}
    places = {arm: place for place, arm in enumerate(arms)}
    ordered = sorted(runs, key=lambda run: (places[run.arm_name], run.seed))
    return Plan(name, quick, dataclasses.replace(study, arms=arms), tuple(ordered), numbers)


def _key(run: RunConfig) -> Tuple[str, int]:
    return run.arm_name, run.seed


def _run(settings: Mapping[str, Any]) -> RunConfig:
    unknown = sorted(set(settings) - set(RUN_FIELDS))
    if unknown:
        raise ConfigError(
            f"unknown setting {unknown[0]!r}{did_you_mean(unknown[0], RUN_FIELDS)}; expected "
            f"fields of RunConfig: {', '.join(RUN_FIELDS)}"
        )
    return RunConfig(**settings)


def _check_study(name: str, study: Study) -> None:
    """Checks all that can be known of a study before it is trained."""
    if not study.arms:
        raise ConfigError(f"the study {name!r} has no arms; expected at least one to train")
    studies.check(study)
    metrics.check(study)
    for registry, parts in ((FIGURES, study.figures), (TABLES, study.tables), (FILES, study.files)):
        for part in parts:
            registry.check(part.partition(":")[0] if registry is FIGURES else part)


def _check_overrides(study: Study, overrides: Mapping[str, Any]) -> None:
    for name, instead in (
        ("seed", "seeds and first_seed"), ("arm", "arms"), ("normalizer", "normalizers"),
    ):
        if name in overrides:
            raise ConfigError(f"{name}={overrides[name]!r}: expected {instead} in its place")
    varied = {name for settings in study.arms.values() for name in settings} & set(overrides)
    if varied:
        raise ConfigError(
            f"{', '.join(sorted(varied))}: the arms of this study differ in it; expected other "
            "settings"
        )


def _of_the_user(name: str) -> bool:
    """Whether a setting names something of the user's own, which is in no registry."""
    return is_own_net(name) or objects.is_object_name(name)


def _check_names(run: RunConfig) -> None:
    for field, registry in REGISTRIES.items():
        value = getattr(run, field)
        for name in value if isinstance(value, tuple) else [value]:
            if name is not None and not _of_the_user(name):
                registry.check(
                    name.partition(":")[0] if field in ("dataset", "measure") else name
                )
    for name in run.measure:
        kind, _, argument = name.partition(":")
        known = PROBES.properties(kind).get("arguments", ("",))
        if argument not in known and not own.is_own(argument):
            expected = ", ".join(f"{kind}:{text}" if text else kind for text in known)
            expected = expected or f"what bn_keras.compare gives, {kind}:NAME@DIGEST"
            raise ConfigError(f"measure={name!r}: expected {expected}")
