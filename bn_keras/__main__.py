"""`python -m bn_keras VERB`, also installed as `bn-keras`."""

import sys

USAGE = """usage: bn-keras VERB [...]

  train [flags]      compare with and without batch normalization; train --help lists the flags
  report WORK_DIR    print and draw again what a work directory holds
  conformance LAYER  is a batch normalization layer right? LAYER is keras.layers.BatchNormalization,
                     bn_keras.BatchNorm, or module:Class of your own; conformance --help
                     lists the flags
  list               known studies, models, normalizers, datasets, optimizers and losses
"""
MOST_ARMS = 12  # of a study that are listed; ladders of rates have dozens


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
    if verb == "conformance":
        from bn_keras.conformance_cli import main as conformance

        return conformance(arguments[1:])
    if verb == "list":
        return _list()
    print(
        f"bn-keras: unknown verb {verb!r}; expected train, report, conformance or list",
        file=sys.stderr,
    )
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
    print("\nstudies: python train.py --study=NAME, with --quick for a version of some seconds")
    for name in registry.STUDIES.names():
        study = registry.STUDIES.get(name)()
        print(f"  {name}\n      {study.question}")
        print(f"      {study.duration} on 2 cores; {study.expected}")
        arms = list(study.arms)
        more = f"; … ({len(arms)} in all)" if len(arms) > MOST_ARMS else ""
        print(f"      arms: {'; '.join(arms[:MOST_ARMS])}{more}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
