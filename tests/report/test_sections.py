"""The parts of a report that need no model: which weights, teacher's mistakes, how to make rows again, what is told."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from distillab.report.analysis import MOST_MODELS, models_looked_at
from distillab.report.charts import series_of
from distillab.report.collect import Place, Variant, collect
from distillab.report.document import Chart, Document, Figures, Listing, Section
from distillab.report.sections import build_document
from distillab.tables import Table
from made_up_runs import scores, write, write_comparison, write_run

PLACES: tuple[Place, ...] = ("alone", "distilled")


def report_on(folder: Path) -> Document:
    return build_document(collect([folder]), None, title="a report")


def section(document: Document, name: str) -> Section:
    return next(one for one in document.sections if one.name == name)


def table_in(document: Document, name: str) -> Table:
    return next(block.table for block in section(document, name).blocks if isinstance(block, Figures))


def test_average_last_step_and_what_validation_chose_stand_side_by_side(tmp_path: Path) -> None:
    best = {"test": scores(0.93), "epoch": 7}
    write_run(tmp_path / "a", "alone", top1=0.95, result={"last": {"test": scores(0.94)}, "best": best})
    write_run(tmp_path / "b", "st", top1=0.96, result={"best": best})
    stopped = {"training": {"early_stop_patience": 3}, "split": {"validation_fraction": 0.1}}
    write_run(tmp_path / "c", "mbd-soft", top1=0.93, result={"best": best}, settings=stopped)
    rows = {row[0]: row[1:] for row in table_in(report_on(tmp_path), "weights").rows}
    assert rows["teacher"] == ("-", "95.00", "-", "-")
    assert [cells for name, cells in rows.items() if name.startswith("alone")] == [("95.00", "94.00", "93.00", "7")]
    assert [cells for name, cells in rows.items() if name.startswith("st")] == [("-", "96.00", "93.00", "7")]
    assert [cells for name, cells in rows.items() if name.startswith("mbd")] == [("-", "-", "93.00", "7")]


def test_rows_of_several_tables_have_no_student_alone_in_common(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", top1=0.8)
    write_run(tmp_path / "st", "st", top1=0.9)

    def told() -> str:
        (chart,) = (block for block in section(report_on(tmp_path), "results").blocks if isinstance(block, Chart))
        return chart.description

    assert "the dotted line is the student alone" in told()
    write_run(tmp_path / "other", "st", top1=0.7, settings={"data": "cifar10"})
    assert "the dotted line" not in told()
    assert report_on(tmp_path).facts["data"] == "digits, cifar10"


def test_what_the_seeds_show_and_what_else_is_known_are_two_tables(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"alone-{seed}", "alone", seed=seed, top1=0.90 + 0.01 * seed)
        write_run(tmp_path / f"st-{seed}", "st", seed=seed, top1=0.91 + 0.02 * seed)
    blocks = section(report_on(tmp_path), "results").blocks
    shown, known = (block.table for block in blocks if isinstance(block, Figures))  # nobody but st is held against st
    assert [column.title for column in shown.columns][3:] == [
        *("top-1 %", "std", "95 % interval", "versus alone", "its interval", "p (Holm)", "shown")
    ]
    assert {row[0]: row[6] for row in shown.rows} == {"teacher": "-", "alone": "-", "st": "+2.00"}
    seconds = [column.title for column in known.columns].index("seconds")
    given = {row[0]: row[seconds] for row in known.rows}["teacher"]
    assert given == "-", "nobody knows how long a teacher took that was given"


def test_rows_that_are_held_against_st_have_a_table_for_that(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"alone-{seed}", "alone", seed=seed, top1=0.90 + 0.01 * seed)
        write_run(tmp_path / f"st-{seed}", "st", seed=seed, top1=0.91 + 0.02 * seed)
        write_run(tmp_path / f"takd-{seed}", "takd", seed=seed, top1=0.92 + 0.01 * seed + 0.002 * seed**2)
    blocks = section(report_on(tmp_path), "results").blocks
    _, against_st, known = (block for block in blocks if isinstance(block, Figures))
    assert [column.title for column in against_st.table.columns] == [
        *("method", "versus st", "its interval", "p (Holm)", "shown")
    ]
    assert [row[:2] for row in against_st.table.rows] == [("takd", "+0.33")]
    names = [row[0] for row in known.table.rows]
    assert against_st.series == (names.index("takd"),)
    ranks = {row[0]: row[1] for row in known.table.rows}
    assert ranks == {"teacher": "-", "alone": "2 to 3", "st": "1 to 3", "takd": "1 to 2"}


def test_latency_is_one_number_a_model_and_machine(tmp_path: Path) -> None:
    for name, seconds in (("alone", 0.001), ("st", 0.002), ("takd", 0.009)):
        write_run(tmp_path / name, name, result={"timing": {"latency_seconds": seconds}})
    chart = next(block for block in section(report_on(tmp_path), "cost").blocks if isinstance(block, Chart))
    column = [one.title for one in chart.numbers.columns].index("ms an image")
    shown = {row[0]: row[column] for row in chart.numbers.rows}
    assert {shown[name] for name in ("alone", "st", "takd")} == {"2.00"}


def test_runs_with_one_kind_of_weights_have_no_such_part(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "alone")
    assert "weights" not in [one.name for one in report_on(tmp_path).sections]


def test_mistakes_of_the_teacher_are_counted_as_the_runs_tell_them(tmp_path: Path) -> None:
    # Of 200 images the teacher errs on 10; the student is right on half of these and on 180 in all: 175 of the 190.
    write_run(tmp_path / "st", "st", top1=0.9, teacher_top1=0.95)
    chart = next(block for block in section(report_on(tmp_path), "teacher").blocks if isinstance(block, Chart))
    assert chart.numbers.rows[0][:2] == ("st", "50.00")
    assert chart.numbers.rows[0][5:7] == ("92.11", "90.0")


def beside_teacher(folder: Path, *tops: tuple[float, float]) -> Chart:
    """The chart of the student alone and of st: their accuracies where the teacher is wrong, a pair a seed."""
    for seed, (own, others) in enumerate(tops):
        told = {"teacher_agreement": 0.9, "top1_where_teacher_wrong": own}
        part = {"model": "cnn8", "source": "t", "test": scores(0.95), "cost": {"parameters": 1, "macs": 1}}
        write_run(folder / f"alone-{seed}", "alone", seed=seed, result={"test": told, "teacher": part})
        write_run(folder / f"st-{seed}", "st", seed=seed, result={"test": {"top1_where_teacher_wrong": others}})
    return next(block for block in section(report_on(folder), "teacher").blocks if isinstance(block, Chart))


def test_where_the_teacher_is_wrong_students_are_held_against_the_one_alone_over_seeds(tmp_path: Path) -> None:
    chart = beside_teacher(tmp_path, (0.3, 0.5), (0.4, 0.7), (0.5, 0.7))
    rows = {row[0]: row[1:5] for row in chart.numbers.rows}
    # Differences of 20, 30 and 20 points: mean 23.33, standard error sqrt(33.33 / 3) = 3.33, and 4.303 * 3.33 = 14.34.
    assert rows["alone"] == ("40.00", "-", "-", "-")
    assert rows["st"] == ("63.33", "+23.33", "+8.99 to +37.68", "0.020")
    words = "beats the student alone by 23.33 points (95 % interval 8.99 to 37.68, corrected p = 0.02, 3 seeds)."
    assert f"lose less there. There st {words} Marks" in chart.description


@pytest.mark.parametrize(
    ("tops", "words"),
    [
        ([(0.5, 0.3), (0.7, 0.4), (0.7, 0.5)], "There st is worse than the student alone by 23.33 points (95 % "),
        ([(0.3, 0.5), (0.5, 0.3), (0.4, 0.4)], "No method that could be tested is shown to differ from the student "),
        ([(0.3, 0.5)], "lose less there. Marks"),
        ([(0.3, 0.5), (0.3, 0.5)], "lose less there. Marks"),  # equal differences cannot be tested
    ],
)
def test_what_is_shown_where_the_teacher_is_wrong_is_said(
    tops: list[tuple[float, float]], words: str, tmp_path: Path
) -> None:
    assert words in beside_teacher(tmp_path, *tops).description


def test_models_of_several_data_sets_have_no_front_in_common(tmp_path: Path) -> None:
    def drawn() -> tuple[bool, bool]:
        (chart,) = section(report_on(tmp_path), "cost").blocks
        assert isinstance(chart, Chart)
        return "Pareto" in chart.description, all("stroke-dasharray" in panel.svg for panel in chart.panels)

    write_run(tmp_path / "st", "st", top1=0.9)
    write_run(tmp_path / "alone", "alone", top1=0.9)
    assert drawn() == (True, True)
    write_run(tmp_path / "other", "st", top1=0.7, settings={"split": {"seed": 1}})  # holds out other images
    assert drawn() == (False, False)


def test_a_teacher_without_a_mistake_leaves_nothing_to_show_there(tmp_path: Path) -> None:
    write_run(tmp_path / "st", "st", teacher_top1=1.0, result={"test": {"top1_where_teacher_wrong": None}})
    chart = next(block for block in section(report_on(tmp_path), "teacher").blocks if isinstance(block, Chart))
    assert chart.numbers.rows[0][:6] == ("st", "-", "-", "-", "-", "90.00")
    assert len(chart.panels) == 2


def test_each_row_says_how_it_is_made_again(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"st-{seed}", "st", seed=seed)
    (told,) = [
        block
        for block in section(report_on(tmp_path), "reproduce").blocks
        if isinstance(block, Listing) and block.title.startswith("st:")
    ]
    lines = told.text.splitlines()
    assert lines[:2] == [f"distillab distill --recipe {tmp_path / f'st-{seed}'}" for seed in (0, 1)]
    assert all(line.startswith("# ") for line in lines[2:])
    for words in (
        "it was run as: distillab distill --method st",
        "abc123",
        "torch 2.14.1",
        "AMD EPYC",
        "method = st",
    ):
        assert any(words in line for line in lines[2:]), words


def test_no_two_of_many_methods_look_alike() -> None:
    looks = [(one.colour, one.marker) for one in series_of([Variant(f"m{n}", "distilled", ()) for n in range(60)])]
    assert len(set(looks)) == len(looks)


def test_students_alone_of_several_tables_and_several_teachers_do_not_look_alike() -> None:
    teachers = [Variant(f"teacher {n}", "teacher", ()) for n in range(3)]
    students = [Variant(f"{place} {n}", place, (), table=str(n)) for n in range(3) for place in PLACES]
    found = series_of([*teachers, *students])
    assert len({(one.colour, one.marker) for one in found}) == len(found)
    assert len({(one.colour, one.dashes) for one in found}) == len(found)
    assert [one.glyph for one in found[:4]] == ["◆", "▼", "✚", "●"]


def test_one_run_a_row_has_neither_ranks_nor_verdicts(tmp_path: Path) -> None:
    for name in ("alone", "st", "takd"):
        write_run(tmp_path / name, name)
    tables = [block.table for block in section(report_on(tmp_path), "results").blocks if isinstance(block, Figures)]
    assert {"rank", "shown"}.isdisjoint(column.title for table in tables for column in table.columns)


def test_settings_that_all_rows_share_are_told_once(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", settings={"training": {"epochs": 7}})
    write_run(tmp_path / "st", "st", settings={"training": {"epochs": 8}})
    shared, *rows = [block for block in section(report_on(tmp_path), "reproduce").blocks if isinstance(block, Listing)]
    assert shared.title == "Settings that all rows share"
    assert all(line.startswith("# ") for line in shared.text.splitlines())
    assert "#   training.batch_size = " in shared.text
    assert "epochs = 7" not in shared.text
    told = {row.title.partition(":")[0]: row.text.splitlines() for row in rows}
    for name, epochs in (("alone", 7), ("st", 8)):
        (lines,) = [lines for title, lines in told.items() if title.startswith(name)]
        assert f"#   training.epochs = {epochs}" in lines
        assert not any("batch_size" in line for line in lines)


@pytest.mark.parametrize("name", ["run; touch canary", "$(id)", "run\nmkdir canary", "--help", "it's", "# no comment"])
def test_what_is_pasted_into_a_shell_is_one_command_whatever_names_say(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / name, "alone")
    write(run / "command.txt", "distillab train\nrm -rf everything\n")
    (told,) = [block for block in section(report_on(run), "reproduce").blocks if isinstance(block, Listing)]
    assert shlex.split(told.text, comments=True) == ["distillab", "train", "--recipe", str(run)]


def test_of_many_models_those_are_looked_at_whose_choices_are_compared(tmp_path: Path) -> None:
    tops = {"alone": 0.8, **{f"st, temperature {n}": 0.5 + 0.01 * n for n in range(20)}}
    write_run(tmp_path / "table" / "teacher", "teacher")
    for number, (row, top1) in enumerate(tops.items()):
        settings = {} if row == "alone" else {"distill": {"temperature": 1.0 + number}}
        write_run(tmp_path / "table" / row, row.partition(",")[0], top1=top1, settings=settings)
    collection = collect([tmp_path])
    looked_at = models_looked_at(collection)
    assert len(looked_at) == MOST_MODELS
    assert collection.trio is not None
    assert {one.name for one in collection.trio} <= {one.name for one in looked_at}
    assert collection.trio[2].top1 == pytest.approx(0.69)


def test_a_row_without_a_run_is_drawn_as_a_gap(tmp_path: Path) -> None:
    write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.85}})
    for seed in (0, 1):
        (tmp_path / "table" / f"seed-{seed}-0" / "st" / "result.json").unlink()
    document = report_on(tmp_path / "table")
    rows = {row[0]: row for row in table_in(document, "results").rows}
    assert rows["st"][1:4] == ("-", "0", "-")
    assert {"cost", "learning", "reproduce", "left-out"} <= {one.name for one in document.sections}
