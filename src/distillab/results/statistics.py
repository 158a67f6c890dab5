"""What a comparison over seeds may claim: means, paired differences, ranks, and the sentences that follow from them.

What varies is the seed: every test is a paired t test, two-sided, over the seeds that two methods share. Of accuracies,
fractions 0..1, larger is better. `docs/statistics.md` says why it is so, and what it cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from distillab.errors import ConfigError

BASELINES = {"alone": "the student alone", "st": "st"}
"""Methods that the others are held against where a table has them, and what a sentence calls them."""

SIGNIFICANCE = 0.05
"""A corrected p-value below it shows a difference; an interval misses the truth this often."""

_POWER = 0.8
_LONGER = 0.1  # a training that is not longer by this share, and by this many seconds, is no longer than the other
_LONGER_SECONDS = 1.0
_ROUNDING = 1e-12  # relative: a spread below it is what subtracting floats leaves of equal differences

Interval = tuple[float, float]


class Run(NamedTuple):
    """One training.

    Attributes:
        top1: Test accuracy, 0..1.
        seconds: Of training, on the device that all runs of the table had; None where nobody knows.
    """

    top1: float
    seconds: float | None


Runs = Mapping[str, Mapping[int, Run]]
"""A table: method, then seed, then run. A run that diverged is not there."""


@dataclass(frozen=True)
class Summary:
    """A method by itself.

    Attributes:
        num_seeds: How many runs it has.
        mean: None without a run.
        std: Over seeds, with n - 1; None with less than two runs.
        interval: 95 % t-interval of the mean, (low, high), as far as it lies within 0..1; None with less than two runs
            or if all are equal.
        seconds: Mean training time; None without a run, or where that of one is not known.
    """

    num_seeds: int
    mean: float | None
    std: float | None
    interval: Interval | None
    seconds: float | None


@dataclass(frozen=True)
class Difference:
    """A method less a baseline, over the seeds that both have.

    Attributes:
        method: Who is compared.
        baseline: With whom.
        num_pairs: Seeds that both have.
        extra_seconds: Mean of how much longer the method trains; None without a pair, or where a time is not known.
        mean: Of the differences in accuracy; None without a pair.
        std: Of these differences, with n - 1; None with less than two pairs.
        interval: 95 % t-interval of this mean by itself, (low, high), as far as it lies within -1..1; not corrected for
            the other comparisons.
        uncorrected_p_value: Of the paired t test by itself. It and the interval are None with less than two pairs, or
            if all differences are equal: then their variance of zero is an accident, and no certainty.
        p_value: The same, corrected by Holm for the comparisons that were made together.
        baseline_seconds: Mean training time of the baseline; None without a pair.
    """

    method: str
    baseline: str
    num_pairs: int
    extra_seconds: float | None
    mean: float | None
    std: float | None
    interval: Interval | None
    uncorrected_p_value: float | None
    p_value: float | None = None
    baseline_seconds: float | None = None

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        """What is shown of the method."""
        if self.mean is None or self.p_value is None or self.p_value >= SIGNIFICANCE:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"

    @property
    def points_per_extra_minute(self) -> float | None:
        """Percentage points gained (negative: lost) a minute that the method trains longer; None if it does not, by a
        tenth and a second at least, or if no difference is shown: a division by few seconds makes anything look large.
        """
        if self.mean is None or self.extra_seconds is None or self.baseline_seconds is None:
            return None
        if self.verdict == "no difference shown":
            return None
        if self.extra_seconds < max(_LONGER * self.baseline_seconds, _LONGER_SECONDS):
            return None
        return 100 * self.mean / (self.extra_seconds / 60)


@dataclass(frozen=True)
class Comparison:
    """All that is known of a table.

    Attributes:
        summaries: By method.
        versus: By baseline, then by method. The comparisons with one baseline are corrected together. Two baselines are
            compared once, under the first of them.
        ranks: By method; see `rank_intervals`.
    """

    summaries: Mapping[str, Summary]
    versus: Mapping[str, Mapping[str, Difference]]
    ranks: Mapping[str, tuple[int, int]]

    @property
    def winner(self) -> str | None:
        """The method that is shown to be better than every other; None where there is none."""
        return next((method for method, rank in self.ranks.items() if rank == (1, 1) and len(self.ranks) > 1), None)


def compare(runs: Runs) -> Comparison:
    """Describe methods, hold them against the baselines, and rank them as far as they are separated.

    Args:
        runs: Of all methods, the student alone among them. Seeds may be missing.

    Raises:
        ConfigError: A value is not finite (also a ValueError).
    """
    for method, by_seed in runs.items():
        for seed, run in by_seed.items():
            if not all(math.isfinite(value) for value in run if value is not None):
                where = f"{method}, seed {seed}"
                raise ConfigError(f"{run} cannot be compared", where=where, hint="leave out runs that diverged")
    versus = {}
    others = list(runs)
    for baseline in [name for name in BASELINES if name in runs]:
        others.remove(baseline)
        versus[baseline] = {d.method: d for d in differences(runs, [(method, baseline) for method in others])}
    summaries = {method: summarise(by_seed.values()) for method, by_seed in runs.items()}
    return Comparison(summaries, versus, rank_intervals(runs))


def summarise(runs: Collection[Run]) -> Summary:
    """Mean, standard deviation and 95 % t-interval of the mean.

    Args:
        runs: Of one method, one a seed.
    """
    values = [run.top1 for run in runs]
    mean, std, interval, _ = _t_test(values, scale=max(map(abs, values), default=0.0), lowest=0.0)
    return Summary(len(values), mean, std, interval, mean_of([run.seconds for run in runs]))


def mean_of(values: Collection[float | None]) -> float | None:
    """The mean of values that are all known; None without one."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def differences(runs: Runs, pairs: Iterable[tuple[str, str]]) -> list[Difference]:
    """Test pairs of methods, and correct their p-values together.

    Args:
        runs: Of all methods.
        pairs: (method, baseline) each.
    """
    found = [_difference(runs, method, baseline) for method, baseline in pairs]
    corrected = holm([d.uncorrected_p_value for d in found])
    return [replace(d, p_value=p) for d, p in zip(found, corrected, strict=True)]


