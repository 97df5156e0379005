"""Results of runs, and the work directory that keeps them through crashes.

    WORK_DIR/plan.json                  the study and its runs
    WORK_DIR/runs/ARM/seed_0.json       one finished run; present means complete
    WORK_DIR/runs/ARM/seed_0.csv        its curves, to open in a spreadsheet
    WORK_DIR/runs/ARM/seed_0.npz        what its layers saw, if that was measured
    WORK_DIR/tensorboard/ARM/seed_0/    its TensorBoard events
    WORK_DIR/report.html                the report, with picture.png in it
    WORK_DIR/results.json, results.csv  its numbers; the CSV has one a line
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import numpy as np

from bn_keras.config import RunConfig

OK = "ok"
DIVERGED = "diverged"
MOST = 2**31  # no run has more steps, no dataset more images


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        config: its RunConfig.
        status: "ok", or "diverged" once a loss was not finite.
        steps: steps trained, the diverging one included.
        seconds: wall time of training and evaluation.
        metrics: name to number; None for what was never reached.
        curves: name to list of [step, value].
        start: digest of the initial kernels; equal in arms that started alike.
        versions: of the libraries; the machine under "machine".
        data: digest of the examples.
        notes: sentences on what was assumed, such as the loss of a net of one's own.
    """

    config: RunConfig
    status: str
    steps: int
    seconds: float
    metrics: Dict[str, Optional[float]]
    curves: Dict[str, List[List[Any]]]
    start: str
    versions: Dict[str, str]
    data: str
    notes: Tuple[str, ...] = ()

    def to_json(self) -> str:
        """The result as a text that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "RunResult":
        """The result in a text.

        Raises:
            ValueError: it is no result of this version; the message names the part that is wrong.
        """
        try:
            fields = json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(f"expected the fields {', '.join(sorted(names))}")
        for name, fits in _CHECKS.items():
            if not fits(fields[name]):
                raise ValueError(f"{name} is damaged")
        try:
            config = RunConfig(**fields["config"])
            return cls(**{**fields, "config": config, "notes": tuple(fields["notes"])})
        except TypeError as error:
            raise ValueError(f"config is of another version ({error})") from error


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_value(name: str, value: Any) -> bool:
    """Whether a metric or a point of a curve is None or a number, in range if that is known."""
    if value is None:
        return True
    if not _is_number(value):
        return False
    if "accuracy" in name:
        return bool(0 <= value <= 1)
    if name.endswith("_commonest"):
        return bool(0 < value <= 1)
    return bool(1 <= value <= MOST) if name.endswith("_images") else True


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_curve(name: str, points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and _is_count(point[0])
        and _is_value(name, point[1]) for point in points
    )


_CHECKS: Dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "status": lambda value: value in (OK, DIVERGED),
    "steps": _is_count,
    "seconds": lambda value: _is_number(value) and value >= 0,
    "metrics": lambda value: isinstance(value, dict) and all(
        _is_value(name, number) for name, number in value.items()
    ),
    "curves": lambda value: isinstance(value, dict) and all(
        _is_curve(name, points) for name, points in value.items()
    ),
    "start": lambda value: isinstance(value, str),
    "versions": _is_texts,
    "data": lambda value: isinstance(value, str),
    "notes": lambda value: isinstance(value, list) and all(
        isinstance(text, str) for text in value
    ),
}


class Store:
    """Results of one work directory, a file a run, each written whole or not at all.

    Args:
        work_dir: folder; made on first write.
    """

    def __init__(self, work_dir: Union[str, pathlib.Path]):
        self.work_dir = pathlib.Path(work_dir)

    def run_name(self, config: RunConfig) -> str:
        """Path of a run below `runs/` and `tensorboard/`, such as `batch/seed_0`."""
        return f"{config.arm_name}/seed_{config.seed}"

    def look_up(self, config: RunConfig) -> Tuple[Optional[RunResult], str]:
        """The stored result of exactly this configuration, or why there is none.

        Returns:
            `(result, "")`, or `(None, reason)`, the reason in words.
        """
        path = self._path(config, ".json")
        try:
            result = RunResult.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, "not finished"
        except (OSError, ValueError) as error:
            return None, f"{path} cannot be read: {error}"
        if result.config != config:
            return None, f"{path} is of other settings"
        return result, ""

    def find(self, config: RunConfig) -> Optional[RunResult]:
        """The stored result of exactly this configuration, or None."""
        return self.look_up(config)[0]

    def add(self, result: RunResult) -> None:
        """Stores a result and its curves as CSV; the JSON, written last, marks it complete."""
        write_atomically(self._path(result.config, ".csv"), _curves_csv(result.curves))
        write_atomically(self._path(result.config, ".json"), result.to_json())

    def remove(self, config: RunConfig) -> None:
        """Forgets the stored result of a run."""
        self._path(config, ".json").unlink(missing_ok=True)

    def add_frames(self, config: RunConfig, frames: Mapping[str, Any]) -> None:
        """Stores what the layers of a run saw, a dict of arrays; call it before `add`."""
        packed = io.BytesIO()
        np.savez_compressed(packed, **frames)
        write_atomically(self._path(config, ".npz"), packed.getvalue())

    def frames(self, config: RunConfig) -> Optional[Dict[str, np.ndarray]]:
        """The frames of a run as `add_frames` got them, or None if there are none to read."""
        try:
            # Through memory: of a damaged file NumPy would leave the handle open.
            with np.load(io.BytesIO(self._path(config, ".npz").read_bytes())) as stored:
                return dict(stored)
        except Exception:  # a damaged archive fails in a dozen ways, and pictures can do without
            return None

    def _path(self, config: RunConfig, suffix: str) -> pathlib.Path:
        return self.work_dir / "runs" / (self.run_name(config) + suffix)


def write_atomically(path: Union[str, pathlib.Path], content: Union[str, bytes]) -> None:
    """Writes a text or bytes so that the file is, at any moment, the old one or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names from a file may hold characters that no encoding has.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with in_place_of(path) as scratch:
        scratch.write_bytes(data)


@contextlib.contextmanager
def in_place_of(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to; what is there at the end takes another file's place, whole or not at all.

    Args:
        path: of the file, in a folder that exists. The scratch file's name has the same suffix.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    scratch = pathlib.Path(name)
    try:
        yield scratch
        with open(scratch, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)  # mkstemp makes files for the owner alone
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _curves_csv(curves: Mapping[str, List[List[Any]]]) -> str:
    rows: Dict[int, Dict[str, Any]] = {}
    columns = {name: name.replace("/", "_") for name in curves}
    for name, points in curves.items():
        for step, value in points:
            rows.setdefault(step, {})[columns[name]] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *columns.values()], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **rows[step]} for step in sorted(rows))
    return text.getvalue()
