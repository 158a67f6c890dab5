"""The headline of a report, and what stands below it: what the runs show, in sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from distillab.report.claims import claims
from distillab.report.collect import Collection, collect
from distillab.results.rows import counted
from made_up_runs import NUM_IMAGES, write, write_comparison, write_run


def said(collection: Collection) -> list[str]:
    students = [one.row for one in collection.variants if one.place in ("alone", "distilled")]
    return claims(collection, counted(students))


def test_a_student_is_held_against_the_student_alone_of_its_own_schedule(tmp_path: Path) -> None:
    for batch_size, top1 in ((32, 0.8), (64, 0.9)):
        settings = {"training": {"batch_size": batch_size}}
        for seed in (0, 1):
            write_run(tmp_path / f"alone-{batch_size}-{seed}", "alone", seed=seed, top1=top1, settings=settings)
            write_run(tmp_path / f"st-{batch_size}-{seed}", "st", seed=seed, top1=top1 + 0.02, settings=settings)
    collection = collect([tmp_path])
    assert [one.name for one in collection.variants[1:]] == [
        "alone (batch size 32)",
        "st (batch size 32)",
        "alone (batch size 64)",
        "st (batch size 64)",
    ]
    rows = counted([one.row for one in collection.variants[1:]]).rows
    assert [row["versus_alone"] and row["versus_alone"]["difference"] for row in rows] == [
        None,
        pytest.approx(0.02),
        None,
        pytest.approx(0.02),
    ]
    assert said(collection)[0] == "No method is shown to beat the student alone in any of 2 tables."


def test_a_student_alone_of_another_schedule_is_no_baseline(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", settings={"training": {"batch_size": 32}})
    write_run(tmp_path / "st", "st", settings={"training": {"batch_size": 64}})
    assert "with the settings of the distilled ones" in said(collect([tmp_path]))[0]


def test_a_table_in_which_nothing_is_held_against_the_student_alone_does_not_count(tmp_path: Path) -> None:
    write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}})
    write_run(tmp_path / "old" / "alone", "alone", settings={"training": {"batch_size": 8}})
    assert said(collect([tmp_path]))[0] == "table: No method is shown to beat the student alone with 2 seeds."


def test_tuned_rows_are_a_table_of_their_own_and_say_what_was_found(tmp_path: Path) -> None:
    folder = write_comparison(
        tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}, "tuned": {"alone": 0.82, "st": 0.85}}
    )
    content = json.loads((folder / "results.json").read_text())
    for row in content["rows"][2:]:
        row |= {"tuned": {"optimizer.learning_rate": 0.02}, "trials": 4}
    write(folder / "results.json", json.dumps(content))
    collection = collect([folder])
    assert [one.name for one in collection.variants] == ["teacher", "alone", "st", "alone (tuned)", "st (tuned)"]
    rows = counted([one.row for one in collection.variants[1:]]).rows
    assert [row["tuned"] for row in rows] == [None, None, *[{"optimizer.learning_rate": 0.02}] * 2]
    assert rows[3]["versus_alone"]["difference"] == pytest.approx(0.03)
    assert said(collection)[-1] == "tuned: st is trained with optimizer.learning_rate 0.02, the best of 4 trials."


def test_one_seed_shows_nothing_and_says_what_chance_is(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", top1=0.9)
    write_run(tmp_path / "st", "st", top1=0.91)
    headline, more = said(collect([tmp_path]))
    assert headline.startswith(
        "No method is shown to differ from the student alone: the largest difference, +1.00 points"
    )
    assert "more seeds are needed" in more
    write_run(tmp_path / "mbd-soft", "mbd-soft", top1=0.7)
    assert said(collect([tmp_path]))[0].startswith("mbd-soft is 20.00 points below the student alone, more than")


def test_models_alone_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "alone")
    assert said(collect([tmp_path])) == ["1 model trained alone, no distilled student: nothing is compared."]


def test_a_student_alone_that_diverged_is_nobodys_baseline(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}})
    for seed in (0, 1):
        (folder / f"seed-{seed}-0" / "alone" / "result.json").unlink()
    collection = collect([folder])
    assert collection.alone_of(collection.of("distilled")[0]) is None
    assert collection.trio is None
    assert said(collection) == [
        "No student alone is among the runs, so they do not show what distillation gains.",
    ]


def test_what_chance_leaves_to_a_difference_is_that_of_two_accuracies(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", top1=0.9)
    write_run(tmp_path / "st", "st", top1=0.91)
    low, high = stats.binomtest(180, NUM_IMAGES).proportion_ci(method="wilson")
    chance = 100 * 2**0.5 * (high - low) / 2
    assert said(collect([tmp_path]))[0].endswith(
        f"lies within the {chance:.2f} points that 200 test images leave to chance."
    )


def test_a_row_that_diverged_does_not_make_one_seed_of_the_others(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85, "mbd-soft": 0.8}})
    for seed in (0, 1):
        (folder / f"seed-{seed}-0" / "mbd-soft" / "result.json").unlink()
    assert said(collect([folder]))[0] == "No method is shown to beat the student alone with 2 seeds."


@pytest.mark.parametrize(
    ("gains", "headline"),
    [
        (
            {"st": (0.1, -0.1), "takd": (0.2, 0.0)},
            "The student alone is shown to be beaten in 1 of 2 tables (batch size 32: st, takd).",
        ),
        ({"st": (-0.2, -0.1)}, "No method is shown to beat the student alone in any of 2 tables."),
    ],
)
def test_the_headline_counts_the_tables_in_which_anybody_beats_the_student_alone(
    gains: dict[str, tuple[float, float]], headline: str, tmp_path: Path
) -> None:
    for number, batch_size in enumerate((32, 64)):
        settings = {"training": {"batch_size": batch_size}}
        for seed in (0, 1, 2):
            top1 = 0.7 + 0.01 * seed
            write_run(tmp_path / f"alone-{number}-{seed}", "alone", seed=seed, top1=top1, settings=settings)
            for method, gain in gains.items():
                own = top1 + gain[number] + 0.001 * (seed == 1)
                write_run(tmp_path / f"{method}-{number}-{seed}", method, seed=seed, top1=own, settings=settings)
    assert said(collect([tmp_path]))[0] == headline


def test_what_tuning_has_found_is_told_with_one_seed_too(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "table", {"tuned": {"alone": 0.8, "st": 0.85}})
    content = json.loads((folder / "results.json").read_text())
    for row in content["rows"]:
        row |= {"run_dirs": row["run_dirs"][:1], "tuned": {"optimizer.learning_rate": 0.02}, "trials": 4}
    write(folder / "results.json", json.dumps(content))
    lines = said(collect([folder]))
    assert lines[1].startswith("One seed a row")
    assert lines[-1] == "tuned: st is trained with optimizer.learning_rate 0.02, the best of 4 trials."
