"""What a comparison shows, in sentences: none claims more than its test."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from distillab.results.statistics import BASELINES, Comparison, Difference, detectable_difference


def sentences(comparison: Comparison) -> list[str]:
    """The headline in words: who differs from each baseline, of whom that is not shown, and whether anybody wins.

    Args:
        comparison: Of a table.
    """
    found = [line for name, family in comparison.versus.items() for line in _about(BASELINES[name], family.values())]
    if len(comparison.ranks) > 2 or not found:  # a row that is held against the only other one has been told of
        found += _about_the_best(comparison)
    found += [
        f"{name} is there with several settings, so nothing is held against it."
        for name in BASELINES
        if name not in comparison.summaries and any(row.startswith(f"{name}, ") for row in comparison.summaries)
    ]
    return found


def _about_the_best(comparison: Comparison) -> list[str]:
    if comparison.winner:
        return [f"{comparison.winner} is shown to be better than every other method of the table."]
    if len(comparison.ranks) < 2:
        return []
    best = [method for method, (first, _) in comparison.ranks.items() if first == 1]
    return [f"No method is shown to be better than every other; the best may be any of {_listed(best)}."]


def _about(name: str, family: Collection[Difference]) -> list[str]:
    found = []
    better = sorted((d for d in family if d.verdict == "better"), key=lambda d: d.mean or 0.0)
    if family and not better:
        found.append(f"No method is shown to beat {name} with {_seeds(max(d.num_pairs for d in family))}.")
    if len(better) > 1:  # the largest of several gains is no more than that
        least, most = (100 * (d.mean or 0.0) for d in (better[0], better[-1]))
        methods = _listed([d.method for d in reversed(better)], " and")
        found.append(f"{methods} are shown to beat {name}, by {least:.2f} to {most:.2f} points.")
    shown = [d for d in family if d.verdict != "no difference shown"]
    found += [claim(d, name) for d in sorted(shown, key=lambda d: d.mean or 0.0, reverse=True)]
    if unclear := [d for d in family if d not in shown]:
        methods = _listed([d.method for d in unclear])
        found.append(f"No difference to {name} is shown for {methods}: {_why_unclear(unclear, len(family))}.")
    return found


def _why_unclear(unclear: Collection[Difference], num_comparisons: int) -> str:
    sizes = {d.method: detectable_difference(d, num_comparisons=num_comparisons) for d in unclear}
    detectable = {method: size for method, size in sizes.items() if size is not None}
    if not detectable:
        return "testing takes two seeds or more that both have, and differences that are not all equal"
    least, most = (choose(detectable, key=detectable.__getitem__) for choose in (min, max))
    if detectable[least] > 1:
        return "with so few seeds that spread so far none would be found four times out of five"
    needed = f"{100 * detectable[least]:.2f}"
    if f"{100 * detectable[most]:.2f}" != needed:
        largest = "more than 100" if detectable[most] > 1 else f"{100 * detectable[most]:.2f}"
        needed = f"{needed} ({least}) to {largest} ({most})"
    return f"a true difference must be about {needed} points to be found four times out of five"


def claim(difference: Difference, name: str) -> str:
    """What is shown of a method, in a sentence.

    Args:
        difference: Shown: with a verdict.
        name: Of the baseline.
    """
    mean, interval, p = difference.mean, difference.interval, difference.p_value
    assert mean is not None and interval is not None and p is not None  # noqa: PT018 - a verdict needs all of them
    low, high = sorted(100 * abs(end) for end in interval)
    return (
        f"{difference.method} {'beats' if mean > 0 else 'is worse than'} {name} by {100 * abs(mean):.2f} points "
        f"(95 % interval {low:.2f} to {high:.2f}, corrected p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}, "
        f"{_seeds(difference.num_pairs)})."
    )


def _listed(names: Sequence[str], last: str = "") -> str:
    """Names in a row, parted by semicolons where one has a comma of its own.

    Args:
        names: One at least.
        last: What stands before the last of several, such as " and"; a comma or semicolon if not given.
    """
    mark = "; " if any("," in name for name in names) else ", "
    if len(names) == 1 or not last:
        return mark.join(names)
    return f"{mark.join(names[:-1])}{last} {names[-1]}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
