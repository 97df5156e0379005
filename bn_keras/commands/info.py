"""`bn-keras info MODEL`: every batch normalization of a model, and what `fit` would do with it."""

import argparse
import json
from typing import Sequence

from bn_keras.commands.console import say
from bn_keras.commands.models import inspect, make_parser, read_model
from bn_keras.registry import COMMANDS
from bn_keras.texts import jsonable, plain

DOES = """Lists every batch normalization of a model: what `fit` would normalize with, whether it is
trainable, over how many steps its averages reach back, and whether they were ever updated. The
model is called on random inputs to see it; bn-keras doctor looks for faults.

Example:
  bn-keras info net.keras
"""


@COMMANDS.register(
    "info", usage="info MODEL [--json]",
    does="every batch normalization of a model, and what fit would do with it",
)
def main(arguments: Sequence[str]) -> int:
    """Lists the layers of the model that the arguments name; returns the exit status."""
    parser = make_parser("info", DOES, with_data=False, writes=False)

    def work(options: argparse.Namespace) -> int:
        model = read_model(options.model)
        from bn_keras.diagnosis import doctor

        found = doctor(model, only=["statistics_initial"])
        if options.json:
            say(json.dumps(jsonable(found.table), indent=1, allow_nan=False))
        else:
            say(found.table_text() if found.table else "no built batch normalization in it")
            for one in found.not_looked:
                say(f"not looked: {plain(' in '.join(filter(None, [one.name, one.layer])))}: "
                    f"{plain(one.reason)}")
        return 0

    return inspect(parser, arguments, work)
