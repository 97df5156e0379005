"""Shows the examples of docstrings as code: for mkdocs.yml.

Markdown reads `>>>` as a quotation three deep. This extension of Griffe, which reads the docstrings
for the API reference, puts fences around the examples.
"""

import re
from typing import Any

import griffe

# From a line with a prompt to the next empty line, or the end.
EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around every example of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(
                r"\g<indent>```pycon\n\g<0>\n\g<indent>```", obj.docstring.value
            )
