"""Run folders become rows: which runs are one row, which rows are one table, what is left out and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillab.config import resolve_distill
from distillab.errors import StorageError
from distillab.report.collect import Collection, collect
from distillab.report.telling_apart import flat_settings
from distillab.results.rows import Row, counted
from distillab.results.run_record import read_result
from made_up_runs import RECIPE, scores, write, write_comparison, write_run


def names(collection: Collection) -> list[str]:
    return [variant.name for variant in collection.variants]


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        write_run(tmp_path / f"alone-{seed}", "alone", seed=seed, settings={"threads": 1 + seed})
        write_run(tmp_path / f"st-{seed}", "st", seed=seed)
    collection = collect([tmp_path])
    assert names(collection) == ["teacher", "alone", "st"]
    assert [[run.result.seed for run in one.runs] for one in collection.variants[1:]] == [[0, 1, 2], [0, 1, 2]]
    assert collection.differing == {}


def test_runs_that_were_carried_out_together_stand_as_they_were_asked_for(tmp_path: Path) -> None:
    methods = ["alone", "st", "fitnet"]
    for method in methods:
        write_run(tmp_path / method, method)
    write_run(tmp_path / "another", "multi")
    assert [one.name for one in collect([tmp_path]).variants] == ["teacher", "alone", "multi", "fitnet", "st"]
    (tmp_path / "group.json").write_text(json.dumps({"runs": methods}))
    assert [one.name for one in collect([tmp_path]).variants] == ["teacher", "alone", "st", "fitnet", "multi"]
    (tmp_path / "group.json").write_text("damaged")
    assert len(collect([tmp_path]).variants) == 5


def test_rows_of_one_method_are_told_apart_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "alone")
    for temperature in (2.0, 4.0):
        write_run(tmp_path / f"st-{temperature}", "st", settings={"distill": {"temperature": temperature}})
    collection = collect([tmp_path])
    assert names(collection) == ["teacher", "alone", "st, temperature 2.0", "st, temperature 4.0"]
    assert collection.differing == {"distill.temperature": ("-", "-", "2.0", "4.0")}
    assert {variant.table for variant in collection.variants} == {""}


def test_a_student_alone_that_a_recipe_trains_otherwise_is_no_baseline(tmp_path: Path) -> None:
    over = {"alone": {"optimizer": {"learning_rate": 0.02}}}
    write_run(tmp_path / "alone", "alone", settings=over)
    write_run(tmp_path / "st", "st", settings=over)
    assert len({one.table for one in collect([tmp_path]).variants if one.place != "teacher"}) == 2


def test_the_rows_of_a_comparison_are_those_that_it_names(tmp_path: Path) -> None:
    write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}})
    write_run(tmp_path / "table" / "seed-9" / "st", "st", seed=9)  # of a comparison that was larger, or was to grow
    write_run(tmp_path / "table" / "seed-9" / "alone", "alone", seed=9)
    collection = collect([tmp_path / "table"])
    assert names(collection) == ["teacher", "alone", "st"]
    assert [len(one.runs) for one in collection.variants[1:]] == [2, 2]
    assert collection.left_out == (
        "2 runs in the folder of a comparison, but in none of its rows: left by another request.",
    )


def test_tables_of_a_comparison_keep_their_names_and_their_baselines(tmp_path: Path) -> None:
    tables = {"batch size 32": {"alone": 0.8, "st": 0.85}, "batch size 64": {"alone": 0.7, "st": 0.75}}
    collection = collect([write_comparison(tmp_path / "table", tables)])
    first, second = collection.of("distilled")
    assert (first.table, second.table) == ("batch size 32", "batch size 64")
    assert [collection.alone_of(one).table for one in (first, second)] == [first.table, second.table]
    assert collection.trio is not None
    assert [one.name for one in collection.trio] == ["teacher", "alone (batch size 32)", "st (batch size 32)"]


def test_several_comparisons_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_comparison(tmp_path / name, {"": {"alone": 0.8, "st": 0.85}})
    collection = collect([tmp_path])
    assert [one.table for one in collection.of("distilled")] == ["a", "b"]
    assert len(collection.of("teacher")) == 1


def test_a_row_whose_runs_have_all_diverged_stays_in_the_table(tmp_path: Path) -> None:
    write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85, "mbd-soft": 0.8}})
    for seed in (0, 1):
        (tmp_path / "table" / f"seed-{seed}-0" / "mbd-soft" / "result.json").unlink()
    changed = tmp_path / "table" / "seed-1-0" / "st" / "result.json"
    write(changed, changed.read_text().replace('"top1": 0.86', '"top1": 0.9'))
    collection = collect([tmp_path / "table"])
    assert names(collection) == ["teacher", "alone", "st", "mbd-soft"]
    rows = counted([one.row for one in collection.variants[1:]]).rows
    assert (rows[-1]["num_seeds"], rows[-1]["top1_mean"]) == (0, None)
    # It was asked for, so the others' p-values are corrected for it as well.
    versus = rows[1]["versus_alone"]
    assert versus["p_value"] == pytest.approx(2 * versus["uncorrected_p_value"])
    assert sum("diverged" in sentence for sentence in collection.left_out) == 2


def test_a_seed_that_misses_a_teacher_is_left_out_and_teachers_are_averaged(tmp_path: Path) -> None:
    write_comparison(tmp_path / "table", {"": {"alone": 0.8}}, num_teachers=2)
    for number, top1 in enumerate((0.7, 0.9)):
        write_run(tmp_path / "table" / f"teacher-{number}" / "seed-0" / "st", "st", top1=top1)
    write_run(tmp_path / "table" / "teacher-0" / "seed-1" / "st", "st", seed=1)
    folders = ["teacher-0/seed-0/st", "teacher-1/seed-0/st", "teacher-0/seed-1/st", "teacher-1/seed-1/st"]
    content = json.loads((tmp_path / "table" / "results.json").read_text())
    content["rows"].append({"table": "", "method": "st", "run_dirs": folders, "num_teachers": 2})
    write(tmp_path / "table" / "results.json", json.dumps(content))
    (row,) = counted([one.row for one in collect([tmp_path]).of("distilled")]).rows
    assert (row["seeds"], row["top1_mean"]) == ([0], pytest.approx(0.8))


def test_the_teacher_is_found_by_its_numbers_else_told_by_its_students(tmp_path: Path) -> None:
    write_run(tmp_path / "st", "st", teacher_top1=0.95)
    told = collect([tmp_path]).of("teacher")
    assert [(one.runs[0].result.test.top1, one.runs[0].is_own) for one in told] == [(0.95, False)]
    write_run(tmp_path / "moved", "teacher", top1=0.95)
    (found,) = collect([tmp_path]).of("teacher")
    assert found.runs[0].folder == tmp_path / "moved"
    write_run(tmp_path / "st-of-another", "mbd-soft", teacher_top1=0.97)
    collection = collect([tmp_path])
    assert [one.runs[0].result.test.top1 for one in collection.of("teacher")] == [0.95, 0.97]
    assert [collection.teacher_of(one).runs[0].result.test.top1 for one in collection.of("distilled")] == [0.95, 0.97]


def test_what_is_incomplete_or_there_twice_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "alone")
    write_run(tmp_path / "b", "alone")
    (write_run(tmp_path / "c", "st") / "result.json").unlink()
    collection = collect([tmp_path])
    assert names(collection) == ["alone"]
    assert [sentence.replace(str(tmp_path), "") for sentence in collection.left_out] == [
        "/c is not complete.",
        "/b is a second run of seed 0: the first one counts.",
    ]


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", "alone")
    collection = collect([run, tmp_path, tmp_path / "runs"])
    assert len(collection.variants[0].runs) == 1
    assert collection.left_out == ()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_runs_is_refused(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no run folder" if there else "no such folder"):
        collect([tmp_path / "empty"])


def test_runs_of_which_none_is_complete_are_refused(tmp_path: Path) -> None:
    (write_run(tmp_path / "a", "alone") / "result.json").unlink()
    with pytest.raises(StorageError, match="no run has come to its end"):
        collect([tmp_path])


def test_several_teachers_are_told_of_and_a_seed_that_misses_one_counts_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    names = []
    for teacher, seed, top1, nll in (
        (0, 0, 0.9, 0.1),
        (1, 0, 0.8, 0.1),
        (0, 1, 0.92, 0.1),
        (1, 1, 0.84, 0.1),
        (0, 2, 0.1, 9.0),
    ):
        names.append(f"teacher-{teacher}/seed-{seed}/st")
        result = {"teacher": {"source": f"teacher-{teacher}"}, "test": {"nll": nll}}
        write_run(folder / names[-1], "st", seed=seed, top1=top1, result=result)
    results = tuple(read_result(folder / name) for name in names)
    found = counted([Row("", "st", results, tuple(names), num_teachers=2)])
    (row,) = found.rows
    assert row["seeds"] == [0, 1]
    assert row["nll"] == pytest.approx(0.1)
    assert row["top1_by_teacher"] == [pytest.approx(0.91), pytest.approx(0.82)]
    assert found.sentences[0] == (
        "Each seed is a mean over 2 teachers; from one teacher to another the accuracy of a row differs by up to 9.00 "
        "points (st)."
    )


@pytest.mark.parametrize("other", [{"num_samples": 100}, {"top1": 0.945}, {"nll": 0.152}])
def test_a_model_with_another_number_on_the_test_images_is_not_the_teacher(
    other: dict[str, float], tmp_path: Path
) -> None:
    write_run(tmp_path / "st", "st", teacher_top1=0.95)
    write_run(tmp_path / "another", "teacher", top1=0.95, result={"test": other})
    collection = collect([tmp_path])
    assert [one.first.is_own for one in collection.of("teacher")] == [True, False]
    assert collection.teacher_of(collection.of("distilled")[0]) is collection.of("teacher")[1]


def test_another_machine_may_round_the_teachers_loss_otherwise(tmp_path: Path) -> None:
    write_run(tmp_path / "st", "st", teacher_top1=0.95)
    write_run(tmp_path / "moved", "teacher", top1=0.95, result={"test": {"nll": 0.15001}})
    assert len(collect([tmp_path]).of("teacher")) == 1


def test_students_of_several_seeds_tell_of_their_teacher_once(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"st-{seed}", "st", seed=seed)
    (teacher,) = collect([tmp_path]).of("teacher")
    assert len(teacher.runs) == 1


def test_the_weights_of_a_teacher_lie_in_its_students_run_or_where_that_says(tmp_path: Path) -> None:
    given = tmp_path / "given.pth"
    run = write_run(tmp_path / "st", "st", result={"teacher": {"source": str(given)}})

    def told() -> tuple[bool, Path | None]:
        (teacher,) = collect([run]).of("teacher")
        return teacher.first.is_own, teacher.first.weights

    assert told() == (False, None)
    given.touch()
    assert told() == (False, given)
    (run / "teacher.safetensors").touch()
    assert told() == (True, run / "teacher.safetensors")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("one", "two"), ("one/teacher.pth", "two/teacher.pth")),
        (("one/run", "two/run"), ("one/run/teacher.pth", "two/run/teacher.pth")),
    ],
)
def test_teachers_from_elsewhere_are_named_by_the_ends_of_their_paths(
    folders: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    for number, folder in enumerate(folders):
        given = tmp_path / "a" / "long" / "way" / "off" / folder / "teacher.pth"
        given.parent.mkdir(parents=True)
        given.touch()
        part = {"source": str(given), "test": scores(0.9 + 0.01 * number)}
        write_run(tmp_path / f"st-{number}", "st", seed=number, result={"teacher": part})
    found = collect([tmp_path])
    assert [one.name for one in found.of("teacher")] == [f"teacher, source {name}" for name in names]
    assert str(tmp_path) in found.differing["source"][0]


def test_a_teacher_is_held_against_the_first_student_alone_that_there_is(tmp_path: Path) -> None:
    tables = {"batch size 32": {"alone": 0.8, "st": 0.85}, "batch size 64": {"alone": 0.7, "st": 0.75}}
    collection = collect([write_comparison(tmp_path / "table", tables)])
    (teacher,) = collection.of("teacher")
    assert collection.alone_of(teacher) is collection.of("alone")[0]


def test_the_run_that_stands_for_a_row_is_that_of_the_first_seed(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}})
    content = json.loads((folder / "results.json").read_text())
    for row in content["rows"]:
        row["run_dirs"].reverse()
    write(folder / "results.json", json.dumps(content))
    assert [one.first.result.seed for one in collect([folder]).of("distilled")] == [0]


def test_what_every_name_says_is_no_setting_in_which_rows_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "teacher", "teacher", top1=0.95)
    for method in ("alone", "st", "takd"):
        write_run(tmp_path / method, method)
    assert collect([tmp_path]).differing == {}


def test_comparisons_in_folders_of_one_name_are_numbered(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_comparison(tmp_path / place / "table", {"": {"alone": 0.8, "st": 0.85}})
    assert [one.table for one in collect([tmp_path]).of("distilled")] == ["table (1)", "table (2)"]


def test_settings_have_the_names_of_all_sections_that_they_stand_in() -> None:
    over = {"optimizer": {"learning_rate": 0.011}, "alone": {"optimizer": {"learning_rate": 0.012}}}
    flat = flat_settings(resolve_distill(RECIPE, over))
    assert (flat["optimizer.learning_rate"], flat["alone.optimizer.learning_rate"]) == ("0.011", "0.012")
