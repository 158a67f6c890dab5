"""What `distillab compare` plans: rows, seeds, teachers, axes."""

import pytest

import tiny
from distillab.compare.config import ComparisonConfig
from distillab.compare.plan import plan_comparison
from distillab.compare.run import plan_request
from distillab.errors import ConfigError
from distillab.runtime.device import cpu_threads
from distillab.settings import validated

RECIPE = {**tiny.RECIPE, "training": {**tiny.RECIPE["training"], "epochs": 2}}


def plan_of(folder, recipe=RECIPE, flags=None, **comparison):
    return plan_comparison(ComparisonConfig(**comparison), recipe, flags or {}, folder)


def test_the_student_alone_is_in_every_table_with_the_same_settings(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "takd"), seeds=3)
    assert plan.rows == (("", "alone"), ("", "st"), ("", "takd"))
    assert [run.seed for run in plan.runs if run.row == "alone"] == [0, 1, 2]
    for group in plan.groups:
        configs = [run.config for run in group.runs]
        assert len({repr((c.training, c.optimizer, c.schedule, c.augment, c.split, c.seed)) for c in configs}) == 1


def test_nobody_has_another_schedule_or_more_epochs_than_the_student_alone_whatever_the_recipe(tmp_path):
    recipe = {
        **RECIPE,
        "training": {**RECIPE["training"], "stage_epochs": "each"},
        "alone": {"schedule": {"name": "cosine"}, "optimizer": {"learning_rate": 0.5}},
    }
    plan = plan_of(tmp_path, recipe=recipe, methods=("st", "fitnet"), seeds=1)
    configs = [run.config for run in plan.runs]
    assert len({repr((config.training, config.schedule, config.optimizer)) for config in configs}) == 1
    assert {config.training.stage_epochs for config in configs} == {"shared"}
    assert len(plan.notes) == 2
    (teacher,) = plan.teachers
    assert (teacher.schedule.name, teacher.optimizer.learning_rate) == ("cosine", 0.5)


def test_the_teacher_is_one_for_all_seeds_and_assistants_belong_to_theirs(tmp_path):
    plan = plan_of(tmp_path, methods=("takd",), seeds=2)
    (teacher,) = plan.teachers
    assert teacher.role == "teacher"
    taught = [run.config for run in plan.runs if run.method == "takd"]
    assert {config.teacher for config in taught} == {str(tmp_path / "teacher")}
    assert [config.seed for config in taught] == [0, 1]


def test_several_teachers_repeat_all_of_it(tmp_path):
    plan = plan_of(tmp_path, methods=("st",), seeds=2, teacher_seeds=2)
    assert [teacher.seed for teacher in plan.teachers] == [0, 1]
    assert len(plan.runs) == 2 * 2 * 2
    assert len({run.folder for run in plan.runs}) == 8


def test_an_axis_of_the_methods_settings_makes_rows_and_leaves_alone_once(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "mbd-soft"), seeds=1, axis=("distill.temperature=2,4.5",))
    assert [row for _, row in plan.rows] == [
        "alone",
        "st, temperature 2",
        "st, temperature 4.5",
        "mbd-soft, temperature 2",
        "mbd-soft, temperature 4.5",
    ]


def test_an_axis_of_assistants_makes_rows_of_the_methods_that_have_one(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "takd"), seeds=1, axis=("assistant=tiny:build,tiny:build_wide",))
    assert [row for _, row in plan.rows] == [
        "alone",
        "st",
        "takd, assistant tiny:build",
        "takd, assistant tiny:build_wide",
    ]


def test_any_other_axis_makes_tables_each_with_its_own_alone(tmp_path):
    plan = plan_of(tmp_path, methods=("st",), seeds=1, axis=("training.batch-size=8,16",))
    assert plan.rows == (
        ("batch size 8", "alone"),
        ("batch size 8", "st"),
        ("batch size 16", "alone"),
        ("batch size 16", "st"),
    )
    assert len(plan.groups) == 2  # they cannot share their batches


@pytest.mark.parametrize(
    ("comparison", "named"),
    [
        ({"methods": ("sst",)}, "did you mean 'st'"),
        ({"axis": ("temperature",)}, "no axis"),
        ({"axis": ("optimiser.learning_rate=1",)}, "unknown setting"),
        ({"axis": ("optimizer.learning_rate=-1",)}, "learning_rate"),
        ({"axis": ("training.stage_epochs=each",)}, "more epochs"),
        ({"axis": ("distill.temprature=1,2",)}, "did you mean 'temperature'"),
        ({"axis": ("teacher=tiny:build,tiny:build_wide",)}, "one for all rows"),
        ({"axis": ("split.train_limit=8,16",)}, "one for all rows"),
        ({"axis": ("seed=1,2",)}, "one for all rows"),
        ({"axis": ("optimizer.momentum=0.8,0.8",)}, "a value twice"),
        ({"axis": ("optimizer.momentum=0.8", "optimizer.momentum=0.9")}, "is there twice"),
        ({"axis": ("checkpoint.minutes=1,2",)}, "changes no result"),
        ({"axis": ("cache-gib=0,4",)}, "changes no result"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, comparison, named):
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, **comparison)
    assert named in str(caught.value)


def test_long_names_of_rows_are_cut_and_stay_apart(tmp_path):
    axes = [f"{name}={low},{low * 2}" for name, low in (("optimizer.learning_rate", 0.01), ("optimizer.momentum", 0.4))]
    axes += ["schedule.warmup_fraction=0.1,0.2", "training.ema_decay=0.5,0.6", "training.gradient_clip=1,2"]
    plan = plan_of(tmp_path, methods=("st",), seeds=1, axis=(*axes, "training.batch_size=8,16"))
    folders = {run.folder for run in plan.runs}
    assert len(folders) == len(plan.runs) == 2 * 2**6
    assert all(len(folder.name) <= 100 for folder in folders)


def test_an_axis_of_one_value_is_a_setting_and_names_nothing(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "mbd-soft"), axis=("distill.temperature=2", "distill.label_weight=0.5"))
    assert plan.rows == (("", "alone"), ("", "st"), ("", "mbd-soft"))
    options = {run.method: run.config.distill for run in plan.runs if run.method != "alone"}
    assert (options["st"]["temperature"], options["st"]["label_weight"]) == (2.0, 0.5)
    assert options["mbd-soft"]["temperature"] == 2.0


def test_threads_are_those_that_are_allowed_here(tmp_path):
    with cpu_threads(1):
        plan = plan_request(ComparisonConfig(methods=("st",), seeds=1), RECIPE, {}, tmp_path / "table")
    assert {run.config.threads for run in plan.runs} == {1}


@pytest.mark.parametrize("methods", [5, [1, 2], ["st", 3], None])
def test_methods_that_are_no_words_are_refused(methods):
    with pytest.raises(ConfigError) as caught:
        validated(ComparisonConfig, {"methods": methods})
    assert caught.value.where.startswith("methods")
