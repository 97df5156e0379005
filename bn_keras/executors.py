"""Running a function over many items; nothing here knows what the items are."""

import concurrent.futures
import queue
import threading
from typing import Callable, Iterator, Optional, Sequence, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Optional[Result]],
    groups: Sequence[Sequence[Item]],
    workers: int,
    stop: threading.Event,
) -> Iterator[Result]:
    """Calls a function on every item: groups side by side, a group's items one after another.

    Items that share something costly, such as a traced graph, belong in one group.

    Args:
        function: called with one item; it ends soon once `stop` is set.
        groups: of items.
        workers: how many groups run at the same time.
        stop: set here on an error or Ctrl-C.

    Yields:
        Results that are not None, each as soon as it is there.

    Raises:
        Exception: the one that the function raised first, after all workers have ended.
    """
    results: queue.SimpleQueue[Optional[Result]] = queue.SimpleQueue()

    def run(group: Sequence[Item]) -> None:
        for item in group:
            if stop.is_set():
                return
            result = function(item)
            if result is not None:  # None says that a group is done
                results.put(result)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, group) for group in groups]
        for future in futures:
            future.add_done_callback(lambda future: results.put(None))
        try:
            running = len(futures)
            while running:
                result = results.get()
                if result is not None:
                    yield result
                    continue
                running -= 1
                for future in futures:
                    error = future.exception() if future.done() else None
                    if error is not None:
                        raise error
        finally:
            stop.set()
