"""The flags of `train`: fields of RunConfig, and the choice of arms, seeds and folder."""

import dataclasses
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from absl import flags

from bn_keras import config as configs
from bn_keras.config import PARTS, RUN_FIELDS, ConfigError, Rule
from bn_keras.plan import REGISTRIES
from bn_keras.registry import did_you_mean

USAGE = """Trains a net with and without batch normalization and compares them.

  {program}                     both arms, 6 seeds, about a minute
  {program} --is_bn             only with batch normalization
  {program} --is_bn=False       only without
  {program} --learning_rate=0.1 --steps=250
  {program} --study=learning_rates   a study, with its claims and verdicts
  {program} --model=my_net.py:build --dataset=my_data.py:load --learning_rate=0.01,0.1,1
                                a net and data of your own, each arm at three rates
"""
YES_NO = Rule(str, (str, bool), lambda text: True, "true or false")
ARMS = Rule(
    configs.names_of, (tuple,), lambda names: bool(names), "names with commas between"
)
Flag = Tuple[Rule, Any, str]
# A list of values makes an axis of every other setting; a path may have commas in it.
ONE_VALUE = ("normalizer", "measure", "dataset", "data_dir", "model")
SWEEP = re.compile(
    r"(?P<name>\w+)=(?P<first>[^:]+):(?P<last>[^:]+):(?P<count>\d{1,4})(?P<spacing>log|lin)"
)


