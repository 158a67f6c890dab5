from __future__ import annotations

import pytest

from distillab.commands.compare import comparison_tables, estimate_tables
from distillab.commands.outcome import plan_tables, results_table, run_rows
from distillab.tables import Column, Table, amount, millions, records_table

TEST = {"top1": 0.9712, "nll": 0.12345, "ece": 0.0167, "teacher_agreement": None}


def heads(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def test_a_row_is_in_percent_and_millions() -> None:
    row = {"method": "st", "model": "cnn16", **TEST, "teacher_agreement": 0.98, "parameters": 705_402, "macs": 25e6}
    table = results_table([row | {"seconds": 12.34}])
    assert table.rows == (("st", "cnn16", "97.1", "0.123", "1.7", "98.0", "0.71", "25.00", "12.3"),)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "-"),
        (0, "0.00"),
        (24_110_000, "24.11"),
        (705_402, "0.71"),
        (99_900, "0.100"),
        (3_460, "0.0035"),
        (2e9, "2,000.00"),
    ],
)
def test_a_small_count_has_two_digits_in_millions_too(count: float | None, shown: str) -> None:
    assert millions(count) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 steps"), (1, "1 step"), (1_200, "1,200 steps")])
def test_one_thing_is_no_plural(count: int, shown: str) -> None:
    assert amount(count, "step") == shown


def test_what_a_row_does_not_have_is_a_dash_and_an_empty_column_is_gone() -> None:
    table = results_table([{"method": "teacher", "model": "a", **TEST}, {"method": "st", "model": "b", "top1": 0.0}])
    assert heads(table) == ["method", "model", "top-1 %", "NLL", "ECE %"]
    assert table.rows[1] == ("st", "b", "0.0", "-", "-")


def test_a_run_has_a_row_for_everyone_who_took_part() -> None:
    part = {"model": "cnn12", "test": TEST, "cost": {"parameters": 3, "macs": 4}}
    summary = {"method": "takd", "model": "cnn16", "test": TEST, "timing": {"seconds": 5.0}, "teacher": part}
    assert [row["method"] for row in run_rows(summary | {"assistant": part})] == ["teacher", "assistant", "takd"]
    rows = run_rows({"role": "teacher", "model": "cnn8", "test": TEST, "timing": {"seconds": 5.0}})
    assert [(row["method"], row["seconds"]) for row in rows] == [("teacher", 5.0)]


def test_lines_are_aligned_and_never_cut() -> None:
    table = Table((Column("name"), Column("count", numeric=True)), (("a" * 200, "1"), ("b", "1,000")))
    lines = str(table).splitlines()
    assert lines[1] == "a" * 200 + "      1"
    assert lines[2] == "b" + " " * 199 + "  1,000"
    assert lines[0].rstrip() == lines[0]


def test_a_listing_shows_counts_lists_and_gaps() -> None:
    records = [{"name": "a", "count": 1234567, "tags": ["x", "y"]}, {"name": "b", "count": 2, "tags": []}]
    table = records_table(records, ("name", "count", "tags"))
    assert table.columns == (Column("name"), Column("count", numeric=True), Column("tags"))
    assert table.rows == (("a", "1,234,567", "x; y"), ("b", "2", "-"))


def test_a_plan_tells_data_models_stages_and_time() -> None:
    plan = {
        "data": {"name": "digits", "classes": 10, "images": [32, 32], "train": 1294, "validation": None, "test": 359},
        "models": [{"role": "student", "model": "cnn16", "parameters": 705_402, "macs": 25_762_560}],
        "stages": [{"title": "student by st", "method": "soft_target", "epochs": 2, "steps": 20, "seconds": 3.21}],
        "seconds": 3.21,
    }
    data, models, stages, sentence = plan_tables(plan)
    assert isinstance(data, Table)
    assert data.rows == (("digits", "10", "32x32", "1,294", "-", "359"),)
    assert isinstance(models, Table)
    assert models.rows == (("student", "cnn16", "705,402", "25,762,560"),)
    assert isinstance(stages, Table)
    assert stages.rows == (("student by st", "soft_target", "2", "20", "3.21"),)
    assert sentence == "about 3 s of training; nothing was trained"


def test_a_comparison_shows_what_differs_then_what_else_is_known_table_by_table() -> None:
    def row(table: str, method: str, verdict: str | None) -> dict[str, object]:
        versus = {"difference": 0.012, "interval": (0.01, 0.014), "p_value": 0.0004, "points_per_extra_minute": 1.5}
        known = {"top1_last_mean": None, "top1_best_mean": 0.9, "nll": 0.3, "teacher_agreement": None}
        own = {
            "num_seeds": 5,
            "top1_mean": 0.912,
            "top1_std": 0.002,
            "top1_interval": (0.91, 0.914),
            "seconds_mean": 60.0,
        }
        versus_alone = {**versus, "verdict": verdict} if verdict else None
        versus_st = versus_alone if method == "takd" else None
        ranked = {"rank": (1, 2), "num_teachers": 1}
        return {
            "table": table,
            "method": method,
            "versus_alone": versus_alone,
            "versus_st": versus_st,
            **own,
            **known,
            **ranked,
        }

    rows = [row("", "alone", None), row("", "st", "better"), row("tuned", "takd", "no difference shown")]
    default, shown, known, tuned, _, versus_st, _ = comparison_tables({"rows": rows})
    assert isinstance(versus_st, Table)
    assert versus_st.rows == (("takd", "1 to 2", "+1.20", "+1.00 to +1.40", "< 0.001", "nothing"),)
    assert (default, tuned) == ("\ndefault", "\ntuned")
    assert isinstance(shown, Table)
    assert shown.rows[0] == ("alone", "91.20", "91.00 to 91.40", "-", "-", "-", "-")
    assert shown.rows[1] == ("st", "91.20", "91.00 to 91.40", "+1.20", "+1.00 to +1.40", "< 0.001", "better")
    assert isinstance(known, Table)
    assert [column.title for column in known.columns] == [
        *("method", "seeds", "std", "best epoch %", "NLL", "seconds", "points/min")
    ]
    assert known.rows[1] == ("st", "5", "0.20", "90.00", "0.300", "60.0", "1.50")


def test_a_plan_of_a_comparison_tells_runs_time_and_disk() -> None:
    todo = {
        "rows": [
            {"table": "", "row": "teacher", "runs": 1, "left": 0, "seconds": 0.0},
            {"table": "tuned", "row": "st", "runs": 5, "left": 3, "seconds": 200.0},
        ],
        "runs": 6,
        "runs_left": 3,
        "seconds": 8000.0,
        "teacher_seconds": 9.26,
        "side_by_side": False,
        "bytes": 5 << 20,
        "cache_bytes": 3 << 20,
    }
    table, sentence = estimate_tables(todo)
    assert isinstance(table, Table)
    assert table.rows == (("teacher", "1", "0", "-"), ("st (tuned)", "5", "3", "3.3 min"))
    assert sentence == (
        "3 of 6 runs are left: about 2.2 h if nothing else runs here, 9.3 s of it to ask the teacher,"
        " and up to 5 MiB of disk, and 3 MiB for the logits of teachers"
    )
    *_, sentence = estimate_tables({**todo, "side_by_side": True})
    assert isinstance(sentence, str)
    assert "about 2.2 h one after another, less side by side as they will go, 9.3 s of it" in sentence
