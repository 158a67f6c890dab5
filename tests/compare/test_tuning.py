"""`--tune`: as many trials for every row, chosen on validation images, made once, and never with the test set."""

import dataclasses
import json
import shutil
import sys

import pytest

import tiny
from distillab import scene
from distillab.compare import tuning
from distillab.compare.conduct import conduct_teachers, one_by_one
from distillab.compare.config import ComparisonConfig
from distillab.compare.estimate import estimate
from distillab.compare.finished import Expected
from distillab.compare.plan import plan_comparison
from distillab.compare.run import plan_request, resume_comparison, run_comparison
from distillab.compare.search_space import search_space, with_settings
from distillab.compare.trials import Trial, carry_out_trials
from distillab.compare.tuning import tune
from distillab.config import resolve_distill, resolve_train, settings_of
from distillab.errors import CheckpointError, ConfigError
from distillab.methods.base import TuningRange, method_class, method_names
from distillab.resume import read_config
from distillab.runtime.events import EpochEnded, Note, silent
from distillab.stages import PLANS

RECIPE = {
    **tiny.RECIPE,
    "training": {**tiny.RECIPE["training"], "epochs": 1},
    "split": {"validation_fraction": 0.5},  # enough images for trials to differ
}


def run(folder, recipe=RECIPE, observer=silent, **comparison):
    request = ComparisonConfig(**{"methods": ("st",), "seeds": 1, "tune": 2, **comparison})
    return run_comparison(request, recipe, {}, output=folder, observer=observer, allow_code=True)


def trained_plan(folder, recipe=RECIPE, **comparison):
    """A plan whose teacher is trained."""
    request = ComparisonConfig(**{"methods": ("st",), "seeds": 1, "tune": 2, **comparison})
    plan = plan_comparison(request, recipe, {}, folder)
    expected = Expected(silent, allow_code=True)
    conduct_teachers(plan, one_by_one(silent), expected, command=(), allow_code=True, force=False)
    return plan


def findings(folder):
    rows = json.loads((folder / "tuning.json").read_text())["rows"]
    return {row["row"]: row for row in rows}


class Trials:
    """An observer that writes down which trials were finished."""

    def __init__(self):
        self.titles = []

    def __call__(self, event):
        if isinstance(event, Note) and ", trial " in event.text:
            self.titles.append(event.text.partition(" of ")[0])


@pytest.fixture(scope="module")
def tuned_in_six(tmp_path_factory):
    """Titles of the trials, and the folder, of a comparison that was tuned in six trials at once."""
    folder, trials = tmp_path_factory.mktemp("six") / "table", Trials()
    run(folder, observer=trials, tune=6)
    return trials.titles, folder


def test_every_row_has_as_many_trials_the_student_alone_too(tmp_path):
    trials = Trials()
    run(tmp_path / "table", observer=trials, methods=("st", "mbd-soft"), tune=3)
    wanted = {f"{row}, trial {number}" for row in ("alone", "st", "mbd-soft") for number in (1, 2, 3)}
    assert sorted(trials.titles) == sorted(wanted)
    assert {row["trials"] for row in findings(tmp_path / "table").values()} == {3}


def test_tuned_rows_stand_in_a_table_of_their_own_against_the_tuned_student_alone(tmp_path):
    result = run(tmp_path / "table", seeds=2)
    rows = {(row["table"], row["method"]): row for row in result["rows"]}
    assert list(rows) == [("", "alone"), ("", "st"), ("tuned", "alone"), ("tuned", "st")]
    found = findings(tmp_path / "table")
    for (table, method), row in rows.items():
        assert row["num_seeds"] == 2
        assert row["tuned"] == (found[method]["settings"] if table else None)
        assert row["trials"] == (2 if table else 0)
    difference = rows["tuned", "st"]["top1_mean"] - rows["tuned", "alone"]["top1_mean"]
    assert rows["tuned", "st"]["versus_alone"]["difference"] == pytest.approx(difference)
    assert any("tuned: st is trained with optimizer.learning_rate" in sentence for sentence in result["sentences"])


