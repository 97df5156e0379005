"""Running a function over many items; nothing here knows what the items are."""

import concurrent.futures
import queue


def in_threads(function, groups, workers, stop):
    """Calls a function on every item: groups side by side, a group's items one after another.

    Items that share something costly, such as a traced graph, belong in one group.

    Args:
        function: called with one item; it ends soon once `stop` is set.
        groups: list of lists of items.
        workers: how many groups run at the same time.
        stop: a `threading.Event`, set here on an error or Ctrl-C.

    Yields:
        Results that are not None, each as soon as it is there.

    Raises:
        Whatever the function raised first, after all workers have ended.
    """
    results = queue.SimpleQueue()

    def run(group):
        for item in group:
            if stop.is_set():
                return
            results.put(function(item))

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
                    if future.done() and future.exception():
                        raise future.exception()
        finally:
            stop.set()
