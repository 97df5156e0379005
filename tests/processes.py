"""Python programs as forks of one process that has imported TensorFlow, Keras and our layers.

Each has a folder, environment, arguments, output and end of its own, as a program that is started
has; what it does not have is a start. Tests of the start itself use `subprocess`.
"""

import atexit
import functools
import os
import pathlib
import resource
import runpy
import sys
import tempfile

from bn_keras.forks import Forks
from bn_keras.native_log import quiet_native_log

ROOT = pathlib.Path(__file__).parent.parent
# As users have it: what is printed waits in a buffer until that is full or flushed.
ENVIRONMENT = {
    **{name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"},
    "PYTHONPATH": str(ROOT),
}


@functools.cache
def forks():
    """The one of this process; it ends with it."""
    server = Forks()
    atexit.register(server.close)
    return server


class Borrowed:
    """The one of this process, for whoever makes one and closes it."""

    def start(self, *request):
        return forks().start(*request)

    def close(self):
        pass


class Program:
    """`python path *arguments`, running."""

    def __init__(self, path, *arguments, cwd=None, environment=()):
        self._files = [tempfile.TemporaryFile() for _ in range(2)]
        self._fork = forks().start("processes:imports", "processes:run_program", {
            "path": str(path), "arguments": [*map(str, arguments)], "cwd": str(cwd or os.getcwd()),
            "environment": {**ENVIRONMENT, **dict(environment)},
        }, [file.fileno() for file in self._files])

    def running(self):
        return not self._fork.wait(0)

    def signal(self, number):
        self._fork.signal(number)

    def limit(self, what, most):
        """Gives it less of a resource from now on."""
        resource.prlimit(self._fork.pid(), what, (most, most))

    def end(self, timeout=300):
        """(exit status, standard output, standard error), once it has ended."""
        ended = self._fork.wait(timeout)
        self._fork.close()
        texts = []
        for file in self._files:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        assert ended, f"still running after {timeout} s: {texts}"
        return (self._fork.returncode, *texts)


def run(path, *arguments, **settings):
    """What a Program ends with."""
    return Program(path, *arguments, **settings).end()


def run_code(folder, code, *arguments, **settings):
    """The same of a program's text, which is put into a folder."""
    path = pathlib.Path(folder, "program.py")
    path.write_text(code)
    return run(path, *arguments, **settings)


# ---------------------------------------------------------------- in the other process


def imports(**_):
    with quiet_native_log():
        import bn_keras.batch_norm.layer  # noqa: F401


def run_program(path, arguments, cwd, environment, files):
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")