def test_final_runs_have_the_settings_that_were_found_and_fresh_seeds(tmp_path):
    result = run(tmp_path / "table", seeds=2)
    (row,) = [row for row in result["rows"] if (row["table"], row["method"]) == ("tuned", "st")]
    plan = plan_comparison(ComparisonConfig(methods=("st",), seeds=2, tune=2), RECIPE, {}, tmp_path / "table")
    own = next(run.config for run in plan.runs if run.row == "st")
    for folder, seed in zip(row["run_dirs"], (0, 1), strict=True):
        config = read_config(tmp_path / "table" / folder, allow_code=True)
        assert settings_of(config) == settings_of(
            with_settings(own, row["tuned"]).model_copy(update={"seed": seed, "output": None})
        )


def test_trials_have_one_seed_that_is_none_of_the_comparisons(tmp_path):
    plan = trained_plan(tmp_path / "table", seeds=3, tune=5)
    seeds = []

    def spread(tasks):
        seeds.extend(trial.config.seed for task in tasks for trial in task.work.args[0])
        return one_by_one(silent)(tasks)

    tune(plan, spread, observer=silent, allow_code=True)
    assert len(seeds) == 2 * 5
    assert len(set(seeds)) == 1
    assert seeds[0] not in (0, 1, 2)


def test_the_first_trial_has_the_recipes_own_settings_and_the_others_have_others(tmp_path):
    plan = trained_plan(tmp_path / "table", tune=3)
    tried = []

    def spread(tasks):
        tried.extend(trial for task in tasks for trial in task.work.args[0])
        return one_by_one(silent)(tasks)

    tune(plan, spread, observer=silent, allow_code=True)
    for row in ("alone", "st"):
        own = next(run.config for run in plan.runs if run.row == row)
        first, *others = [trial.config for trial in tried if trial.row == ("", row)]
        assert settings_of(first) == settings_of(own.model_copy(update={"seed": first.seed, "output": None}))
        assert len({config.optimizer.learning_rate for config in (first, *others)}) == 3


def test_test_images_have_no_part_in_tuning(tmp_path, monkeypatch):
    data = tiny.dataset()
    mislabelled = dataclasses.replace(data.test, labels=(data.test.labels + 1) % len(data.classes))
    for folder in ("table", "other"):
        tune(trained_plan(tmp_path / folder, tune=4), one_by_one(silent), observer=silent, allow_code=True)
        monkeypatch.setattr(tiny, "dataset", lambda: dataclasses.replace(data, test=mislabelled))
    assert findings(tmp_path / "table") == findings(tmp_path / "other")
    tests = [
        json.loads((tmp_path / folder / "teacher" / "result.json").read_text())["test"]["top1"]
        for folder in ("table", "other")
    ]
    assert tests[0] != tests[1]  # so the test images were others


@pytest.mark.parametrize("stopped_in", ["st, trial 1", "st, trial 3", "st, trial 6"])
def test_tuning_that_was_stopped_goes_on_to_the_same_settings_without_repeating_trials(
    tmp_path, tuned_in_six, stopped_in
):
    trials, whole = tuned_in_six
    first, second = Trials(), Trials()

    def stop(event):
        first(event)
        if isinstance(event, EpochEnded) and event.title.startswith(stopped_in):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "table", observer=stop, tune=6)
    resume_comparison(tmp_path / "table", observer=second, allow_code=True)
    assert first.titles + second.titles == trials
    assert (tmp_path / "table" / "tuning.json").read_text() == (whole / "tuning.json").read_text()


def test_more_trials_can_be_asked_for_later(tmp_path, tuned_in_six):
    run(tmp_path / "table", tune=2)
    later = Trials()
    run(tmp_path / "table", observer=later, tune=6)
    assert sorted(later.titles) == [f"{row}, trial {number}" for row in ("alone", "st") for number in (3, 4, 5, 6)]
    assert findings(tmp_path / "table") == findings(tuned_in_six[1])


