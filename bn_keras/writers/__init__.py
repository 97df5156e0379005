"""Writers take a run's numbers while it runs, one a file: memory, TensorBoard, the terminal."""

from typing import Any, Iterable, List, Mapping


class Writer:
    """The narrow interface that a run writes to; a writer overrides what it can show.

    Values are floats (scalars) or arrays of any shape (histograms), by tag; steps are counted from
    the start of training.
    """

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes a dict of tag to float, or None where it is not finite."""

    def histograms(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes a dict of tag to array."""

    def finish(self, result: Any) -> None:
        """Takes the RunResult at the end of the run; the writer is not used again."""

    def close(self) -> None:
        """Releases files, whether or not the run came to its end."""


class FanOut(Writer):
    """Passes everything on to several writers."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self._writers: List[Writer] = list(writers)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def histograms(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.histograms(step, values)

    def finish(self, result: Any) -> None:
        for writer in self._writers:
            writer.finish(result)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
