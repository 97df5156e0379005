"""Runs notebooks anew and stores their outputs: `python notebooks/refresh.py`, 1 to 30 CPU s each.

Names of files after the command run these only. What differs from run to run or from machine to
machine is not stored: times, the version of Python, TensorFlow's log.
"""

import os
import pathlib
import re
import sys

# The kernel is this Python's, whatever kernels the user has installed.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# TensorFlow 2.21 writes these while it loads, at every log level. A Python warning stays.
LOG = re.compile(r"(WARNING: All log messages before absl|[IW]\d{4} |\[IPKernelApp\]).*\n?")


def execute(path, manager=None):
    """The notebook with the outputs of a fresh kernel; an error in a cell is raised.

    Args:
        path: of the notebook.
        manager: a jupyter_client.AsyncKernelManager, whose kernel is used and left running.
    """
    notebook = nbformat.read(path, as_version=4)
    # The package is that of this checkout, whichever is installed.
    search = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    try:
        client.execute(env={**os.environ, "PYTHONPATH": search, "TF_CPP_MIN_LOG_LEVEL": "3"})
    finally:
        if manager is not None:
            client.kc.stop_channels()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_log(output)]
    return notebook


def _is_log(output):
    return output.get("name") == "stderr" and not LOG.sub("", output.text).strip()


if __name__ == "__main__":
    paths = [pathlib.Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        nbformat.write(execute(path), path)
        print("stored", path)
