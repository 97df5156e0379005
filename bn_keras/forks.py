"""Forks of one process that has imported what they need, so that each of them starts at once.

TensorFlow takes seconds to import, and until its first op a process that has imported it can be
forked. So a server imports, and does nothing else; each child is a fork of it that nothing of the
ones before has touched, and that ends without harm to the ones after.

    with contextlib.closing(Forks()) as forks:
        fork = forks.start("my_module:imports", "my_module:work", {"number": 3})
        fork.wait(60)  # work(number=3) in a session of its own; the exit status

This file is the server, too; it imports nothing of the package.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional, Sequence


class Fork:
    """A child, seen from the process that asked for it.

    Attributes:
        returncode: as of subprocess.Popen; None while it runs, and where nobody lives to tell it.
    """

    def __init__(self, report: int) -> None:
        self._report, self._said, self._open = report, b"", True
        self.returncode: Optional[int] = None

    def _hear(self, seconds: float, count: int) -> List[int]:
        """The first numbers of the report, pid and exit status, as far as they come in time."""
        deadline = time.monotonic() + seconds
        while self._open and self._said.count(b"\n") < count:
            if not select.select([self._report], [], [], max(0, deadline - time.monotonic()))[0]:
                break
            read = os.read(self._report, 64)
            self._said += read
            if not read:
                self._stop()
        return [int(line) for line in self._said.split(b"\n")[:-1]]

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, in that time; 0 asks without waiting."""
        said = self._hear(seconds, 2)
        if len(said) > 1:
            self.returncode = said[1]
            self._stop()
        return not self._open

    def pid(self, seconds: float = 300) -> Optional[int]:
        """The child's number, and that of its group; None if it has none in that time."""
        return next(iter(self._hear(seconds, 1)), None)

    def signal(self, number: int) -> None:
        """Sends a signal to the child and the processes that it started, where there are any."""
        pid = self.pid(0)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    def close(self) -> None:
        """Ends it and the processes that it started."""
        self.signal(signal.SIGKILL)
        self._stop()

    def _stop(self) -> None:
        if self._open:
            self._open = False
            os.close(self._report)


class Forks:
    """A process that forks."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__], stdin=theirs.fileno(), stdout=2,
                start_new_session=True, env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
            )

    def start(
        self, before: str, call: str, arguments: Dict[str, Any], files: Sequence[int] = ()
    ) -> Fork:
        """Has the server call one function, fork, and call another one in the child.

        Args:
            before: `module:function` that imports; it starts no thread, and runs nobody's code.
            call: `module:function` that the child calls.
            arguments: of both functions, as JSON has them.
            files: descriptors that the child gets as the last argument, under other numbers.
        """
        report, theirs = os.pipe()
        with tempfile.TemporaryFile() as task:
            task.write(json.dumps([sys.path, os.getcwd(), before, call, arguments]).encode())
            task.seek(0)
            with suppress(BrokenPipeError):  # then the report has no writer, which tells it
                socket.send_fds(self._socket, [b"."], [task.fileno(), theirs, *files])
        os.close(theirs)
        return Fork(report)

    def close(self) -> None:
        """Ends the server, and no child."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


# ---------------------------------------------------------------- in the server


def _serve() -> None:
    """Forks for each request; returns in a child, once that has done what it is for."""
    requests = socket.socket(fileno=0)
    while True:
        received, files, *_ = socket.recv_fds(requests, 1, 16)
        if not received:
            os._exit(0)
        task, report, *given = files
        with open(task) as text:
            sys.path[:], folder, before, call, arguments = json.load(text)
        os.chdir(folder)
        _function(before)(**arguments)
        gc.freeze()  # a child's collections need not look at what is here
        with warnings.catch_warnings():
            # Python 3.12 warns of threads: those of libraries, which wait and hold nothing.
            warnings.simplefilter("ignore", DeprecationWarning)
            forked = os.fork()
        if not forked:
            pid = os.fork()
            if not pid:
                requests.detach()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.setsid()
                try:
                    os.write(report, b"%d\n" % os.getpid())
                except BrokenPipeError:  # who asked has ended while this process imported
                    os._exit(0)
                os.close(report)
                return _function(call)(**arguments, files=given)
            # Keeps the child's place: whoever waits for it can tell its end.
            for file in (0, *given):
                os.close(file)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(BrokenPipeError):  # nobody asks any more
                os.write(report, b"%d\n" % status)
            os._exit(0)
        for file in (report, *given):
            os.close(file)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    _serve()
