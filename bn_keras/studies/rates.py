"""Ladders of learning rates: nets at a row of rates, and the largest at which each of them works.

Studies that climb such a ladder have arms named `NET at RATE`.
"""

from bn_keras.studies import Row

WORKABLE = 0.90


def arms(nets, rates):
    """Arms of a Study: every net at every rate.

    Args:
        nets: name to settings.
        rates: learning rates.
    """
    return {
        f"{net} at {rate:g}": {**settings, "learning_rate": rate}
        for net, settings in nets.items() for rate in rates
    }


def net_of(config):
    """The net's name in a run's arm."""
    return config.arm.rpartition(" at ")[0]


def rows(results, rates, baseline):
    """What each net and seed gave: the largest workable rate and the accuracy at every rate.

    Of a ladder that misses a rate, as after an interruption, only the accuracies are told: what
    works below a gap says nothing.

    Args:
        results: list of RunResult.
        rates: the ladder.
        baseline: the net whose largest rate of the same seed the others are divided by.

    Returns:
        list of Row, with the metrics `test_accuracy_at_RATE`, `largest_workable_rate` (None if no
        rate works) and `times_BASELINE`.
    """
    accuracy = {}
    for run in results:
        runs = accuracy.setdefault((net_of(run.config), run.config.seed), {})
        runs[run.config.learning_rate] = run.metrics["test_accuracy"]
    largest = {
        key: largest_workable_rate(by_rate) for key, by_rate in accuracy.items()
        if set(by_rate) == set(rates)
    }
    found = []
    for (net, seed), by_rate in accuracy.items():
        metrics = {f"test_accuracy_at_{rate:g}": value for rate, value in by_rate.items()}
        if (net, seed) in largest:
            mine, others = largest[net, seed], largest.get((baseline, seed))
            metrics["largest_workable_rate"] = mine
            metrics[f"times_{baseline}"] = mine / others if mine and others else None
        found.append(Row(net, seed, metrics))
    return found


def largest_workable_rate(by_rate):
    """The largest rate that ends at WORKABLE or more; None if none does.

    A rate counts only if no lower one fails, but for those that are too low to get there in time:
    one lucky run above a failure is no rate to work with.

    Args:
        by_rate: rate to accuracy.
    """
    largest = None
    for rate, accuracy in sorted(by_rate.items()):
        if accuracy >= WORKABLE:
            largest = rate
        elif largest is not None:
            break
    return largest
