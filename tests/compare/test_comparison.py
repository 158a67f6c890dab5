"""`distillab compare` carried out: what comes of it, what is not done twice, what is not mixed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from distillab.compare.config import ComparisonConfig
from distillab.compare.estimate import estimate
from distillab.compare.run import plan_request, resume_comparison, run_comparison
from distillab.errors import CheckpointError, ConfigError, StorageError
from distillab.recipe import load_recipe
from distillab.runtime.events import EpochEnded, Note, RunStarted, StageStarted

RECIPE = {**tiny.RECIPE, "training": {**tiny.RECIPE["training"], "epochs": 2}}
OFTEN = {**RECIPE, "checkpoint": {"minutes": 0.0}}  # saved after every step


def run(folder, recipe=RECIPE, observer=lambda event: None, flags=None, **comparison):
    request = ComparisonConfig(**{"methods": ("st",), "seeds": 2, **comparison})
    return run_comparison(request, recipe, flags or {}, output=folder, observer=observer, allow_code=True)


def without_times(result):
    timeless = {**result, "output": None}
    rows = []
    for row in result["rows"]:
        row = {key: value for key, value in row.items() if key not in ("seconds_mean", "latency_seconds")}
        for key in ("versus_alone", "versus_st"):
            if row.get(key):
                row[key] = {name: value for name, value in row[key].items() if name != "points_per_extra_minute"}
        rows.append(row)
    return {**timeless, "rows": rows}


def test_a_comparison_gives_rows_sentences_and_run_folders(tmp_path):
    result = run(tmp_path / "table")
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"alone", "st"}
    for row in rows.values():
        assert row["num_seeds"] == 2
        tests = [
            json.loads((tmp_path / "table" / folder / "result.json").read_text())["test"]["top1"]
            for folder in row["run_dirs"]
        ]
        assert row["top1_mean"] == pytest.approx(sum(tests) / 2)
    difference = rows["st"]["top1_mean"] - rows["alone"]["top1_mean"]
    assert rows["st"]["versus_alone"]["difference"] == pytest.approx(difference)
    assert result["sentences"]
    assert json.loads((tmp_path / "table" / "results.json").read_text()) == json.loads(json.dumps(result))
    with (tmp_path / "table" / "results.csv").open() as stream:
        flat = {row["method"]: row for row in csv.DictReader(stream)}
    assert float(flat["st"]["versus_alone.difference"]) == pytest.approx(difference)
    assert "versus_alone" not in flat["st"]
    assert [one["model"] for one in result["teachers"]] == ["tiny:build_wide"]


def test_what_is_complete_is_not_done_again_and_a_comparison_can_grow(tmp_path):
    first = run(tmp_path / "table", seeds=1)
    started = []

    def watch(event):
        if isinstance(event, StageStarted):
            started.append(event.title)

    run(tmp_path / "table", seeds=1, observer=watch)
    assert started == []
    grown = run(tmp_path / "table", seeds=2, methods=("st", "fitnet"), observer=watch)
    assert sorted(started) == [
        "student alone",
        "student by fitnet (hint)",
        "student by fitnet (hint)",
        "student by fitnet (soft target)",
        "student by fitnet (soft target)",
        "student by st",
    ]
    assert {row["method"] for row in grown["rows"]} == {"alone", "st", "fitnet"}
    assert first["rows"][0]["top1_mean"] is not None


def test_who_asks_for_less_is_told_what_is_no_longer_counted(tmp_path):
    told = []

    def note(event):
        if isinstance(event, Note) and "no longer counted" in event.text:
            told.append(event.text)

    run(tmp_path / "table", seeds=2, observer=note)
    run(tmp_path / "table", seeds=2, observer=note)
    assert told == []
    rows = run(tmp_path / "table", seeds=1, methods=("fitnet",), observer=note)["rows"]
    assert [(row["method"], row["num_seeds"]) for row in rows] == [("alone", 1), ("fitnet", 1)]
    assert "3 runs of the last tables of this folder, seed-1/alone; seed-0/st; seed-1/st; what" in told[0]
    run(tmp_path / "table", seeds=1, methods=("st", "fitnet"), observer=note)
    assert len(told) == 1


@pytest.mark.parametrize("stopped_in", ["teacher alone", "student by st"])
def test_a_comparison_that_was_stopped_goes_on_to_the_same_table(tmp_path, stopped_in):
    whole = run(tmp_path / "whole")

    def stop(event):
        if isinstance(event, EpochEnded) and event.title == stopped_in:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "table", recipe=OFTEN, observer=stop)
    resumed = resume_comparison(tmp_path / "table", allow_code=True)
    assert without_times(resumed) == without_times(whole)
    assert not list((tmp_path / "table").rglob(".lock"))


KILLED = """
import os, signal, sys
from pathlib import Path
from test_comparison import OFTEN, EpochEnded, run

