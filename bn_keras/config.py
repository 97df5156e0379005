"""The settings of a run, each with its default, the reason for the default and its check.

`RunConfig` is the single place where a default is written. It is made of parts, for the model, the
data, the training, the logging and what is measured. Flags, `--help`, stored results and the
fingerprint that finds a stored result again are all read off its fields.
"""

import dataclasses
import hashlib
import json
import sys
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

DTYPE_POLICIES = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
PIXELS = ("raw", "unit", "centered")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "gelu", "silu")
INITIALIZERS = ("glorot", "he")


class ConfigError(ValueError):
    """A setting that cannot be used; the message says what was received and what is valid."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that a setting accepts, and how a message names them.

    Attributes:
        parse: turns a text, such as a flag's, or an accepted value into the setting's value.
        kinds: types of the values that are accepted.
        accepts: whether a parsed value is in range.
        expected: what is accepted, in words.
    """

    parse: Callable[[Any], Any]
    kinds: Tuple[type, ...]
    accepts: Callable[[Any], bool]
    expected: str


def _number(accepts: Callable[[float], bool], expected: str) -> Rule:
    finite = sys.float_info.max  # a whole number may be larger, and is no float then
    return Rule(float, (int, float), lambda v: abs(v) <= finite and accepts(v), expected)


def _whole(lowest: int, highest: int) -> Rule:
    return Rule(
        int, (int,), lambda v: lowest <= v <= highest,
        f"a whole number from {lowest} to {highest:,}",
    )


def names_of(value: Any) -> Tuple[str, ...]:
    """Names in a text with commas between, or in a sequence."""
    parts: Iterable[str] = value.split(",") if isinstance(value, str) else value
    return tuple(name.strip() for name in parts if name.strip())


POSITIVE = _number(lambda v: v > 0, "a number greater than 0, such as 0.01")
FRACTION = _number(lambda v: 0 <= v <= 1, "a number from 0 to 1, such as 0.9")
SHARE = _number(lambda v: 0 <= v < 1, "a number from 0 to below 1, such as 0.5")
NOT_NEGATIVE = _number(lambda v: v >= 0, "a number of at least 0, such as 0.001")
NUMBER = _number(lambda v: True, "a number, such as 0.1")
EPOCHS = _number(lambda v: 0 < v <= 10_000, "a number greater than 0 and at most 10,000")
DEPTH = _whole(1, 1000)
COUNT = _whole(1, 100_000_000)
STEPS = _whole(1, 1_000_000)  # the indices of all batches of a run lie in memory
INDEX = _whole(0, 2**31 - 1)
SEEDS = _whole(1, 10_000)  # runs of one arm
IMAGE_SIZE = _whole(1, 4096)  # pixels a side
TEXT = Rule(str, (str,), lambda v: True, "a text")
NAMES = Rule(
    names_of, (tuple, list), lambda v: all(isinstance(name, str) for name in v),
    "names with commas between",
)


def one_of(choices: Tuple[str, ...]) -> Rule:
    """A rule that accepts the given texts only."""
    return Rule(str, (str,), lambda v: v in choices, "one of " + ", ".join(choices))