def test_of_more_trials_than_are_asked_for_now_the_first_ones_count(tmp_path, tuned_in_six):
    plan = plan_comparison(
        ComparisonConfig(methods=("st",), seeds=1, tune=2), RECIPE, {}, shutil.copytree(tuned_in_six[1], tmp_path / "t")
    )
    kept = {}
    for row in ("alone", "st"):
        trials = tuning._opened(plan.folder / "tuning" / f"{row}.log").trials[:2]
        kept[row] = max(trials, key=lambda trial: (trial.value, -trial.user_attrs["nll"])).params
    trials = Trials()
    found = tune(plan, one_by_one(silent), observer=trials, allow_code=True)
    assert trials.titles == []
    assert found == {("", row): settings for row, settings in kept.items()}
    assert {row["trials"] for row in findings(plan.folder).values()} == {2}


def test_trials_that_diverge_count_and_are_never_chosen(tmp_path):
    plan = trained_plan(tmp_path / "table", tune=4)

    def spread(tasks):
        for task in tasks:
            (trials,) = task.work.args
            yield [
                None if trial.number == 2 or trial.row == ("", "st") else worth
                for trial, worth in zip(trials, task.work(silent), strict=True)
            ]

    found = tune(plan, spread, observer=silent, allow_code=True)
    assert set(found) == {("", "alone")}  # all of st's diverged
    rows = findings(tmp_path / "table")
    assert (rows["alone"]["trials"], rows["alone"]["diverged"]) == (4, 1)
    assert (rows["st"]["trials"], rows["st"]["diverged"], rows["st"]["settings"]) == (4, 4, None)


def test_a_trial_is_worth_what_its_student_is_worth_whatever_its_assistant_has_learnt():
    unlearned = {"optimizer": {"learning_rate": 1e-9}, "assistant_training": {"learning_rate": 0.05, "epochs": 20}}
    config = resolve_distill(RECIPE, {"method": "takd", **unlearned})
    (worth,) = carry_out_trials([Trial(("", "takd"), 1, {}, config)], silent, allow_code=True)
    assert worth.num_samples == 36, "the validation images"
    assert worth.top1 < 0.6
    assert worth.nll > 1.0


def test_of_trials_with_equal_accuracy_the_lower_loss_is_chosen(tmp_path):
    plan = trained_plan(tmp_path / "table", methods=("st",), tune=4)
    tried = {}

    def spread(tasks):
        for task in tasks:
            worth = task.work(silent)
            for trial in task.work.args[0]:
                tried[trial.row, trial.number] = trial.settings
            yield [
                dataclasses.replace(one, top1=0.9 if trial.number > 1 else 0.8, nll=1.0 / trial.number)
                for trial, one in zip(task.work.args[0], worth, strict=True)
            ]

    found = tune(plan, spread, observer=silent, allow_code=True)
    assert found == {row: tried[row, 4] for row in (("", "alone"), ("", "st"))}


def test_trials_of_other_settings_are_not_taken_for_these(tmp_path):
    run(tmp_path / "table")
    for folder in ("seed-0", "teacher"):
        (tmp_path / "table" / folder).rename(tmp_path / folder)
    with pytest.raises(ConfigError, match="other settings"):
        run(tmp_path / "table", recipe={**RECIPE, "optimizer": {"learning_rate": 0.01}})


@pytest.mark.parametrize(
    "damage", [("{", "all was lost"), ('"nll"', '"loss"'), ('"value":', '"value": "high", "was":')]
)
def test_a_damaged_file_of_trials_is_named(tmp_path, damage):
    run(tmp_path / "table")
    path = tmp_path / "table" / "tuning" / "st.log"
    path.write_text(path.read_text().replace(*damage))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        run(tmp_path / "table")
    assert caught.value.where == str(path)


def test_tuning_needs_validation_images(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "table", recipe={**RECIPE, "split": {"validation_fraction": 0.0}})
    assert caught.value.where == "split.validation_fraction"
    assert not (tmp_path / "table").exists()


def test_a_missing_optuna_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="Optuna") as caught:
        run(tmp_path / "table")
    assert caught.value.hint == "pip install 'distillab[tune]'"
    assert not (tmp_path / "table").exists()