def kill(event, epochs=[]):
    if isinstance(event, EpochEnded) and event.title == "student by st":
        epochs.append(event.epoch)
        if epochs == [1, 2, 1]:  # of the second seed
            os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), recipe=OFTEN, observer=kill)
"""


def test_a_comparison_that_was_killed_goes_on_to_the_same_table(tmp_path):
    whole = run(tmp_path / "whole")
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent)))
    command = [sys.executable, "-c", KILLED, tmp_path / "table"]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "table" / "results.json").exists()
    assert list((tmp_path / "table" / "seed-1" / "checkpoints").glob("checkpoint-*"))
    resumed = resume_comparison(tmp_path / "table", allow_code=True)
    assert without_times(resumed) == without_times(whole)
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        assert (tmp_path / "table" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def stopped_after_two_epochs(folder, **comparison):
    def stop(event):
        if isinstance(event, EpochEnded) and (event.title, event.epoch) == ("student by st", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, recipe=OFTEN, observer=stop, seeds=1, **comparison)


def epochs_of(go_on):
    """Titles and numbers of the students' epochs that end in there."""
    ended = []
    go_on(lambda event: ended.append((event.title, event.epoch)) if isinstance(event, EpochEnded) else None)
    return [epoch for epoch in ended if epoch[0].startswith("student")]


