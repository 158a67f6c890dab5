"""`distillab report`, and the reports that comparisons and the demo end with."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

import shell
import tiny
from distillab.compare.config import ComparisonConfig
from distillab.compare.run import run_comparison
from distillab.config import resolve_distill
from distillab.errors import DataError
from distillab.report import write
from distillab.report.analysis import analyse
from distillab.report.collect import collect
from distillab.report.disagreement import disagreements
from distillab.results.run_record import Run
from distillab.run import run_one
from made_up_runs import write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with a table for each of two batch sizes."""
    folder = tmp_path_factory.mktemp("made") / "table"
    request = ComparisonConfig(methods=("st",), seeds=2, axis=("training.batch-size=8,16",))
    run_comparison(request, tiny.RECIPE, {}, output=folder, allow_code=True)
    return folder


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of models that err, each in its own way."""
    folder = tmp_path_factory.mktemp("unlearned") / "table"
    settings = {"optimizer": {"learning_rate": 0.001}, "training": {**tiny.RECIPE["training"], "epochs": 1}}
    request = ComparisonConfig(methods=("st",), seeds=2)
    run_comparison(request, {**tiny.RECIPE, **settings}, {}, output=folder, allow_code=True)
    return folder


@pytest.fixture
def table(made: Path, tmp_path: Path) -> Path:
    """A copy of it in the working directory."""
    return Path(shutil.copytree(made, tmp_path / "table"))


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_report_says_the_numbers_of_the_comparison_and_where_it_is(table: Path, command: shell.Command) -> None:
    outcome = command("report", "table", "--allow-code")
    assert outcome.code == 0, outcome.err
    content = content_of(table / "report.json")
    assert outcome.out.splitlines() == [content["headline"], "report: table/report.html"]
    assert content["headline"].startswith("No method is shown to beat the student alone in any of 2 tables")
    assert content["left_out"] == []
    assert {"calibration", "features", "teacher", "weights"} <= content["sections"].keys()
    assert (table / "report.html").is_file()
    assert (table / "report.md").read_text().count("Of several runs of a row it is the first.") >= 2
    results = content_of(table / "results.json")
    compared = [dict(row) for row in content["rows"] if row["role"] in ("alone", "distilled")]
    assert [row.pop("role") for row in compared] == ["alone", "distilled"] * 2
    assert compared == results["rows"]
    with (table / "report.csv").open() as stream:
        tops = {(row["table"], row["method"]): float(row["top1_mean"]) for row in csv.DictReader(stream)}
    assert all(tops[row["table"], row["method"]] == row["top1_mean"] for row in results["rows"])
    text = (table / "report.md").read_text().replace("\\", "")
    assert all(sentence in text for sentence in results["sentences"])


def test_what_is_seen_of_models_is_what_their_runs_say(made: Path) -> None:
    collection = collect([made])
    analysis = analyse(collection, allow_code=True)
    assert analysis.notes == ()
    assert [look.variant for look in analysis.looks] == list(collection.variants)
    for look in analysis.looks:
        recorded = look.variant.first.result.test
        assert (look.choices == analysis.labels).mean() == pytest.approx(recorded.top1)
        assert look.calibration.ece == pytest.approx(recorded.ece, abs=1e-6)
        assert bool(look.similarity) == (look.variant.place != "teacher")
        assert look.temperature is not None  # validation images are held out
        teacher = analysis.of(collection.teacher_of(look.variant))
        if look.variant.place == "distilled":
            assert teacher is not None
            assert (look.choices == teacher.choices).mean() == pytest.approx(recorded.teacher_agreement)
    assert len(analysis.shown) == len(np.unique(analysis.shown)) == 30


def test_students_alone_are_asked_with_every_seed_and_known_by_it(unlearned: Path) -> None:
    def later(run: Run) -> Run:
        return replace(run, result=run.result.model_copy(update={"seed": run.result.seed + 5}))

    collection = collect([unlearned])
    variants = tuple(replace(one, runs=tuple(map(later, one.runs))) for one in collection.variants)
    analysis = analyse(replace(collection, variants=variants), allow_code=True)
    assert analysis.choices.keys() == {one.name for one in collection.of("alone")}
    for variant in (one for one in variants if one.place == "alone"):
        told = analysis.choices[variant.name]
        assert list(told) == [5, 6]
        assert not np.array_equal(told[5], told[6])
        for run in variant.runs:
            assert (told[run.result.seed] == analysis.labels).mean() == pytest.approx(run.result.test.top1)


def test_the_images_that_models_disagree_on_are_shown_as_they_are(unlearned: Path) -> None:
    collection = collect([unlearned])
    analysis = analyse(collection, allow_code=True)
    assert collection.trio is not None
    looks = [analysis.of(variant) for variant in collection.trio]
    choices = [look.choices for look in looks if look is not None]
    assert analysis.kinds == disagreements(analysis.labels, *choices, most_cases=6)
    cases = [case for kind in analysis.kinds for case in kind.cases]
    assert len({case.position for case in cases}) > 1
    for case in cases:
        _, _, png = analysis.pictures[case.position].partition("base64,")
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        assert np.array_equal(shown, tiny.dataset().test.images[case.position])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"data": "tiny:dataset"}, "data"),
        ({"split": {"seed": 1}}, "split.seed"),
        ({"split": {"test_fraction": 0.3}}, "split.test_fraction"),
    ],
)
def test_models_that_were_tested_on_other_images_are_not_held_against_each_other(
    other: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "alone", "alone")
    write_run(tmp_path / "st", "st", settings=other)
    with pytest.raises(DataError, match="do not share their images") as caught:
        analyse(collect([tmp_path]), allow_code=True)
    assert caught.value.where == named


def test_nothing_is_downloaded_for_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone", settings={"data": "cifar10", "data_dir": str(tmp_path / "nothing there")})
    with pytest.raises(DataError) as caught:
        analyse(collect([tmp_path]))
    assert "offline" in str(caught.value)


def test_temperatures_are_not_fitted_on_images_that_were_learned_from(made: Path) -> None:
    dataset = tiny.dataset()
    analysis = analyse(collect([made]), allow_code=True)
    config = collect([made]).variants[0].first.config
    assert 0 < analysis.num_held_out <= round(config.split.validation_fraction * len(dataset.train)) + 1


def test_without_permission_no_code_is_imported_and_the_rest_is_reported(table: Path, command: shell.Command) -> None:
    outcome = command("report", "table")
    assert outcome.code == 0, outcome.err
    assert "importing code" not in outcome.err
    content = content_of(table / "report.json")
    assert "calibration" not in content["sections"]
    assert {"results", "learning", "cost", "teacher", "reproduce", "left-out"} <= content["sections"].keys()
    (told,) = content["left_out"]
    assert "code" in told


def test_weights_that_are_damaged_or_gone_are_left_out_and_told(table: Path, command: shell.Command) -> None:
    damaged = table / "seed-0-1" / "st-batch-size-8" / "student.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (table / "seed-0-2" / "st-batch-size-16" / "student.safetensors").unlink()
    outcome = command("report", "table", "--allow-code")
    assert outcome.code == 0, outcome.err
    content = content_of(table / "report.json")
    assert [sentence.partition(": ")[0] for sentence in content["left_out"]] == [
        "st (batch size 8)",
        "st (batch size 16)",
    ]
    assert len(content["rows"]) == 5
    assert "calibration" in content["sections"]


def test_any_runs_go_into_one_report_in_the_folder_that_holds_them(command: shell.Command, tmp_path: Path) -> None:
    for name, method in (("a", "alone"), ("b", "st"), ("elsewhere/c", "mbd-soft")):
        write_run(tmp_path / "runs" / name, method)
    outcome = command("report", "runs/a", "runs/b", "runs/elsewhere", "--title", "Mine & <b>yours</b>")
    assert outcome.code == 0, outcome.err
    assert "report: runs/report.html" in outcome.out.splitlines()
    assert outcome.out.splitlines()[-1].startswith("  left out of it: ")
    assert "<title>Mine &amp; &lt;b&gt;yours&lt;/b&gt;</title>" in (tmp_path / "runs" / "report.html").read_text()
    assert "report: runs/a/report.html" in command("report", "runs/a").out.splitlines()


def test_only_reports_are_replaced(command: shell.Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "alone")
    kept = (run / "result.json").read_bytes()
    outcome = command("report", "run", "--output", "run/result.html")
    assert outcome.code == 4
    assert "run/result.json" in outcome.err
    assert (run / "result.json").read_bytes() == kept
    (tmp_path / "thesis.html").write_text("<title>ten years</title>")
    assert command("report", "run", "--output", "thesis.html").code == 4
    assert (tmp_path / "thesis.html").read_text() == "<title>ten years</title>"
    assert [command("report", "run", "--output", "new/mine.html").code for _ in range(2)] == [0, 0]
    (tmp_path / "new" / "mine.json").write_text("{}")
    assert "new/mine.json" in command("report", "run", "--output", "new/mine.html").err


def test_a_report_that_cannot_be_made_leaves_the_older_one(command: shell.Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "alone")
    assert command("report", "run").code == 0
    older = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "env.json").write_text("{")
    outcome = command("report", "run")
    assert outcome.code == 4
    assert "env.json" in outcome.err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == {**older, "env.json": b"{"}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nowhere",), 4, "there is no such folder"),
        ((".",), 4, "no run folder"),
        ((".", "--output", "report.pdf"), 2, "'.pdf'"),
        ((), 2, "RUNS"),
    ],
)
def test_what_cannot_be_reported_is_told(words: tuple[str, ...], code: int, told: str, command: shell.Command) -> None:
    outcome = command("report", *words)
    assert outcome.code == code
    assert told in outcome.err
    assert "Traceback" not in outcome.err


def recipe_in(folder: Path) -> str:
    recipe = {**tiny.RECIPE, "training": {**tiny.RECIPE["training"], "epochs": 1}}
    (folder / "tiny.toml").write_text(tomli_w.dumps(recipe))
    return "tiny.toml"


def test_a_comparison_ends_with_its_report_makes_it_again_and_loses_nothing_if_that_fails(
    command: shell.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("compare", "--recipe", recipe_in(tmp_path), "--methods", "st", "--seeds", "1", "--allow-code", "--quiet")
    outcome = command(*words, "--output", "table", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["report"] == "table/report.html"
    page = tmp_path / "table" / "report.html"
    page.unlink()
    again = command("resume", "table", "--allow-code", "--quiet")
    assert again.out.splitlines()[-1] == "report: table/report.html", again.err
    assert page.is_file()
    for error in (DataError("no images"), RuntimeError("a bug")):
        monkeypatch.setattr(write, "write_report", Mock(side_effect=error))
        outcome = command(*words, "--output", "table", "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["report"] is None
        assert len(json.loads(outcome.out)["rows"]) == 2
        assert outcome.err.startswith("there is no report: ")
        assert outcome.err.endswith("once more: distillab report table\n")
    monkeypatch.setattr(write, "write_report", Mock(side_effect=KeyboardInterrupt))
    outcome = command(*words, "--output", "table", "--json")
    assert outcome.code == 130
    assert len(json.loads(outcome.out)["rows"]) == 2


def test_the_demo_ends_with_its_report(command: shell.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(*, output: Path | None, **_: object) -> dict[str, Any]:
        assert output is not None
        for method in ("teacher", "alone", "st"):
            write_run(output / method, method, top1=0.95 if method == "teacher" else 0.9)
        row = {"method": "st", "model": "cnn16", "top1": 0.9}
        return {"rows": [row], "noise": "one image is 0.5 points", "output": str(output), "seconds": 1.0}

    monkeypatch.setattr("distillab.demo.run_demo", run_demo)
    outcome = command("demo", "--output", "demo")
    assert outcome.code == 0, outcome.err
    assert "report: demo/report.html" in outcome.out.splitlines()
    rows = content_of(tmp_path / "demo" / "report.json")["rows"]
    assert [row["method"] for row in rows] == ["teacher", "alone", "st"]


def test_models_of_one_layer_and_teachers_without_metadata_are_looked_at(tmp_path: Path) -> None:
    torch.save(tiny.build_wide(3).state_dict(), tmp_path / "theirs.pth")
    flags = {"teacher": str(tmp_path / "theirs.pth"), "teacher_model": "tiny:build_wide", "student": "tiny:build_flat"}
    run_one(resolve_distill(tiny.RECIPE, {**flags, "output": tmp_path / "st", "method": "st"}), allow_code=True)
    analysis = analyse(collect([tmp_path / "st"]), allow_code=True)
    assert analysis.notes == ()
    assert [(look.variant.name, look.similarity) for look in analysis.looks] == [("teacher", ()), ("st", ())]