def flag_groups() -> Dict[str, Dict[str, Flag]]:
    """Group title to flag name to (rule, default, why)."""
    groups: Dict[str, Dict[str, Flag]] = {
        "Arms and seeds": {
            "is_bn": (YES_NO, None, "unset: both arms, which is the comparison"),
            "study": (configs.TEXT, None,
                      "a tutorial or paper, with the arms, controls and claims that it needs; "
                      "other flags change its settings. bn-keras list has them all"),
            "quick": (YES_NO, False, "with --study: a short version, under 20 s"),
            "arms": (configs.TEXT, None, "with --study: only these of its arms, with ; between"),
            "sweep": (configs.TEXT, None,
                      "further values to try, such as learning_rate=1e-4:3:9log, nine of them "
                      "evenly spaced on a logarithmic scale, or batch_size=16:64:4lin; several "
                      "with ; between. A list, --learning_rate=0.01,0.1, does the same"),
            "dry_run": (YES_NO, False, "show the plan and how long it would take; keep nothing"),
            "seeds": (configs.SEEDS, None,
                      "unset: the study's own; 6 in the comparison of two arms, the "
                      "fewest that can decide, and more for more arms"),
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
    for title, part in PARTS.items():
        groups[title] = {
            name: (field.metadata["rule"], field.default, field.metadata["why"])
            for name, field in RUN_FIELDS.items()
            if name != "seed" and name in [field.name for field in dataclasses.fields(part)]
        }
    rule, default, why = groups["Model"]["normalizer"]
    groups["Model"]["normalizer"] = (ARMS, (default,), why + "; several with commas between")
    return groups


def help_text(program: str) -> str:
    """All flags by group, each with its default, the reason for it and what it accepts."""
    lines = [USAGE.format(program=program)]
    for group, rules in flag_groups().items():
        lines.append(f"{group}:")
        for name, (rule, default, why) in rules.items():
            shown = ",".join(default) if isinstance(default, tuple) else default
            lines.append(f"  --{name}" + ("" if default is None else f"={shown}"))
            lines.append(f"        {why}")
            choices = ", ".join(REGISTRIES[name].names()) if name in REGISTRIES else rule.expected
            lines.append(f"        ({choices})")
        lines.append("")
    lines.append("--flagfile=FILE reads flags from a file, one a line.")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> Optional[Dict[str, Any]]:
    """Values by flag name; those that were given are named under `given`. None asks for help.

    Args:
        argv: the program's name and its arguments.

    Raises:
        flags.Error, ConfigError: an unknown flag, a value that the flag does not accept, or flags
            that do not go together.
    """
    if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
        return None
    values: Any = flags.FlagValues()  # type: ignore[no-untyped-call]
    rules = {name: flag for group in flag_groups().values() for name, flag in group.items()}
    for name, (rule, default, why) in rules.items():
        parser = _Parser(rule, several=name in RUN_FIELDS and name not in ONE_VALUE)
        if rule is YES_NO:
            values[name] = flags.BooleanFlag(name, default, why)  # also --is_bn and --nois_bn
            values[name].parser = parser
        else:
            values[name] = flags.Flag(parser, flags.ArgumentSerializer(), name, default, why)
    try:
        rest = values(list(argv))[1:]
    except flags.CantOpenFlagFileError as error:
        raise ConfigError(
            f"--flagfile: {error.__context__}; expected a file with flags in it, one a line"
        ) from error
    except ValueError as error:  # absl's own word on --nois_bn=3
        raise ConfigError(str(error)) from error
    if rest:
        name = rest[0].lstrip("-").split("=")[0]
        hint = did_you_mean(f"--{name}", [f"--{known}" for known in rules])
        raise ConfigError(f"unexpected argument {rest[0]!r}; expected flags like --seeds=3{hint}")
    given = [name for name in rules if values[name].present]
    _check_together({name: values[name].value for name in given})
    return {**{name: values[name].value for name in rules}, "given": given}


def axes(options: Dict[str, Any]) -> Dict[str, Tuple[Any, ...]]:
    """The settings that were given several values, as lists or by --sweep.

    Raises:
        ConfigError: a sweep that cannot be read.
    """
    found = {
        name: options[name] for name in options["given"]
        if name in RUN_FIELDS and name not in ONE_VALUE and isinstance(options[name], tuple)
    }
    for part in filter(None, (options["sweep"] or "").split(";")):
        name, values = _range(part.strip())
        if name in found or name in options["given"]:
            raise ConfigError(f"--sweep={part}: --{name} has values already; expected one of both")
        found[name] = values
    return found


def _range(text: str) -> Tuple[str, Tuple[Any, ...]]:
    """Name and values of `NAME=FIRST:LAST:COUNTlog`; log and lin say how they are spaced."""
    match = SWEEP.fullmatch(text)
    if not match or match["name"] not in RUN_FIELDS:
        hint = did_you_mean(match["name"], RUN_FIELDS) if match else ""
        raise ConfigError(
            f"--sweep={text}: expected NAME=FIRST:LAST:COUNTlog or …lin, such as "
            f"learning_rate=1e-4:3:9log{hint}"
        )
    rule = RUN_FIELDS[match["name"]].metadata["rule"]
    count = int(match["count"])
    try:
        first, last = float(match["first"]), float(match["last"])
    except ValueError as error:
        raise ConfigError(f"--sweep={text}: {error}; expected numbers") from error
    logarithmic = match["spacing"] == "log"
    if not 2 <= count <= 100 or not first < last or (logarithmic and first <= 0):
        raise ConfigError(
            f"--sweep={text}: expected 2 to 100 values from a smaller number to a larger one"
            + ", both above 0" * logarithmic
        )
    values = []
    for place in range(count):
        share = place / (count - 1)
        value = first * (last / first) ** share if logarithmic else first + (last - first) * share
        # Three digits are what one would choose, and what a table can show.
        short = float(f"{value:.3g}") if 0 < place < count - 1 else value
        values.append(round(short) if rule.kinds == (int,) else short)
    return match["name"], tuple(dict.fromkeys(values))


def normalizers(options: Dict[str, Any]) -> List[str]:
    """The arms of the comparison that --is_bn and --normalizer ask for.

    Raises:
        ConfigError: none is left.
    """
    named = [name for name in options["normalizer"] if name != "none"]
    if options["is_bn"] is True and not named:
        raise ConfigError("--is_bn=True with --normalizer=none: expected a normalizer like batch")
    return {None: ["none", *named], True: named, False: ["none"]}[options["is_bn"]]


def _check_together(given: Dict[str, Any]) -> None:
    if {"steps", "epochs"} <= set(given):
        raise ConfigError(
            f"--steps={given['steps']} and --epochs={given['epochs']}: expected one of them"
        )
    if not given.get("study"):
        for name in ("quick", "arms"):
            if given.get(name):
                raise ConfigError(
                    f"--{name} without --study: expected a study, such as --study=learning_rates"
                )
    elif given["study"] != "comparison":
        for name in ("is_bn", "normalizer"):
            if name in given:
                raise ConfigError(
                    f"--{name} with --study={given['study']}: a study has arms of its own"
                )


class _Parser(flags.ArgumentParser):  # type: ignore[type-arg]
    """Turns a flag's text into a value by the rule of its setting."""

    def __init__(self, rule: Rule, several: bool = False):
        super().__init__()
        self._rule, self._several = rule, several

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if self._rule is YES_NO:
            return _yes_no(argument)
        if self._several and "," in argument:
            return tuple(configs.parse_text(self._rule, part.strip())
                         for part in argument.split(","))
        return configs.parse_text(self._rule, argument)

    def flag_type(self) -> str:
        return "value"


def _yes_no(text: str) -> bool:
    known = {"true": True, "t": True, "1": True, "yes": True,
             "false": False, "f": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ConfigError(f"received {text!r}; expected {YES_NO.expected}")
    return known[text.lower()]
