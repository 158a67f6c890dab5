"""Tables of made-up accuracies, as statistics and sentences take them."""

from distillab.results.statistics import Run


def table(seconds=60.0, **values):
    """Runs with the seeds 0, 1, ...; None is a run that diverged."""
    return {
        method.replace("_", "-"): {s: Run(v, seconds) for s, v in enumerate(top1) if v is not None}
        for method, top1 in values.items()
    }
