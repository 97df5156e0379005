"""`python -m bn_keras VERB`, also installed as `bn-keras`."""

import sys

USAGE = """usage: bn-keras VERB [...]

  train [flags]      compare with and without batch normalization; train --help lists the flags
  report WORK_DIR    print and draw again what a work directory holds
  list               known models, normalizers, datasets, optimizers and losses
"""


def main(argv=None):
    """Dispatches to a verb; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if verb == "train":
        from bn_keras.cli import main as train

        return train(["bn-keras train", *arguments[1:]])
    if verb == "report":
        return _report(arguments[1:])
    if verb == "list":
        return _list()
    print(f"bn-keras: unknown verb {verb!r}; expected train, report or list", file=sys.stderr)
    return 2


def _report(arguments):
    if len(arguments) != 1:
        print(f"bn-keras report: received {arguments}; expected one WORK_DIR", file=sys.stderr)
        return 2
    from bn_keras.cli import make_console, report_on
    from bn_keras.results import Store

    try:
        report_on(Store(arguments[0]), make_console())
    except (OSError, ValueError, TypeError) as error:
        print(
            f"bn-keras report: {arguments[0]}: no work directory of a training command ({error})",
            file=sys.stderr,
        )
        return 2
    return 0


def _list():
    from bn_keras import registry

    for kind in (registry.MODELS, registry.NORMALIZERS, registry.DATASETS, registry.OPTIMIZERS,
                 registry.LOSSES):
        print(f"{kind.kind + ':':12s} {', '.join(kind.names())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