@pytest.mark.parametrize("changed", [{"checkpoint": {"minutes": 7.0}}, {"track": ()}, {"cache_gib": 1.0}])
def test_settings_that_do_not_matter_may_change_while_runs_are_under_way(tmp_path, changed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stopped_after_two_epochs(Path("table"))
    absolute = tmp_path / "table"
    ended = epochs_of(lambda observer: run(absolute, OFTEN, observer, changed, seeds=1))
    assert ended == [("student alone", 2), ("student by st", 2)], "what was saved is gone on with"


def test_runs_go_on_where_others_of_their_group_are_complete(tmp_path):
    whole = run(tmp_path / "whole", recipe=OFTEN, seeds=1)
    stopped_after_two_epochs(tmp_path / "table")
    shutil.copytree(tmp_path / "whole/seed-0/alone", tmp_path / "table/seed-0/alone", dirs_exist_ok=True)
    found = []
    ended = epochs_of(lambda o: found.append(resume_comparison(tmp_path / "table", observer=o, allow_code=True)))
    assert ("student by st", 2) in ended
    assert ("student by st", 1) not in ended
    assert without_times(found[0]) == without_times(whole)


def test_what_is_saved_of_other_runs_is_told_before_it_is_removed(tmp_path):
    stopped_after_two_epochs(tmp_path / "table")
    told = []
    watch = lambda event: told.append(event.text) if isinstance(event, Note) else None  # noqa: E731
    run(tmp_path / "table", seeds=1, observer=watch, flags={"distill": {"temperature": 2.0}})
    assert "seed-0: its checkpoints are of other runs than those that are left; removed" in told


def test_complete_runs_are_found_by_what_they_are_wherever_the_plan_has_them_now(tmp_path, monkeypatch):
    first = run(tmp_path / "table", seeds=1, methods=("st", "fitnet"))
    monkeypatch.setattr("distillab.compare.plan._LARGEST_GROUP", 2)
    ended = epochs_of(lambda o: run(tmp_path / "table", observer=o, seeds=1, methods=("st", "fitnet", "mbd-soft")))
    assert ended == [("student by mbd-soft", 1), ("student by mbd-soft", 2)]
    grown = []
    ended = epochs_of(
        lambda o: grown.append(run(tmp_path / "table", observer=o, seeds=1, methods=("st", "fitnet"), teacher_seeds=2))
    )
    assert [epoch for epoch in ended if epoch[0] == "student by st"] == [("student by st", 1), ("student by st", 2)]
    of_first = json.loads((tmp_path / "table/teacher-0/seed-0-1/st/result.json").read_text())
    assert of_first["test"]["top1"] == first["rows"][1]["top1_mean"]
    assert {row["num_seeds"] for row in grown[0]["rows"]} == {1}


def test_the_student_alone_is_trained_once_for_all_teachers(tmp_path):
    ended = epochs_of(lambda o: run(tmp_path / "table", observer=o, seeds=2, teacher_seeds=2))
    begun = [title for title, epoch in ended if epoch == 1]
    assert begun == [*["student alone", "student by st"] * 2, *["student by st"] * 2]
    for seed in ("seed-0", "seed-1"):
        homes = [tmp_path / "table" / teacher / seed for teacher in ("teacher-0", "teacher-1")]
        assert len({(home / "alone" / "student.safetensors").read_bytes() for home in homes}) == 1
        assert len({(home / "st" / "student.safetensors").read_bytes() for home in homes}) == 2


def test_a_copy_that_a_kill_cut_short_is_no_complete_run(tmp_path):
    whole = run(tmp_path / "table", seeds=1)
    home = tmp_path / "table" / "seed-0" / "alone"
    home.rename(home.with_name(".tmp-alone"))
    (home.with_name(".tmp-alone") / "student.safetensors").unlink()
    ended = epochs_of(lambda o: run(tmp_path / "table", observer=o, seeds=1))
    assert ended == [("student alone", 1), ("student alone", 2)]
    assert (home / "student.safetensors").is_file()
    assert json.loads((home / "result.json").read_text())["test"]["top1"] == whole["rows"][0]["top1_mean"]


def test_settings_that_changed_are_not_mixed_into_one_table(tmp_path):
    run(tmp_path / "table", seeds=1)
    asked = (tmp_path / "table" / "comparison.json").read_text()
    with pytest.raises(ConfigError, match=r"of other settings: optimizer\.learning_rate was 0\.05, is 0\.01\n"):
        run(tmp_path / "table", seeds=1, flags={"optimizer": {"learning_rate": 0.01}})
    assert (tmp_path / "table" / "comparison.json").read_text() == asked, "it can still go on as it was"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("distillab.identity.NUMERICS", 1_000, r"numerics was \d+, is 1000"),
        ("distillab.runtime.device.has_fast_bfloat16", lambda device: True, "precision was float32, is bfloat16"),
    ],
)
def test_runs_that_were_computed_otherwise_are_not_mixed_into_one_table(tmp_path, monkeypatch, place, value, words):
    monkeypatch.setattr("distillab.runtime.device.has_fast_bfloat16", lambda device: False)
    recipe = {**RECIPE, "training": {**RECIPE["training"], "precision": "auto"}}
    run(tmp_path / "table", recipe, seeds=1)
    monkeypatch.setattr(place, value)
    with pytest.raises(ConfigError, match=f"computed otherwise: {words}"):
        run(tmp_path / "table", recipe, seeds=2)


