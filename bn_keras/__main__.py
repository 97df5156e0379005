"""`python -m bn_keras VERB`, also installed as `bn-keras`: each verb is a file in `commands`."""

import sys
from typing import List, Optional

from bn_keras import __version__
from bn_keras.commands.console import INTERRUPTED, end_at_once, refuse, say
from bn_keras.registry import COMMANDS, PartError, UnknownName


def usage() -> str:
    """All verbs with what they do."""
    lines = ["usage: bn-keras VERB [...]", ""]
    for name in COMMANDS.names():
        properties = COMMANDS.properties(name)
        lines.append(f"  {properties.get('usage', name)}\n        {properties.get('does', '')}")
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> int:
    """Calls a verb.

    Args:
        argv: the verb and its arguments; None for those of the process.

    Returns:
        The exit status.
    """
    if argv is None:
        argv = sys.argv[1:]
        end_at_once()
    verb, *arguments = argv or ["--help"]
    try:
        if verb in ("-h", "--help", "help"):
            say(usage())
            return 0
        if verb == "--version":
            say(f"bn-keras {__version__}")
            return 0
        status: int = COMMANDS.get(verb)(arguments)
        return status
    except (PartError, UnknownName) as error:
        return refuse("bn-keras", error)
    except OSError as error:  # the output met a full disk
        return refuse("bn-keras", error, 1)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
