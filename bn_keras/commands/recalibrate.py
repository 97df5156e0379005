"""`bn-keras recalibrate MODEL --dataset=DATA`: exact population statistics for a trained model."""

from typing import Any, Sequence

from bn_keras.commands.models import make_parser, operate
from bn_keras.registry import COMMANDS

DOES = """Replaces the moving statistics by the exact mean and variance over the training examples.
The weights stay. A better score afterwards was the averages' fault and not the training's.

The certificate says how far each layer's statistics moved, the accuracy before and after, and how
many batches are enough.

Example:
  bn-keras recalibrate net.keras --dataset=my_data.py:load
"""


@COMMANDS.register(
    "recalibrate", usage="recalibrate MODEL --dataset=DATA [flags]",
    does="give a trained model the exact statistics of its data",
)
def main(arguments: Sequence[str]) -> int:
    """Recalibrates the model that the arguments name; returns the exit status."""
    parser = make_parser("recalibrate", DOES, with_data=True, data_required=True)
    parser.add_argument(
        "--one_pass", action="store_true",
        help="read the examples once, for a net with many normalizers: close to the exact "
        "statistics, the closer the larger --batch_size")

    def operation(model: Any, splits: Any, options: Any) -> Any:
        from bn_keras.surgery.recalibrate import recalibrate, recalibrate_in_one_pass

        surgery = recalibrate_in_one_pass if options.one_pass else recalibrate
        train = splits.train
        return surgery(model, (train.images, train.labels), batch_size=options.batch_size)

    return operate("recalibrate", parser, arguments, operation)