def setting(default: Any, why: str, rule: Rule, *, graph: bool, plugin: bool = False) -> Any:
    """A dataclass field with the reason for its default and its rule.

    Args:
        default: the value where nothing is given.
        why: the reason for it, for `--help`.
        rule: what is accepted.
        graph: whether another value needs another traced graph.
        plugin: marks a name that a registry checks, so that one more file adds a choice.
    """
    metadata = {"why": why, "rule": rule, "graph": graph, "plugin": plugin}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The net and its normalizer."""

    model: str = setting(
        "mnist_cnn", "the best known net of the field's tutorials; my_net.py:build, "
        "my_package.nets:build, net.keras or applications:MobileNetV2 take another", TEXT,
        graph=True, plugin=True,
    )
    normalizer: str = setting(
        "batch", "this package's layer; keras_batch is the built-in one", TEXT, graph=True,
        plugin=True,
    )
    activation: str = setting(
        "relu", "what the tutorials use", one_of(ACTIVATIONS), graph=True
    )
    loss: Optional[str] = setting(
        None, "unset: that of the model's tutorial", TEXT, graph=True, plugin=True
    )
    momentum: Optional[float] = setting(
        None, "unset: .9, as at .99 the initial variance still weighs 37 % after 100 steps; in a "
        "finished net of yours, that of the layer in whose place it stands", FRACTION, graph=True,
    )
    epsilon: Optional[float] = setting(
        None, "added to the variance; unset: Keras's 1e-3, or that of the layer in whose place it "
        "stands", POSITIVE, graph=True,
    )
    initializer: Optional[str] = setting(
        None, "of the dense layers' kernels; unset: the model's own", one_of(INITIALIZERS),
        graph=False,
    )
    bias: Optional[float] = setting(
        None, "where all biases start; unset: the model's own", NUMBER, graph=False
    )
    dropout: Optional[float] = setting(
        None, "share of the units that is dropped; unset: the model's own", SHARE, graph=True
    )
    l2: Optional[float] = setting(
        None, "factor of the penalty on squared weights; unset: the model's own", NOT_NEGATIVE,
        graph=True,
    )
    weights: Optional[str] = setting(
        None, "of a finished net of yours; unset: given, all seeds start from the weights that it "
        "has; new draws them anew for each seed", one_of(("given", "new")), graph=False,
    )
    depth: Optional[int] = setting(
        None, "number of layers, as the model counts them; unset: the model's own", DEPTH,
        graph=True,
    )
    dtype_policy: str = setting(
        "float32", "exact everywhere; mixed_bfloat16 is faster on processors that have it",
        one_of(DTYPE_POLICIES), graph=True,
    )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The examples."""

    dataset: str = setting(
        "mnist", "ships with the package; bn-keras list has others, such as tfds:NAME, folder:PATH "
        "and npz:PATH; my_data.py:load calls a function of yours", TEXT, graph=True, plugin=True,
    )
    pixels: str = setting(
        "unit", "0 to 1; raw is 0 to 255 and centered -0.5 to 0.5", one_of(PIXELS), graph=True
    )
    data_dir: Optional[str] = setting(
        None, "unset: the shipped files, or TFDS's own folder for tfds:NAME", TEXT, graph=True
    )
    train_size: Optional[int] = setting(
        None, "unset: all that validation leaves", COUNT, graph=True
    )
    validation_size: Optional[int] = setting(
        None, "unset: 5,000, which leaves MNIST its usual 55,000, or a fifth of the training "
        "images where that is fewer", COUNT, graph=True,
    )
    test_size: Optional[int] = setting(
        None, "unset: the whole test set", COUNT, graph=True
    )
    image_size: Optional[int] = setting(
        None, "unset: as the files of folder:PATH have it; else they become squares of so many "
        "pixels a side", IMAGE_SIZE, graph=True,
    )


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How the net is trained."""

    optimizer: str = setting(
        "sgd", "plain: no state that luck could build up; the tutorials take adam", TEXT,
        graph=True, plugin=True,
    )
    learning_rate: float = setting(
        3.0, "thirty times what is usual with SGD: of 30 seeds without BN none learned, with it "
        "all did", POSITIVE, graph=False,
    )
    batch_size: int = setting(
        64, "the tutorial's; a batch statistic over 64 images is steady", COUNT, graph=True
    )
    steps: int = setting(
        100, "enough for BN to pass 94 % on MNIST", STEPS, graph=False
    )
    epochs: Optional[float] = setting(
        None, "unset: steps decides; a fraction such as 0.5 is fine", EPOCHS, graph=False
    )
    batch_order: str = setting(
        "shuffled", "anew in every epoch; fixed takes the examples as they stand, again and again",
        one_of(("shuffled", "fixed")), graph=False,
    )
    last_batch: str = setting(
        "drop", "of an epoch, smaller than the others: in the moving averages it would weigh as "
        "much as they do", one_of(("drop", "keep")), graph=False,
    )
    seed: int = setting(
        0, "initial weights, batch order and dropout all follow from it", INDEX, graph=False
    )


@dataclasses.dataclass(frozen=True)
class LoggingSettings:
    """How often a run is measured."""

    log_interval: int = setting(
        10, "steps between two rows of the CSV and two points of a curve", COUNT, graph=False
    )
    eval_interval: int = setting(
        20, "steps between two validations and two histograms", COUNT, graph=False
    )
    curve_size: int = setting(
        500, "validation images behind a point of the curve; the final figures use all", COUNT,
        graph=False,
    )


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """The probes of a run beside losses and accuracies."""

    measure: Tuple[str, ...] = setting(
        ("histograms", "one_at_a_time", "batch_statistics"),
        "what TensorBoard and the table show; bn-keras list has all, NAME or NAME:ARGUMENT",
        NAMES, graph=False,
    )


PARTS = {
    "Model": ModelSettings,
    "Data": DataSettings,
    "Training": TrainingSettings,
    "Logging": LoggingSettings,
    "Measure": MeasureSettings,
}


# A dataclass takes its bases' fields from the last one to the first.
@dataclasses.dataclass(frozen=True)
class RunConfig(
    MeasureSettings, LoggingSettings, TrainingSettings, DataSettings, ModelSettings
):
    """One training run: one model, one normalizer, one seed.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    arm: Optional[str] = setting(
        None, "unset: named after the normalizer; the arms of a study have names of their own",
        TEXT, graph=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))

    def steps_per_epoch(self, train_size: int) -> int:
        """Batches in one pass over the training examples."""
        whole, left = divmod(train_size, self.batch_size)
        return max(1, whole + (left > 0 and self.last_batch == "keep"))

    def total_steps(self, train_size: int) -> int:
        """Training steps of the run: `steps`, or those of `epochs`."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * self.steps_per_epoch(train_size)))

    @property
    def arm_name(self) -> str:
        """Name of the arm in tables, pictures and folders."""
        return self.arm or self.normalizer

    def part(self, kind: type) -> Any:
        """The settings of one part, such as `DataSettings`."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two runs share exactly when all settings are equal."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def graph_key(self) -> str:
        """Equal for runs that can share one traced graph."""
        varying = {
            name: field.default for name, field in RUN_FIELDS.items()
            if not field.metadata["graph"]
        }
        return dataclasses.replace(self, **varying).fingerprint()


