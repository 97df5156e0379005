"""`bn-keras exchange MODEL --to=NAME`: other normalizers in a finished model."""

import argparse
import ast
from typing import Any, Sequence, Tuple

from bn_keras.commands.models import make_parser, operate, some_inputs
from bn_keras.registry import COMMANDS

DOES = """Puts another normalizer in the place of each one. All else stays, and what both kinds
have goes along: axis, offset, scale, statistics. --to=batch and --to=keras_batch exchange Keras's
layer and BatchNorm for each other, with equal outputs; others compute something else.

Example:
  bn-keras exchange net.keras --to=group --set groups=8
"""


@COMMANDS.register(
    "exchange", usage="exchange MODEL --to=NAME [flags]",
    does="put another normalizer in the place of each one of a model",
)
def main(arguments: Sequence[str]) -> int:
    """Exchanges the normalizers of the model that the arguments name; returns the exit status."""
    parser = make_parser("exchange", DOES, with_data=True)
    parser.add_argument("--to", required=True, metavar="NAME", help="bn-keras list has the names")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE",
        help="a setting of the new normalizer, such as momentum=0.9; may be given several times")

    def surgery(model: Any, splits: Any, options: argparse.Namespace) -> Any:
        from bn_keras.surgery.exchange import exchange

        return exchange(
            model, options.to, inputs=some_inputs(splits, options), **dict(options.set)
        )

    return operate("exchange", parser, arguments, surgery)


def _setting(text: str) -> Tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"received {text!r}; expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a text, such as the name of an initializer
