"""What one run is: every setting with its default, the reason for the default and its check.

`RunConfig` is the single place where a default is written. Flags, `--help`, stored results and
the fingerprint that finds a stored result again are all read off its fields.
"""

import dataclasses
import hashlib
import json
import math
from typing import Callable, Optional

DTYPE_POLICIES = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
PIXELS = ("raw", "unit", "centered")
ARM = "arm"  # the group of the settings that are no flags: the arms of studies have them
ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "gelu", "silu")


class ConfigError(ValueError):
    """A setting that cannot be used; the message says what was received and what is valid."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting accepts: how text becomes a value, which values pass, and how to say so."""

    parse: type
    accepts: Callable
    expected: str


def _number(parse, accepts, expected):
    return Rule(parse, lambda value: math.isfinite(value) and accepts(value), expected)


POSITIVE = _number(float, lambda v: v > 0, "a number greater than 0, such as 0.01")
FRACTION = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1, such as 0.9")
COUNT = _number(int, lambda v: v >= 1, "a whole number of at least 1")
INDEX = _number(int, lambda v: v >= 0, "a whole number of at least 0")
SWITCH = Rule(bool, lambda v: True, "True or False")
TEXT = Rule(str, lambda v: True, "a text")


def one_of(choices):
    """A rule that accepts the given texts only."""
    return Rule(str, lambda v: v in choices, "one of " + ", ".join(choices))


def setting(default, group, why, rule, plugin=False):
    """A dataclass field that carries its group and reason for `--help`, and its rule.

    `plugin=True` marks a name that a registry checks, so that one more file adds a choice.
    """
    metadata = {"group": group, "why": why, "rule": rule, "plugin": plugin}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run: one model, one normalizer, one seed.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    model: str = setting(
        "mnist_cnn", "Model", "the best known net of the field's tutorials", TEXT, plugin=True
    )
    normalizer: str = setting(
        "batch", "Model", "this package's layer; keras_batch is the built-in one", TEXT, plugin=True
    )
    activation: str = setting(
        "relu", "Model", "what the tutorials use", one_of(ACTIVATIONS)
    )
    loss: Optional[str] = setting(
        None, "Model", "unset: the model's own, as its tutorial has it", TEXT, plugin=True
    )
    momentum: float = setting(
        0.9, "Model", "short runs need it: at .99 the initial variance still weighs 8 % after "
        "250 steps", FRACTION,
    )
    epsilon: float = setting(
        1e-3, "Model", "Keras's default; added to the variance", POSITIVE
    )
    dtype_policy: str = setting(
        "float32", "Model", "exact everywhere; mixed_bfloat16 is faster on processors that have it",
        one_of(DTYPE_POLICIES),
    )

    arm: Optional[str] = setting(
        None, ARM, "unset: named after the normalizer; the arms of a study have names of their own",
        TEXT,
    )
    pitfalls: Optional[str] = setting(
        None, ARM, "evaluate the trained net also as diagnostics.pitfalls says: names with commas "
        "between, or all", TEXT,
    )
    pitfall_curve: Optional[str] = setting(
        None, ARM, "one of them, for a second curve of the validation accuracy", TEXT
    )
    drawn_batches: Optional[int] = setting(
        None, ARM, "unset: batches are drawn from all training images; else, a bug, from the rows "
        "of the first so many", COUNT,
    )
    capture: bool = setting(
        False, ARM, "keeps what every layer of each arm's first seed sees, for an animation, and "
        "measures the layers of all seeds", SWITCH,
    )

    dataset: str = setting(
        "mnist", "Data", "ships with the package; tfds:NAME, idx:FOLDER, csv:PATH and "
        "notmnist:PATH read others", TEXT, plugin=True,
    )
    pixels: str = setting(
        "unit", "Data", "0 to 1; raw is 0 to 255 and centered -0.5 to 0.5", one_of(PIXELS)
    )
    data_dir: Optional[str] = setting(
        None, "Data", "unset: the shipped files, or TFDS's own folder for tfds:NAME", TEXT
    )
    train_size: Optional[int] = setting(
        None, "Data", "unset: all that validation leaves", COUNT
    )
    validation_size: int = setting(
        5000, "Data", "taken from the training images; 5,000 leaves MNIST its usual 55,000", COUNT
    )
    test_size: Optional[int] = setting(
        None, "Data", "unset: the whole test set", COUNT
    )

    optimizer: str = setting(
        "adam", "Training", "what the tutorials use", TEXT, plugin=True
    )
    learning_rate: float = setting(
        0.05, "Training", "high enough that the net without BN fails and the one with BN learns",
        POSITIVE,
    )
    batch_size: int = setting(
        64, "Training", "the tutorial's; a batch statistic over 64 images is steady", COUNT
    )
    steps: int = setting(
        250, "Training", "enough for BN to pass 95 % on MNIST", COUNT
    )
    epochs: Optional[float] = setting(
        None, "Training", "unset: steps decides; a fraction such as 0.5 is fine", POSITIVE
    )
    batch_order: str = setting(
        "shuffled", "Training", "anew in every epoch; fixed takes the examples as they stand, "
        "again and again", one_of(("shuffled", "fixed")),
    )
    last_batch: str = setting(
        "drop", "Training", "of an epoch, smaller than the others: in the moving averages it would "
        "weigh as much as they do", one_of(("drop", "keep")),
    )
    seed: int = setting(
        0, "Training", "initial weights, batch order and dropout all follow from it", INDEX
    )

    log_interval: int = setting(
        10, "Logging", "steps between two rows of the CSV and two points of a curve", COUNT
    )
    eval_interval: int = setting(
        25, "Logging", "steps between two validations and two histograms", COUNT
    )
    curve_size: int = setting(
        500, "Logging", "validation images behind a point of the curve; the final figures use all",
        COUNT,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))

    def steps_per_epoch(self, train_size):
        """Batches in one pass over the training examples."""
        whole, left = divmod(train_size, self.batch_size)
        return max(1, whole + (left > 0 and self.last_batch == "keep"))

    def total_steps(self, train_size):
        """Training steps of the run: `steps`, or those of `epochs`."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * self.steps_per_epoch(train_size)))

    @property
    def arm_name(self):
        """What the run's arm is called in tables, pictures and folders."""
        return self.arm or self.normalizer

    def fingerprint(self):
        """Twelve hexadecimal digits that two runs share exactly when all settings are equal."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def graph_key(self):
        """Equal for runs that can share one traced graph: all but seed, rate and lengths."""
        varying = {
            name: RUN_FIELDS[name].default
            for name in ("arm", "seed", "learning_rate", "steps", "epochs", "log_interval",
                         "eval_interval", "curve_size", "batch_order", "last_batch", "pitfalls",
                         "pitfall_curve", "drawn_batches")
        }
        return dataclasses.replace(self, **varying).fingerprint()


RUN_FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}


def parse_text(rule, text):
    """The value a text stands for under a rule; a ConfigError says what is expected."""
    try:
        value = rule.parse(text)
    except ValueError:
        value = None
    if value is None or not rule.accepts(value):
        raise ConfigError(f"received {text!r}; expected {rule.expected}")
    return value


def _checked(field, value):
    rule = field.metadata["rule"]
    if value is None and field.default is None:
        return None
    # A whole number is a fine learning rate, but True is no number and 64.0 no count of images.
    kinds = (int, float) if rule.parse is float else (rule.parse,)
    if type(value) not in kinds or not rule.accepts(value):
        raise ConfigError(f"{field.name}={value!r}: expected {rule.expected}")
    return rule.parse(value)
