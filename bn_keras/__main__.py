"""`python -m bn_keras VERB`, also installed as `bn-keras`: each verb is a file in `commands`."""

import sys
from typing import List, Optional

from bn_keras.registry import COMMANDS, UnknownName


def usage() -> str:
    """All verbs with what they do."""
    lines = ["usage: bn-keras VERB [...]", ""]
    for name in COMMANDS.names():
        properties = COMMANDS.properties(name)
        lines.append(f"  {properties['usage']}\n        {properties['does']}")
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> int:
    """Calls a verb; returns the exit status."""
    from bn_keras.commands.console import refuse, say

    verb, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        say(usage())
        return 0
    try:
        command = COMMANDS.get(verb)
    except UnknownName as error:
        return refuse("bn-keras", error)
    status: int = command(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
