"""`bn-keras fold MODEL`: batch normalization folded into its neighbours, for deployment."""

from typing import Any, Sequence

from bn_keras.commands.models import make_parser, operate, some_inputs
from bn_keras.registry import COMMANDS

DOES = """Folds batch normalization into the layers next to it: same outputs in inference mode, but
fewer layers. The new model is for predictions; it cannot be trained as the given one can.

With --dataset the outputs of both models are compared on examples of it, else on random inputs.
The certificate lists every normalizer, folded or left, and why.

Example:
  bn-keras fold net.keras --output=deployed.keras
"""


@COMMANDS.register(
    "fold", usage="fold MODEL [flags]",
    does="fold batch normalization into the layers next to it, for deployment",
)
def main(arguments: Sequence[str]) -> int:
    """Folds the model that the arguments name; returns the exit status."""
    parser = make_parser("fold", DOES, with_data=True)

    def surgery(model: Any, splits: Any, options: Any) -> Any:
        from bn_keras.surgery.fold import fold

        return fold(model, inputs=some_inputs(splits, options))

    return operate("fold", parser, arguments, surgery)
