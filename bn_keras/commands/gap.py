"""`bn-keras gap MODEL --dataset=DATA`: why validation is worse than training, in parts."""

import argparse
import json
from typing import Sequence

from bn_keras.commands.console import say
from bn_keras.commands.models import inspect, make_parser, read_data, read_model
from bn_keras.registry import COMMANDS

DOES = """Splits the gap between the loss in inference mode and that in training mode in parts:
late averages, the noise of batches, other data. Measured on the test set of DATA and its training
set with the same weights; nothing but the statistics in batch normalization changes.

Example:
  bn-keras gap net.keras --dataset=my_data.py:load --layers=3
"""


@COMMANDS.register(
    "gap", usage="gap MODEL --dataset=DATA [flags]",
    does="why the loss in inference mode is not that in training mode, in parts",
)
def main(arguments: Sequence[str]) -> int:
    """Measures the gap of the model that the arguments name; returns the exit status."""
    parser = make_parser("gap", DOES, with_data=True, data_required=True, writes=False)
    parser.add_argument(
        "--layers", type=int, default=0, metavar="N",
        help="tell the parts of the N layers whose averages are the furthest off, too")

    def work(options: argparse.Namespace) -> int:
        splits = read_data(options)
        model = read_model(options.model)
        from bn_keras.diagnostics.gap import gap

        assert splits is not None
        found = gap(
            model, (splits.test.images, splits.test.labels),
            train=(splits.train.images, splits.train.labels), layers=options.layers,
            batch_size=options.batch_size,
        )
        say(json.dumps(found.to_dict(), indent=1) if options.json else str(found))
        return 0

    return inspect(parser, arguments, work)
