"""`bn-keras freeze MODEL` and `unfreeze`: batch normalization held still in `fit`, or let go."""

import argparse
import math
from typing import Any, Sequence

from bn_keras.commands.models import make_parser, operate
from bn_keras.registry import COMMANDS

DOES = """{does} The certificate says what each layer does in `fit`, as measured: what it
normalizes with, whether its averages move, whether gamma and beta learn.

Example:
  bn-keras {verb} net.keras --what=statistics --layers="block[12]_"
"""


@COMMANDS.register(
    "freeze", usage="freeze MODEL [flags]",
    does="hold the batch normalization of a model still in fit, whole or by half",
)
def freeze(arguments: Sequence[str]) -> int:
    """Freezes layers of the model that the arguments name; returns the exit status."""
    return _main(
        "freeze", "statistics", "Freezes batch normalization in a copy of a model.", arguments
    )


@COMMANDS.register(
    "unfreeze", usage="unfreeze MODEL [flags]",
    does="let the batch normalization of a model move in fit again",
)
def unfreeze(arguments: Sequence[str]) -> int:
    """Thaws layers of the model that the arguments name; returns the exit status."""
    return _main(
        "unfreeze", "both", "Thaws batch normalization in a copy of a model.", arguments
    )


def _main(verb: str, default: str, does: str, arguments: Sequence[str]) -> int:
    parser = make_parser(verb, DOES.format(does=does, verb=verb), with_data=False)
    parser.add_argument(
        "--what", default=default, choices=("statistics", "affine", "both"),
        help="statistics: the averages; affine: gamma and beta (default: %(default)s)")
    parser.add_argument(
        "--layers", type=_layers, metavar="WHICH",
        help="a number of the first ones, a share of them such as 0.5, or a regular expression "
        "that is searched in each layer's path (default: all)")

    def surgery(model: Any, splits: Any, options: argparse.Namespace) -> Any:
        from bn_keras.surgery import freeze as surgeries

        return getattr(surgeries, verb)(model, options.what, options.layers)

    return operate(verb, parser, arguments, surgery)


def _layers(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text  # a regular expression
    if not math.isfinite(number):
        return text
    return int(number) if number.is_integer() and "." not in text else number