RUN_FIELDS: Dict[str, Any] = {field.name: field for field in dataclasses.fields(RunConfig)}


# What a net of the user's own starts from: the defaults are made for one that BN must rescue.
OWN_NET: Dict[str, Any] = {
    "optimizer": "adam", "learning_rate": 0.001, "batch_size": 32,
    "measure": ("one_at_a_time", "batch_statistics"),
}


def parse_text(rule: Rule, text: str) -> Any:
    """The value a text stands for under a rule; a ConfigError says what is expected."""
    try:
        value = rule.parse(text)
        accepted = rule.accepts(value)
    except (ValueError, OverflowError):
        accepted = False
    if not accepted:
        raise ConfigError(f"received {text!r}; expected {rule.expected}")
    return value


def check_value(name: str, value: Any, rule: Rule) -> Any:
    """The value of a setting under its rule; a ConfigError names the setting."""
    # A whole number is a fine learning rate, but True is no number and 64.0 no count of images.
    if type(value) not in rule.kinds or not rule.accepts(value):
        raise ConfigError(f"{name}={value!r}: expected {rule.expected}")
    return rule.parse(value)


def _checked(field: Any, value: Any) -> Any:
    if value is None and field.default is None:
        return None
    return check_value(field.name, value, field.metadata["rule"])
