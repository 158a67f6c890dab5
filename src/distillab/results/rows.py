"""Tables of rows over seeds, and what may be said of them: the same for `distillab compare` and for every report."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean
from typing import Any

from distillab.evaluation.metrics import wilson_interval
from distillab.results.run_record import Result
from distillab.results.sentences import sentences
from distillab.results.statistics import Run, as_rows, compare, mean_of

_STARTS_A_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed and their teacher alone.

    Attributes:
        table: Says which rows it is held against; "" where there is one table.
        method: Its name in there; "alone" is the student that the others are held against.
        results: What its runs have left, those that came to their end.
        run_dirs: Folders of all its runs, as they are to be shown.
        num_teachers: With how many teachers each seed was run.
        tuned: Settings that tuning has found, by dotted name; None where there was none.
        trials: How many trials that took.
    """

    table: str
    method: str
    results: tuple[Result, ...]
    run_dirs: tuple[str, ...]
    num_teachers: int = 1
    tuned: Mapping[str, float] | None = None
    trials: int = 0

    def by_seed(self) -> dict[int, Run]:
        """Accuracy and time by rising seed, each a mean over the teachers.

        With another teacher a seed's student has the same initial weights and order, and the student alone is the very
        same: counted as runs of their own they would make every interval too narrow. A seed that misses a teacher is
        left out.
        """
        return {
            seed: Run(fmean(one.test.top1 for one in results), mean_of([one.timing.seconds for one in results]))
            for seed, results in self._whole_seeds().items()
        }

    @property
    def counted_results(self) -> tuple[Result, ...]:
        """The results of those seeds."""
        return tuple(result for results in self._whole_seeds().values() for result in results)

    def by_teacher(self) -> list[float]:
        """Mean accuracy over those seeds with each teacher; nothing where there is one teacher, or none."""
        if self.num_teachers == 1:  # which runs may have called by more than one path
            return []
        found: dict[str, list[float]] = {}
        for result in self.counted_results:
            if result.teacher is not None:
                found.setdefault(result.teacher.source, []).append(result.test.top1)
        return [fmean(tops) for tops in found.values()] if len(found) > 1 else []

    def _whole_seeds(self) -> dict[int, list[Result]]:
        found: dict[int, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.seed, []).append(result)
        return {seed: found[seed] for seed in sorted(found) if len(found[seed]) == self.num_teachers}


@dataclass(frozen=True)
class Counted:
    """What rows come to.

    Attributes:
        rows: One a row, ready for JSON: the keys of `statistics.as_rows`, "table", "seeds", means over its runs of
            "nll", "ece", "teacher_agreement", "teacher_divergence", "top1_where_teacher_wrong", "latency_seconds",
            "top1_last_mean" (of the last step's weights where their average is the result) and "top1_best_mean" (of
            those that validation chose), "test_set_interval" (Wilson's, of a single run on its test images), "model",
            "parameters", "macs", "run_dirs", "num_teachers", "top1_by_teacher" where there are several, and "tuned" and
            "trials" of a tuned row. Fractions are 0..1; what there is not is None.
        sentences: What may be said, table by table.
        tuning: What tuning has found, a sentence a tuned row.
        winner: By table the method that is shown to be better than every other; None where there is none.
    """

    rows: list[dict[str, Any]]
    sentences: list[str]
    tuning: list[str]
    winner: dict[str, str | None]


def counted(rows: Sequence[Row]) -> Counted:
    """Hold the rows of each table against each other.

    Args:
        rows: Of all tables; in one table each has a name of its own.
    """
    shown: list[dict[str, Any]] = []
    said: list[str] = []
    winner: dict[str, str | None] = {}
    for table in dict.fromkeys(row.table for row in rows):
        own = {row.method: row for row in rows if row.table == table}
        found = compare({method: row.by_seed() for method, row in own.items()})
        winner[table] = found.winner
        told = [
            *sentences(found),
            *_teachers_in_words(list(own.values())),
            *(sentence for row in own.values() if (sentence := _left_out_in_words(row))),
        ]
        said += [f"{table}: {sentence}" if table else sentence for sentence in told]
        shown += [{"table": table, **numbers, **_means(own[numbers["method"]])} for numbers in as_rows(found)]
    return Counted(shown, said, [sentence for row in rows if (sentence := _tuned_in_words(row))], winner)


_MEANS = {
    "nll": "test.nll",
    "ece": "test.ece",
    "teacher_agreement": "test.teacher_agreement",
    "teacher_divergence": "test.teacher_divergence",
    "top1_where_teacher_wrong": "test.top1_where_teacher_wrong",
    "top1_last_mean": "last.test.top1",
    "top1_best_mean": "best.test.top1",
    "latency_seconds": "timing.latency_seconds",
}


def _means(row: Row) -> dict[str, Any]:
    results = row.counted_results
    single = results[0].test if len(results) == 1 else None
    return {
        "seeds": list(row.by_seed()),
        "model": results[0].model if results else None,
        **{name: _mean(results, path) for name, path in _MEANS.items()},
        "test_set_interval": wilson_interval(single.top1, single.num_samples) if single else None,
        "parameters": results[0].cost.parameters if results else None,
        "macs": results[0].cost.macs if results else None,
        "run_dirs": list(row.run_dirs),
        "num_teachers": row.num_teachers,
        "top1_by_teacher": row.by_teacher(),
        "tuned": None if row.tuned is None else dict(row.tuned),
        "trials": row.trials,
    }


def _mean(results: Sequence[Result], path: str) -> float | None:
    first, _, rest = path.partition(".")
    owners = [owner for result in results if (owner := getattr(result, first)) is not None]
    values = [value for owner in owners if (value := attrgetter(rest)(owner)) is not None]
    return fmean(values) if values else None


def _teachers_in_words(rows: Sequence[Row]) -> list[str]:
    """That a seed is a mean over several teachers, and how much they matter: its interval does not hold that."""
    spans = {row.method: max(tops) - min(tops) for row in rows if (tops := row.by_teacher())}
    if not spans:
        return []
    method = max(spans, key=spans.__getitem__)
    return [
        f"Each seed is a mean over {rows[0].num_teachers} teachers; from one teacher to another the accuracy of a row "
        f"differs by up to {100 * spans[method]:.2f} points ({method})."
    ]


def _left_out_in_words(row: Row) -> str | None:
    missing = len(row.run_dirs) - len(row.results)
    if not missing:
        return None
    return f"{row.method}: {missing} of {len(row.run_dirs)} runs have no result; what is said of it is of the others."


def _tuned_in_words(row: Row) -> str | None:
    if row.tuned is None:
        return None
    settings = ", ".join(f"{name} {value:.3g}" for name, value in row.tuned.items())
    return f"{row.table}: {row.method} is trained with {settings}, the best of {row.trials} trials."


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a spreadsheet: what is nested gets names such as `versus_alone.difference` and `top1_interval.low`,
    fractions stay 0..1.

    Args:
        rows: Ready for JSON.
    """
    flat = [dict(_leaves(row, "")) for row in rows]
    text = io.StringIO()
    names = dict.fromkeys(name for row in flat for name in row)
    nested = {name for name in names if any(other.startswith(f"{name}.") for other in names)}  # None in some rows
    columns = [name for name in names if name not in nested]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and name.endswith("interval"):
        yield from zip((f"{name}.low", f"{name}.high"), value, strict=True)
    elif isinstance(value, list | tuple):
        yield name, _harmless(" ".join(map(str, value)))
    else:
        yield name, _harmless(value) if isinstance(value, str) else value


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_STARTS_A_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+\d.e ]+", text) is not None