def _difference(runs: Runs, method: str, baseline: str) -> Difference:
    seeds = runs[method].keys() & runs[baseline].keys()
    pairs = [(runs[method][seed], runs[baseline][seed]) for seed in seeds]
    own_seconds = mean_of([ours.seconds for ours, _ in pairs])
    baseline_seconds = mean_of([theirs.seconds for _, theirs in pairs])
    extra_seconds = None if own_seconds is None or baseline_seconds is None else own_seconds - baseline_seconds
    scale = max((abs(run.top1) for pair in pairs for run in pair), default=0.0)
    tested = _t_test([ours.top1 - theirs.top1 for ours, theirs in pairs], scale, lowest=-1.0)
    return Difference(method, baseline, len(pairs), extra_seconds, *tested, baseline_seconds=baseline_seconds)


def _t_test(
    sample: Sequence[float], scale: float, lowest: float
) -> tuple[float | None, float | None, Interval | None, float | None]:
    """Mean, standard deviation, interval of the mean, p-value of a mean of zero; None for what cannot be had.

    Source: Student 1908, Biometrika 6, 1-25: (mean - truth) / (std / sqrt(n)) follows t with n - 1 degrees of freedom.
    """
    n = len(sample)
    if n < 2:
        return (fmean(sample) if sample else None), None, None, None
    mean, std = fmean(sample), stdev(sample)
    if std <= _ROUNDING * scale:
        return mean, 0.0, None, None
    from scipy.special import stdtr, stdtrit  # the same as in scipy.stats, without its long import

    error = std / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - SIGNIFICANCE / 2)) * error
    interval = max(lowest, mean - half), min(1.0, mean + half)  # the truth lies between these bounds in any case
    return mean, std, interval, 2 * float(stdtr(n - 1, -abs(mean) / error))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values, so that the chance of any false difference among them stays below the significance.

    The smallest of m is taken times m, the next times m - 1, and so on; none becomes smaller than the one before it, or
    larger than 1. It holds however the tests depend on each other.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Args:
        p_values: 0..1 each; None, a comparison that could not be tested, counts in m and comes last.

    Returns:
        The corrected ones in the same order; None stays.
    """
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted((p, i) for i, p in enumerate(p_values) if p is not None)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[index] = largest
    return corrected


def rank_intervals(runs: Runs) -> dict[str, tuple[int, int]]:
    """The best and the worst rank that each method may have; 1 is the best.

    All pairs are tested and corrected together. The best rank is 1 more than there are methods shown to be better, the
    worst is the number of methods less those shown to be worse. So 1 to 1 beats every other method, and where nothing
    is separated each has 1 to the last.

    Source: Klein, Wright, Wieczorek 2020, Journal of the Royal Statistical Society A 183, 589-606.

    Args:
        runs: Of all methods. One without any run gets no rank, nor does one that nobody stands beside.
    """
    ranked = [method for method, by_seed in runs.items() if by_seed]
    if len(ranked) == 1:
        return {}
    ranks = {method: (1, len(ranked)) for method in ranked}
    for d in differences(runs, combinations(ranked, 2)):
        if d.verdict != "no difference shown":
            upper, lower = (d.method, d.baseline) if d.verdict == "better" else (d.baseline, d.method)
            ranks[upper] = (ranks[upper][0], ranks[upper][1] - 1)
            ranks[lower] = (ranks[lower][0] + 1, ranks[lower][1])
    return ranks


def detectable_difference(difference: Difference, *, num_comparisons: int) -> float | None:
    """How large a true difference must be to be found with a probability of 80 %.

    As many pairs and the spread as here, at the significance of Holm's first step; the test then follows the noncentral
    t distribution.

    Args:
        difference: Whose spread it is.
        num_comparisons: How many were corrected together.

    Returns:
        As accuracies; above 1 where no difference is large enough; None where nothing could be tested.
    """
    n = difference.num_pairs
    if difference.uncorrected_p_value is None or difference.std is None:
        return None
    from scipy.special import nctdtrinc, stdtrit

    threshold = stdtrit(n - 1, 1 - SIGNIFICANCE / (2 * num_comparisons))
    return float(nctdtrinc(n - 1, 1 - _POWER, threshold)) * difference.std / math.sqrt(n)


def as_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison as plain values, ready for JSON.

    Args:
        comparison: Of a table.

    Returns:
        One row a method: `method`, `num_seeds`, `top1_mean`, `top1_std`, `top1_interval`, `seconds_mean`, `rank` (best,
        worst), `versus_alone` and `versus_st`: `difference`, `interval`, `p_value` (corrected), `uncorrected_p_value`,
        `num_pairs`, `verdict`, `points_per_extra_minute`. Accuracies are 0..1; what there is not is None.
    """
    return [
        {
            "method": method,
            "num_seeds": summary.num_seeds,
            "top1_mean": summary.mean,
            "top1_std": summary.std,
            "top1_interval": summary.interval,
            "seconds_mean": summary.seconds,
            "rank": comparison.ranks.get(method),
            **{f"versus_{name}": _versus(comparison.versus.get(name, {}).get(method)) for name in BASELINES},
        }
        for method, summary in comparison.summaries.items()
    ]


def _versus(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    names = ("interval", "p_value", "uncorrected_p_value", "num_pairs", "verdict", "points_per_extra_minute")
    return {"difference": difference.mean, **{name: getattr(difference, name) for name in names}}
