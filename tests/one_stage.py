"""One stage, trained by itself."""

from distillab.training.lanes import Lane
from distillab.training.trainer import fit_together


def fit(stage, feed, regime, *, seed, compute, observer, record=None):
    """Train it; the learner's student holds the resulting weights afterwards."""
    lane = Lane(stage.learner.student, iter([(stage, regime)]), observer, record)
    fit_together([lane], feed, seed=seed, compute=compute)
    if lane.error is not None:
        raise lane.error
    return lane.reports[0]
