"""Runs that are carried out at the same time on the same batches."""

import pytest

import tiny
from comparing_runs import differing
from distillab.config import resolve_distill, resolve_train
from distillab.errors import ConfigError, NonFiniteLossError
from distillab.run import run_one, run_together
from distillab.runtime.events import EpochEnded, StageStarted


def distill(folder, **flags):
    config = resolve_distill(tiny.RECIPE, {"output": folder, **flags})
    return run_one(config, allow_code=True, command=["distillab", "distill"])


def train(folder, **flags):
    return run_one(resolve_train(tiny.RECIPE, {"output": folder, **flags}), allow_code=True)


def test_runs_that_are_carried_out_together_leave_the_files_of_runs_alone(tmp_path):
    teacher = train(tmp_path / "teacher", role="teacher").run_dir
    names = ("alone", "st", "fitnet", "takd")

    def settings(name, folder):
        flags = {"output": tmp_path / folder / name}
        if name == "alone":
            return resolve_train(tiny.RECIPE, flags)
        return resolve_distill(tiny.RECIPE, {**flags, "method": name, "teacher": str(teacher)})

    for name in names:
        run_one(settings(name, "single"), allow_code=True)
    outcomes = run_together([settings(name, "group") for name in names], allow_code=True)
    assert [outcome.run_dir.name for outcome in outcomes] == list(names)
    for name in names:
        assert differing(tmp_path / "single" / name, tmp_path / "group" / name) == [], name


def test_a_teacher_that_several_runs_name_is_trained_once_and_saved_with_each(tmp_path):
    configs = [
        resolve_distill(tiny.RECIPE, {"output": tmp_path / name, "method": name}) for name in ("st", "mbd-delta")
    ]
    events = []
    run_together(configs, allow_code=True, observer=events.append)
    trained = [event for event in events if isinstance(event, StageStarted) and event.role == "teacher"]
    assert len(trained) == 1
    alone = distill(tmp_path / "alone", method="mbd-delta").run_dir
    together = tmp_path / "mbd-delta"
    assert (tmp_path / "st" / "teacher.safetensors").exists()
    assert differing(together, alone) == []


def test_runs_by_one_plan_are_told_apart_on_the_screen_and_not_in_their_folders(tmp_path):
    teacher = train(tmp_path / "teacher", role="teacher").run_dir
    configs = [
        resolve_distill(tiny.RECIPE, {"output": tmp_path / name, "teacher": str(teacher), "distill": options})
        for name, options in (("cold", {"temperature": 1.0}), ("warm", {"temperature": 8.0}))
    ]
    configs.append(resolve_train(tiny.RECIPE, {"output": tmp_path / "alone"}))
    events = []
    run_together(configs, allow_code=True, observer=events.append)
    expected = ["student by st [1]", "student by st [2]", "student alone"]
    assert [event.title for event in events if isinstance(event, StageStarted)] == expected
    assert {event.title for event in events if isinstance(event, EpochEnded)} == set(expected)
    for name in ("cold", "warm"):
        assert '"student by st"' in (tmp_path / name / "metrics.jsonl").read_text()
        assert "[" not in (tmp_path / name / "log.txt").read_text()


def test_a_run_that_its_last_update_spoils_leaves_the_others_theirs(tmp_path):
    """Its losses and gradients were finite, and without validation nobody looks before the test."""
    recipe = tiny.RECIPE | {"split": {"validation_fraction": 0.0}, "training": {"epochs": 1, "batch_size": 72}}
    rates = {"good": 0.01, "bad": 1e30}
    configs = [
        resolve_train(recipe, {"output": tmp_path / name, "optimizer": {"learning_rate": rate}})
        for name, rate in rates.items()
    ]
    good, bad = run_together(configs, allow_code=True)
    assert isinstance(bad, NonFiniteLossError)
    assert good.summary["test"]["num_samples"] == 30
    assert (tmp_path / "good" / "result.json").exists()
    assert not (tmp_path / "bad" / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "where"),
    [({"seed": 1}, "seed"), ({"views": 2}, "views"), ({"training": {"batch_size": 8}}, "training.batch_size")],
)
def test_runs_that_would_see_other_batches_are_not_carried_out_together(tmp_path, change, where):
    configs = [
        resolve_train(tiny.RECIPE, {"output": tmp_path / "a"}),
        resolve_train(tiny.RECIPE, {"output": tmp_path / "b", **change}),
    ]
    with pytest.raises(ConfigError, match="see the same batches") as caught:
        run_together(configs, allow_code=True)
    assert caught.value.where == where
    assert not (tmp_path / "a").exists()
