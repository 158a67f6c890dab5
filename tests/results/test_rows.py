"""Rows as they are counted, and as a spreadsheet has them."""

import csv
import io

import pytest
from scipy import stats

from distillab.results.rows import Row, as_csv, counted
from distillab.results.run_record import Result

NUM_IMAGES = 200


def made_up(seed, top1, *, source=None, seconds=60.0, **more):
    """What a run has left, any of whose numbers can be told from all others."""
    test = {"num_samples": NUM_IMAGES, "top1": top1, "nll": 1.0 + seed, "ece": 0.01 + 0.02 * seed}
    others = {**test, "nll": 9.0, "ece": 0.9}
    teacher = {"model": "cnn8", "source": source, "test": others, "cost": {"parameters": 3, "macs": 4}}
    said = {
        "kind": "train" if source is None else "distill",
        "role": "student",
        "model": "cnn16",
        "data": "digits",
        "seed": seed,
        "test": {**test, **more},
        "cost": {"parameters": 1_000, "macs": 2_000},
        "timing": {"seconds": seconds, "latency_seconds": 0.001 + 0.002 * seed},
        "last": {"test": {**others, "top1": 0.71 + 0.02 * seed}},
        "best": {"test": {**others, "top1": 0.61 + 0.02 * seed}, "epoch": 3},
        "teacher": None if source is None else teacher,
    }
    return Result.model_validate(said)


def row(method, *results, table="", run_dirs=None, **more):
    return Row(table, method, results, run_dirs or tuple(f"run-{n}" for n, _ in enumerate(results)), **more)


def test_what_is_nested_has_columns_of_its_own():
    rows = [
        {"method": "alone", "top1_interval": None, "versus_alone": None, "seeds": [0, 1]},
        {
            "method": "st",
            "top1_interval": (0.1, 0.2),
            "versus_alone": {"difference": 0.5, "interval": None},
            "seeds": [0],
        },
        {
            "method": "=x",
            "top1_interval": (0.3, 0.4),
            "versus_alone": {"difference": 1, "interval": (0, 2)},
            "seeds": [],
        },
    ]
    alone, st, formula = csv.DictReader(io.StringIO(as_csv(rows)))
    names = ["method", "seeds", "top1_interval", "versus_alone.difference", "versus_alone.interval"]
    assert sorted(name.removesuffix(".low").removesuffix(".high") for name in alone) == sorted([*names, *names[2:5:2]])
    assert (alone["top1_interval.low"], alone["versus_alone.difference"], alone["seeds"]) == ("", "", "0 1")
    assert (st["top1_interval.low"], st["top1_interval.high"], st["versus_alone.difference"]) == ("0.1", "0.2", "0.5")
    assert (formula["versus_alone.interval.low"], formula["versus_alone.interval.high"]) == ("0", "2")
    assert formula["method"] == "'=x"


def test_each_number_of_a_row_is_the_mean_of_its_own_over_the_runs():
    told = {"teacher_agreement": 0.91, "teacher_divergence": 0.31, "top1_where_teacher_wrong": 0.51}
    later = {name: value + 0.02 for name, value in told.items()}
    runs = made_up(0, 0.80, source="t", **told), made_up(1, 0.84, source="t", seconds=80.0, **later)
    (found,) = counted([row("st", *runs)]).rows
    expected = {
        "top1_mean": 0.82,
        "seconds_mean": 70.0,
        "nll": 1.5,
        "ece": 0.02,
        "teacher_agreement": 0.92,
        "teacher_divergence": 0.32,
        "top1_where_teacher_wrong": 0.52,
        "top1_last_mean": 0.72,
        "top1_best_mean": 0.62,
        "latency_seconds": 0.002,
        "parameters": 1_000,
        "macs": 2_000,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (found["model"], found["seeds"], found["run_dirs"]) == ("cnn16", [0, 1], ["run-0", "run-1"])
    assert (found["test_set_interval"], found["tuned"], found["trials"]) == (None, None, 0)
    assert found["top1_by_teacher"] == [], "one teacher is not several"


def test_one_run_has_the_interval_that_its_test_images_leave():
    (found,) = counted([row("st", made_up(0, 0.83))]).rows
    assert found["test_set_interval"] == pytest.approx(stats.binomtest(166, NUM_IMAGES).proportion_ci(method="wilson"))


def test_with_several_teachers_a_seed_took_as_long_as_its_runs_on_average():
    runs = [made_up(0, 0.8, source=source, seconds=seconds) for source, seconds in (("a", 50.0), ("b", 90.0))]
    (found,) = counted([row("st", *runs, num_teachers=2)]).rows
    assert (found["num_seeds"], found["seconds_mean"]) == (1, 70.0)


def test_a_time_that_nobody_knows_is_none_and_no_time():
    runs = [made_up(seed, 0.8 + 0.01 * seed, seconds=seconds) for seed, seconds in enumerate((50.0, None, 70.0))]
    quick = [made_up(seed, 0.5, seconds=40.0) for seed in range(3)]
    rows = [Row("", name, tuple(own), ("a", "b", "c")) for name, own in (("alone", quick), ("st", runs))]
    alone, st = counted(rows).rows
    assert (alone["seconds_mean"], st["seconds_mean"]) == (40.0, None)
    assert (st["versus_alone"]["verdict"], st["versus_alone"]["points_per_extra_minute"]) == ("better", None)


def test_one_teacher_by_two_names_is_one_teacher():
    one = row("st", made_up(0, 0.6, source="runs/t"), made_up(1, 0.7, source="/home/me/runs/t"))
    found = counted([one])
    assert found.rows[0]["top1_by_teacher"] == []
    assert not any("teachers" in sentence for sentence in found.sentences)


def test_a_row_that_nobody_stands_beside_has_no_rank():
    (alone,) = counted([row("st", made_up(0, 0.6, source="t"))]).rows
    assert alone["rank"] is None


def test_the_row_that_differs_most_between_teachers_is_named():
    rows = [
        row(method, *(made_up(0, top1, source=source) for source, top1 in zip("ab", tops, strict=True)), num_teachers=2)
        for method, tops in (("st", (0.80, 0.82)), ("takd", (0.80, 0.87)), ("multi", (0.85, 0.80)))
    ]
    assert any(line.endswith("differs by up to 7.00 points (takd).") for line in counted(rows).sentences)


def test_a_run_that_ended_is_not_said_to_have_no_result_where_its_seed_misses_a_teacher():
    runs = [made_up(seed, 0.8, source=source) for seed, source in ((0, "a"), (0, "b"), (1, "a"))]
    lines = counted([row("st", *runs, run_dirs=("a0", "b0", "a1", "b1"), num_teachers=2)]).sentences
    assert lines[-1] == "st: 1 of 4 runs have no result; what is said of it is of the others."


def test_rows_are_held_against_those_of_their_own_table_and_each_table_has_its_winner():
    def of(table, method, *tops):
        return row(method, *(made_up(seed, top1) for seed, top1 in enumerate(tops)), table=table)

    rows = [
        of("narrow", "alone", 0.50, 0.51, 0.52),
        of("narrow", "st", 0.60, 0.611, 0.621),
        of("wide", "alone", 0.70, 0.71, 0.72),
        of("wide", "st", 0.70, 0.72, 0.71),
    ]
    found = counted(rows)
    assert found.winner == {"narrow": "st", "wide": None}
    differences = [one["versus_alone"]["difference"] for one in found.rows if one["method"] == "st"]
    assert differences == pytest.approx([0.100667, 0.0], abs=1e-6)
    assert [one["table"] for one in found.rows] == ["narrow", "narrow", "wide", "wide"]
