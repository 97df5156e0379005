"""`bn-keras doctor MODEL --dataset=DATA`: what is wrong with BN in a model, and what mends it."""

import argparse
import io
import shlex
from typing import TYPE_CHECKING, Iterator, Sequence

from bn_keras.commands.console import say
from bn_keras.commands.models import inspect, make_parser, read_data, read_model
from bn_keras.registry import COMMANDS
from bn_keras.results import write_atomically
from bn_keras.texts import plain

if TYPE_CHECKING:
    from bn_keras.diagnosis import Diagnosis

# A remedy that is one call, and nothing else → the verb that does it.
VERBS = {
    "bn_keras.recalibrate(model, train)": ["recalibrate"],
    "bn_keras.recalibrate(model, data)": ["recalibrate"],
    "recalibrate_in_one_pass(model, train, 256)": [
        "recalibrate", "--one_pass", "--batch_size=256"],
    "recalibrate_in_one_pass(model, data, 256)": [
        "recalibrate", "--one_pass", "--batch_size=256"],
    "bn_keras.freeze(model, 'statistics')": ["freeze"],
    "bn_keras.freeze(model, 'both')": ["freeze", "--what=both"],
    "bn_keras.convert(model)": ["exchange", "--to=batch"],
}
DATA_FLAGS = ("dataset", "data_dir", "image_size", "pixels")
DOES = """Looks for faults of batch normalization in a trained model: what is wrong, where, what it
costs in loss or accuracy, and the line of code that mends it. The test set of DATA is what it looks
at, as examples that the model was not trained on; the training set tells late averages from other
data. Without --dataset only weights and settings are looked at; what could not be looked at is
listed.

Exit status: 0 nothing wrong, 1 wrong results or lost accuracy, 2 it could not look.

Example:
  bn-keras doctor net.keras --dataset=my_data.py:load
"""


@COMMANDS.register(
    "doctor", usage="doctor MODEL [--dataset=DATA] [flags]",
    does="what is wrong with batch normalization in a model, what it costs, what mends it",
)
def main(arguments: Sequence[str]) -> int:
    """Examines the model that the arguments name; returns the exit status."""
    parser = make_parser("doctor", DOES, with_data=True, writes=False)
    parser.add_argument(
        "--only", metavar="NAMES", default="", help="only these findings, with commas between")
    parser.add_argument(
        "--picture", metavar="FILE.png", help="draw how far the averages of each layer are off")

    def work(options: argparse.Namespace) -> int:
        splits = read_data(options)
        model = read_model(options.model)
        from bn_keras.diagnosis import doctor

        data = train = None
        if splits is not None:
            data, train = (
                (split.images, split.labels) for split in (splits.test, splits.train)
            )
        found = doctor(
            model, data, train=train, batch_size=options.batch_size,
            only=[name.strip() for name in options.only.split(",") if name.strip()],
        )
        say(found.to_json() if options.json else str(found))
        if not options.json:
            for command in _commands(found, options):
                say(f"as a command: {command}")
        if options.picture:
            stream = io.BytesIO()
            found.figure().savefig(stream, format="png", dpi=150)
            write_atomically(options.picture, stream.getvalue())
            if not options.json:
                say(f"picture      {plain(options.picture)}")
        return found.exit_status

    return inspect(parser, arguments, work)


def _commands(found: "Diagnosis", options: argparse.Namespace) -> Iterator[str]:
    """The verbs that do what remedies say, for the same model and data."""
    remedies = dict.fromkeys(one.remedy.rpartition(" = ")[2] for one in found.findings)
    for remedy in remedies:
        if remedy not in VERBS:
            continue
        verb, *flags = VERBS[remedy]
        if verb == "recalibrate":
            flags += [f"--{flag}={getattr(options, flag)}" for flag in DATA_FLAGS
                      if getattr(options, flag) not in (None, "unit")]
        yield shlex.join(["bn-keras", verb, options.model, *flags])
