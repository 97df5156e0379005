"""What a run gave, and the work directory that keeps it through crashes.

    WORK_DIR/plan.json                  what the last command asked for
    WORK_DIR/study.json                 the study that it is of, if any
    WORK_DIR/runs/ARM/seed_0.json       one finished run; present means complete
    WORK_DIR/runs/ARM/seed_0.csv        its curves, to open in a spreadsheet
    WORK_DIR/runs/ARM/seed_0.npz        what its layers saw, epoch by epoch, if captured
    WORK_DIR/tensorboard/ARM/seed_0/    its TensorBoard events
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
import tempfile
import zipfile

import numpy as np

from bn_keras.config import RunConfig

OK = "ok"
DIVERGED = "diverged"


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
        versions: of the libraries.
        data: digest of the examples.
    """

    config: RunConfig
    status: str
    steps: int
    seconds: float
    metrics: dict
    curves: dict
    start: str
    versions: dict
    data: str = ""

    def to_json(self):
        """The result as a text that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text):
        """The result in a text; raises ValueError or TypeError on any other text."""
        fields = json.loads(text)
        return cls(**{**fields, "config": RunConfig(**fields["config"])})


class Store:
    """Results of one work directory, a file a run, each written whole or not at all.

    Args:
        work_dir: folder; made on first write.
    """

    def __init__(self, work_dir):
        self.work_dir = pathlib.Path(work_dir)

    def run_name(self, config):
        """Path of a run below `runs/` and `tensorboard/`, such as `batch/seed_0`."""
        return f"{config.arm_name}/seed_{config.seed}"

    def find(self, config):
        """The stored result of exactly this configuration, or None."""
        path = self._path(config, ".json")
        try:
            result = RunResult.from_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return result if result.config == config else None

    def add(self, result):
        """Stores a result and its curves as CSV; the JSON, written last, marks it complete."""
        write_atomically(self._path(result.config, ".csv"), _curves_csv(result.curves))
        write_atomically(self._path(result.config, ".json"), result.to_json())

    def add_frames(self, config, frames):
        """Stores what the layers of a run saw, a dict of arrays; to be called before `add`."""
        packed = io.BytesIO()
        np.savez_compressed(packed, **frames)
        write_atomically(self._path(config, ".npz"), packed.getvalue())

    def frames(self, config):
        """What `add_frames` was given for a run, or None where there is nothing readable."""
        try:
            # Through memory: of a damaged file NumPy would leave the handle open.
            with np.load(io.BytesIO(self._path(config, ".npz").read_bytes())) as stored:
                return dict(stored)
        except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def write_plan(self, configs):
        """Notes which runs the work directory's report is about."""
        plan = [dataclasses.asdict(config) for config in configs]
        write_atomically(self.work_dir / "plan.json", json.dumps(plan, indent=1))

    def write_study(self, name, quick):
        """Notes which study the work directory is of, before its plan."""
        write_atomically(self.work_dir / "study.json", json.dumps({"name": name, "quick": quick}))

    def study(self):
        """`{"name", "quick"}` of the study that the work directory is of, or None."""
        try:
            return json.loads((self.work_dir / "study.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def planned(self):
        """The planned configurations.

        Raises:
            FileNotFoundError: the folder is no work directory.
            ValueError: its plan cannot be read.
        """
        plan = json.loads((self.work_dir / "plan.json").read_text(encoding="utf-8"))
        return [RunConfig(**config) for config in plan]

    def results(self):
        """Stored results of the planned runs, in the plan's order."""
        found = [self.find(config) for config in self.planned()]
        return [result for result in found if result is not None]

    def _path(self, config, suffix):
        return self.work_dir / "runs" / (self.run_name(config) + suffix)


def write_atomically(path, content):
    """Writes a text or bytes so that the file is, at any moment, the old one or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)  # mkstemp makes files for the owner alone
        os.replace(scratch, path)
    except BaseException:
        pathlib.Path(scratch).unlink(missing_ok=True)
        raise


def _curves_csv(curves):
    rows = {}
    columns = {name: name.replace("/", "_") for name in curves}
    for name, points in curves.items():
        for step, value in points:
            rows.setdefault(step, {})[columns[name]] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *columns.values()], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **rows[step]} for step in sorted(rows))
    return text.getvalue()