def test_another_teacher_is_noticed(tmp_path):
    run(tmp_path / "table", seeds=1)
    other = run(tmp_path / "other", seeds=1, flags={"seed": 7})
    assert other["rows"]
    shutil.copy(tmp_path / "other" / "teacher" / "teacher.safetensors", tmp_path / "table" / "teacher")
    with pytest.raises(ConfigError, match="another teacher"):
        run(tmp_path / "table", seeds=1)


def test_a_result_that_is_damaged_is_named_with_what_makes_it_again(tmp_path):
    whole = without_times(run(tmp_path / "table", seeds=1))
    home = tmp_path / "table" / "seed-0" / "st"
    (home / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged") as caught:
        run(tmp_path / "table", seeds=1)
    assert caught.value.where == str(home / "result.json")
    assert caught.value.hint.startswith("remove its folder and have it made again")
    shutil.rmtree(home)
    assert without_times(run(tmp_path / "table", seeds=1)) == whole


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years")
    for ask in (run, lambda folder: plan_request(ComparisonConfig(), RECIPE, {}, folder)):  # a dry run says so, too
        with pytest.raises(StorageError, match="no comparison"):
            ask(tmp_path)


def test_code_in_a_comparison_of_somebody_else_is_refused(tmp_path):
    run(tmp_path / "table", seeds=1)
    with pytest.raises(ConfigError, match="names code"):
        resume_comparison(tmp_path / "table")


def test_a_student_that_diverges_is_left_out_and_told(tmp_path):
    told = []
    result = run(
        tmp_path / "table",
        seeds=1,
        methods=("st",),
        axis=("distill.temperature=1e30,4",),
        observer=lambda event: told.append(event.text) if isinstance(event, Note) else None,
    )
    counts = {row["method"]: row["num_seeds"] for row in result["rows"]}
    assert counts == {"alone": 1, "st, temperature 1e+30": 0, "st, temperature 4": 1}
    assert any("left out of the table" in text for text in told)
    assert (
        "st, temperature 1e+30: 1 of 1 runs have no result; what is said of it is of the others." in result["sentences"]
    )


def test_a_teacher_whose_architecture_is_named_beside_its_file_can_be_come_back_to(tmp_path):
    torch.save(tiny.build(3).state_dict(), tmp_path / "foreign.pth")
    recipe = {**RECIPE, "teacher": str(tmp_path / "foreign.pth"), "teacher_model": "tiny:build"}
    for seeds in (1, 2):
        request = ComparisonConfig(methods=("st",), seeds=seeds)
        result = run_comparison(request, recipe, {}, output=tmp_path / "table")
    assert {row["num_seeds"] for row in result["rows"]} == {2}
    assert len(result["teachers"]) == 1


def test_a_plan_refuses_what_the_comparison_would(tmp_path):
    run(tmp_path / "table", seeds=1)
    longer = {**RECIPE, "training": {**RECIPE["training"], "epochs": 3}}
    plan = plan_request(ComparisonConfig(methods=("st",), seeds=1), longer, {}, tmp_path / "table")
    with pytest.raises(ConfigError, match="a run of other settings"):
        estimate(plan, allow_code=True)


def test_an_estimate_adds_up_what_is_left(tmp_path):
    def parameters(model):
        return sum(parameter.numel() for parameter in model.parameters())

    methods = ("st", "takd")
    plan = plan_request(ComparisonConfig(methods=methods, seeds=3), RECIPE, {}, tmp_path / "table")
    found = estimate(plan, allow_code=True)
    left = {row["row"]: row["left"] for row in found["rows"]}
    assert left == {"teacher": 1, "alone": 3, "st": 3, "takd": 3}
    asked = found["teacher_seconds"]
    assert 0.0 < asked < found["seconds"]
    assert found["seconds"] == pytest.approx(asked + sum(row["left"] * row["seconds"] for row in found["rows"]))
    # The last weights and the best ones of each run; and in each checkpoint, of which as many are there at once as are
    # kept of one group, weights, two moments or an average, and the best ones.
    student, wide = parameters(tiny.build(3)), parameters(tiny.build_wide(3))
    learners = wide + 3 * student + 3 * student + 3 * (student + student)
    copies = 2 + 4 * plan.runs[0].config.checkpoint.keep / 3
    assert found["bytes"] == pytest.approx(4 * learners * copies, abs=10)
    assert found["side_by_side"] is False


def test_an_estimate_asks_a_teacher_once_for_all_that_are_trained_together(tmp_path, monkeypatch):
    stages = {  # role, seconds, and those in which its teacher is asked
        "teacher": [("teacher", 30.0, 0.0)],
        "alone": [("student", 10.0, 0.0)],
        "st": [("teacher", 30.0, 0.0), ("student", 16.0, 6.0)],
        "takd": [("teacher", 30.0, 0.0), ("assistant", 15.0, 5.0), ("student", 14.0, 4.0)],
    }

    def previewed(configs, *, allow_code):
        names = [
            getattr(config, "method", None) or {"student": "alone"}.get(config.role, "teacher") for config in configs
        ]
        return [
            {
                "data": {"train": 60, "test": 30, "classes": 3},
                "models": [{"role": role, "parameters": 1} for role, _, _ in stages[name]],
                "stages": [
                    {"role": role, "seconds": seconds, "teacher_seconds": asked}
                    for role, seconds, asked in stages[name]
                ],
            }
            for name in names
        ]

    monkeypatch.setattr("distillab.compare.estimate.preview_together", previewed)
    plan = plan_request(ComparisonConfig(methods=("st", "takd"), seeds=3), RECIPE, {}, tmp_path / "table")
    found = estimate(plan, allow_code=True)
    assert {row["row"]: row["seconds"] for row in found["rows"]} == {
        "teacher": 30.0,
        "alone": 10.0,
        "st": 16.0 - 6.0,
        "takd": (15.0 - 5.0) + (14.0 - 4.0),
    }
    assert found["teacher_seconds"] == 3 * (6.0 + 5.0), "students of one group: the longest; their assistants: as well"
    assert found["seconds"] == 30.0 + 3 * (10.0 + 10.0 + 20.0) + 3 * (6.0 + 5.0)


def test_the_logits_that_are_kept_are_counted_as_they_are(tmp_path):
    cached = {**RECIPE, "cache_gib": 1.0, "views": 2, "data_dir": str(tmp_path / "data")}
    plan = plan_request(ComparisonConfig(methods=("st",), seeds=2), cached, {}, tmp_path / "table")
    told = estimate(plan, allow_code=True)["cache_bytes"]
    run(tmp_path / "table", cached)
    tables = list((tmp_path / "data" / "logits").rglob("*.safetensors"))
    kept = sum(file.stat().st_size for file in tables)
    assert told <= kept <= told + 800 * len(tables)  # heads of the files
    never_again = plan_request(ComparisonConfig(methods=("st",), seeds=2), RECIPE, {}, tmp_path / "other")
    assert estimate(never_again, allow_code=True)["cache_bytes"] == 0


def test_paths_mean_the_same_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny.build(3).state_dict(), "foreign.pth")
    recipe = {**RECIPE, "teacher": "foreign.pth", "teacher_model": "tiny:build"}
    run(Path("table"), recipe)
    home = tmp_path / "elsewhere"
    home.mkdir()
    monkeypatch.chdir(home)
    assert load_recipe("../table/seed-0/st", allow_code=True)["teacher"] == str(tmp_path / "foreign.pth")
    result = resume_comparison(Path("../table"), allow_code=True)
    assert {row["num_seeds"] for row in result["rows"]} == {2}


def test_the_words_to_go_on_with_let_code_through_that_was_typed_by_hand(tmp_path):
    hints = []

    def watch(event):
        if isinstance(event, RunStarted):
            hints.append(event.resume)

    request = ComparisonConfig(methods=("st",), seeds=1)
    run_comparison(request, RECIPE, {}, output=tmp_path / "table", observer=watch)
    assert hints
    assert all(words.endswith("--allow-code") for words in hints)
