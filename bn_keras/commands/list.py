"""`bn-keras list`: everything that has a name."""

from typing import Sequence

from bn_keras import registry
from bn_keras.commands.console import HELP, refuse, say
from bn_keras.registry import COMMANDS, PartError
from bn_keras.texts import plain

USAGE = """usage: bn-keras list

Lists everything that has a name: studies with their questions and arms, models, normalizers,
datasets, optimizers, losses, probes and figures, those of installed packages included. The names
are what the flags of `bn-keras train` and the settings of `bn_keras.run` take.

Example:
  bn-keras list"""
MOST_ARMS = 12  # of a study that are listed; ladders of rates have dozens
KINDS = (
    registry.MODELS, registry.NORMALIZERS, registry.DATASETS, registry.OPTIMIZERS, registry.LOSSES,
    registry.PROBES, registry.FIGURES,
)


@COMMANDS.register(
    "list", usage="list",
    does="known studies, models, normalizers, datasets, optimizers, losses, probes and figures",
)
def main(arguments: Sequence[str]) -> int:
    """Prints all names, and each study with its question and arms; returns the exit status."""
    if set(arguments) & {*HELP}:
        say(USAGE)
        return 0
    if arguments:
        return refuse("bn-keras list", f"received {' '.join(arguments)}; expected no arguments")
    lines = [f"{kind.kind + ':':12s} {', '.join(kind.names())}" for kind in KINDS]
    lines.append("\nstudies: --study=NAME of train, with --quick for a version of some seconds")
    for name in registry.STUDIES.names():
        try:
            study = registry.STUDIES.get(name)()
        except PartError as error:  # of an installed package; the others are fine
            lines += [f"  {name}", f"      {plain(error)}"]
            continue
        arms = list(study.arms)
        more = f"; … ({len(arms)} in all)" if len(arms) > MOST_ARMS else ""
        lines += [
            f"  {name}", f"      {study.question}",
            f"      {study.duration} on 2 cores; {study.expected}",
            f"      arms: {'; '.join(arms[:MOST_ARMS])}{more}",
        ]
    say("\n".join(lines))
    return 0