def test_the_estimate_counts_trials_and_tuned_runs(tmp_path):
    request = ComparisonConfig(methods=("st",), seeds=2, tune=3)
    plan = plan_request(request, RECIPE, {}, tmp_path / "table")
    todo = estimate(plan, allow_code=True)
    runs = {(row["table"], row["row"]): row["runs"] for row in todo["rows"]}
    assert runs == {
        ("", "teacher"): 1,
        **{(table, row): count for table, count in (("", 2), ("tuning", 3), ("tuned", 2)) for row in ("alone", "st")},
    }
    assert todo["runs"] == todo["runs_left"] == 15
    untuned = plan_request(request.model_copy(update={"tune": 0}), RECIPE, {}, tmp_path / "table")
    assert todo["seconds"] > estimate(untuned, allow_code=True)["seconds"]
    assert not (tmp_path / "table").exists()
    run(tmp_path / "table", seeds=2, tune=3)
    assert estimate(plan, allow_code=True)["runs_left"] == 0


def test_an_estimate_opens_the_images_once_for_runs_that_share_them(tmp_path, monkeypatch):
    opened = []
    look = scene.open_dataset

    def noted(*args, **options):
        opened.append(args)
        return look(*args, **options)

    monkeypatch.setattr(scene, "open_dataset", noted)
    request = ComparisonConfig(methods=("st", "mbd-hard", "mbd-soft"), seeds=3)
    estimate(plan_request(request, RECIPE, {}, tmp_path / "table"), allow_code=True)
    assert len(opened) == 2, "for the teacher, and for all that learn from it or beside it"


@pytest.mark.parametrize("method", PLANS)
def test_both_ends_of_a_search_space_work(method):
    config = resolve_distill(RECIPE, {"method": method, "training": {"epochs": 8}})
    space = search_space(config)
    assert {"optimizer.learning_rate", "optimizer.weight_decay", "distill.temperature"} <= set(space)
    for end in ("low", "high"):
        settings = {name: getattr(found, end) for name, found in space.items()}
        tuned = with_settings(config, settings)
        assert settings_of(resolve_distill(settings_of(tuned), {})) == settings_of(tuned)


def test_settings_without_effect_are_not_tuned():
    spaces = {method: search_space(resolve_distill(RECIPE, {"method": method})) for method in ("mbd-delta", "mbd-soft")}
    assert "distill.delta" in spaces["mbd-delta"]
    assert "distill.delta" not in spaces["mbd-soft"]
    without_decay = resolve_train(RECIPE, {"optimizer": {"weight_decay": 0.0}})
    assert set(search_space(without_decay)) == {"optimizer.learning_rate"}


def test_settings_that_one_of_the_stages_refuses_are_not_tuned():
    chosen = {"method": "custom", "stages": [{"method": "merit_based"}], "distill": {"variant": "soft"}}
    assert "distill.delta" not in search_space(resolve_distill(RECIPE, chosen))
    fixed = [{"method": "hint", "share": 0.5}, {"method": "merit_based", "options": {"variant": "hard"}}]
    space = search_space(resolve_distill(tiny.RECIPE, {"method": "custom", "stages": fixed}))
    assert "distill.hint_weight" in space
    assert "distill.delta" not in space


def test_learning_rate_and_weight_decay_are_sought_within_a_factor_of_five_evenly_by_factors():
    space = search_space(resolve_train(RECIPE, {"optimizer": {"learning_rate": 0.05, "weight_decay": 0.001}}))
    assert {name: (found.low, found.high, found.log) for name, found in space.items()} == {
        "optimizer.learning_rate": (pytest.approx(0.01), pytest.approx(0.25), True),
        "optimizer.weight_decay": (pytest.approx(0.0002), pytest.approx(0.005), True),
    }


def test_what_an_axis_varies_is_not_tuned(tmp_path):
    run(tmp_path / "table", axis=("distill.temperature=2,4",))
    rows = findings(tmp_path / "table")
    assert set(rows) == {"alone", "st, temperature 2", "st, temperature 4"}
    for row in rows.values():
        assert "optimizer.learning_rate" in row["settings"]
        assert "distill.temperature" not in row["settings"]


@pytest.mark.parametrize("name", method_names())
def test_ranges_hold_the_default_and_lie_above_zero_where_they_are_logarithmic(name):
    for field in method_class(name).Config.model_fields.values():
        for found in (entry for entry in field.metadata if isinstance(entry, TuningRange)):
            assert found.low < found.high
            assert found.low > 0 or not found.log
            assert field.default is None or found.low <= field.default <= found.high
