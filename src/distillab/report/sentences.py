"""What a comparison shows, in sentences: none claims more than its test."""

from __future__ import annotations

from collections.abc import Collection

from distillab.report.statistics import BASELINES, Comparison, Difference, detectable_difference


def sentences(comparison: Comparison) -> list[str]:
    """The headline in words: who differs from each baseline, of whom that is not shown, and whether anybody wins.

    Args:
        comparison: Of a table.
    """
    found = [line for name, family in comparison.versus.items() for line in _about(BASELINES[name], family.values())]
    if comparison.winner:
        found.append(f"{comparison.winner} is shown to be better than every other method of the table.")
    elif len(comparison.ranks) > 1:
        best = ", ".join(method for method, (first, _) in comparison.ranks.items() if first == 1)
        found.append(f"No method is shown to be better than every other; the best may be any of {best}.")
    return found


def _about(name: str, family: Collection[Difference]) -> list[str]:
    found = []
    if family and not any(d.verdict == "better" for d in family):
        found.append(f"No method is shown to beat {name} with {_seeds(max(d.num_pairs for d in family))}.")
    shown = [d for d in family if d.verdict != "no difference shown"]
    found += [_claim(d, name) for d in sorted(shown, key=lambda d: d.mean or 0.0, reverse=True)]
    if unclear := ", ".join(d.method for d in family if d not in shown):
        found.append(f"No difference to {name} is shown for {unclear}: {_why_unclear(detectable_difference(family))}.")
    return found


def _why_unclear(detectable: float | None) -> str:
    if detectable is None:
        return "testing takes two seeds or more that both have, and differences that are not all equal"
    if detectable > 1:
        return "with so few seeds that spread so far none would be found four times out of five"
    return f"a difference must be about {100 * detectable:.2f} points to be found four times out of five"


def _claim(difference: Difference, name: str) -> str:
    mean, interval, p = difference.mean, difference.interval, difference.p_value
    assert mean is not None and interval is not None and p is not None  # noqa: PT018 - a verdict needs all of them
    low, high = sorted(100 * abs(end) for end in interval)
    return (
        f"{difference.method} {'beats' if mean > 0 else 'is worse than'} {name} by {100 * abs(mean):.2f} points "
        f"(95 % interval {low:.2f} to {high:.2f}, corrected p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}, "
        f"{_seeds(difference.num_pairs)})."
    )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
