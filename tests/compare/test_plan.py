"""What `distillab compare` plans: rows, seeds, teachers, axes."""

import pytest

import tiny
from distillab.compare.config import ComparisonConfig
from distillab.compare.plan import file_name, plan_comparison
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
    assert len(plan.runs) == 5


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
        ({"axis": ("=1",)}, "no axis"),
        ({"axis": ("optimiser.learning_rate=1",)}, "unknown setting"),
        ({"axis": ("optimizer.learning_rate=-1",)}, "learning_rate"),
        ({"axis": ("training.stage_epochs=each",)}, "more epochs"),
        ({"axis": ("distill.temprature=1,2",)}, "did you mean 'temperature'"),
        ({"axis": ("teacher=tiny:build,tiny:build_wide",)}, "one for all rows"),
        ({"axis": ("split.train_limit=8,16",)}, "one for all rows"),
        ({"axis": ("data=digits,tiny:dataset",)}, "one for all rows"),
        ({"axis": ("alone.optimizer.learning_rate=0.1,0.2",)}, "one for all rows"),
        ({"axis": ("optimiser.of.whom=1",)}, "unknown setting 'optimiser.of.whom'"),
        ({"axis": ("optimizer.momentum.start=1",)}, "unknown setting 'optimizer.momentum.start'"),
        ({"axis": ("seed=1,2",)}, "one for all rows"),
        ({"axis": ("optimizer.momentum=0.8,0.8",)}, "a value twice"),
        ({"axis": ("optimizer.momentum=0.8,0.9,0.8",)}, "a value twice"),
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
    assert len({folder.name for folder in folders}) == len(folders), "trials are kept by these names"
    assert all(len(folder.name) <= 100 for folder in folders)


def test_what_is_cut_of_a_name_still_tells_it_from_others():
    names = [file_name(f"student {'very ' * 30}{end}", "st") for end in ("wide", "narrow")]
    assert [len(name) for name in names] == [100, 100]
    assert names[0] != names[1]
    assert file_name("batch size 8", "st, temperature 2.5") == "st-temperature-2.5-batch-size-8"


def test_an_axis_of_one_value_is_a_setting_and_names_nothing(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "mbd-soft"), axis=("distill.temperature=2", "distill.label_weight=0.5"))
    assert plan.rows == (("", "alone"), ("", "st"), ("", "mbd-soft"))
    options = {run.method: run.config.distill for run in plan.runs if run.method != "alone"}
    assert (options["st"]["temperature"], options["st"]["label_weight"]) == (2.0, 0.5)
    assert options["mbd-soft"]["temperature"] == 2.0


@pytest.mark.parametrize(("asked", "given"), [({}, 3), ({"threads": 1}, 1)])
def test_threads_are_those_that_are_asked_for_else_those_that_are_allowed_here(tmp_path, asked, given):
    recipe = {name: value for name, value in RECIPE.items() if name != "threads"}
    request = ComparisonConfig(methods=("st",), seeds=1)
    with cpu_threads(3):
        plans = [
            plan_request(request, recipe, asked, tmp_path / "table"),
            plan_request(request, {**recipe, **asked}, {}, tmp_path / "table"),
        ]
    for plan in plans:
        assert {config.threads for config in (*plan.teachers, *(run.config for run in plan.runs))} == {given}


@pytest.mark.parametrize("methods", [5, [1, 2], ["st", 3], None])
def test_methods_that_are_no_words_are_refused(methods):
    with pytest.raises(ConfigError) as caught:
        validated(ComparisonConfig, {"methods": methods})
    assert caught.value.where.startswith("methods")


def test_a_method_that_is_named_twice_is_refused():
    with pytest.raises(ConfigError, match="named twice"):
        validated(ComparisonConfig, {"methods": ["st", "takd", "st"]})


def test_seeds_are_counted_from_that_of_the_recipe_and_those_of_teachers_too(tmp_path):
    plan = plan_of(tmp_path, flags={"seed": 7}, methods=("st",), seeds=2, teacher_seeds=2)
    homes = [tmp_path / f"teacher-{seed}" for seed in (7, 8)]
    assert [(teacher.seed, teacher.output) for teacher in plan.teachers] == [
        (7, homes[0] / "teacher"),
        (8, homes[1] / "teacher"),
    ]
    taught = [run for run in plan.runs if run.row == "st"]
    assert [(run.teacher, run.seed, run.config.seed) for run in taught] == [(0, 7, 7), (0, 8, 8), (1, 7, 7), (1, 8, 8)]
    assert [run.config.teacher for run in taught] == [str(home / "teacher") for home in homes for _ in range(2)]
    assert [run.folder for run in taught] == [home / f"seed-{seed}" / "st" for home in homes for seed in (7, 8)]


def test_one_teacher_that_is_given_is_not_several(tmp_path):
    (tmp_path / "given.pth").touch()
    with pytest.raises(ConfigError, match="one teacher is given") as caught:
        plan_of(tmp_path, flags={"teacher": str(tmp_path / "given.pth")}, teacher_seeds=2)
    assert caught.value.where == "teacher_seeds"


@pytest.mark.parametrize(("name", "instead"), [("method", "--methods"), ("output", "--output")])
def test_what_a_comparison_asks_for_in_words_of_its_own_is_no_setting_of_it(tmp_path, name, instead):
    with pytest.raises(ConfigError, match="no setting of a comparison") as caught:
        plan_of(tmp_path, flags={name: "st"})
    assert (caught.value.where, caught.value.hint) == (name, f"use {instead}")
    assert plan_of(tmp_path, recipe={**RECIPE, "method": "takd"}, methods=("st",)).rows == (("", "alone"), ("", "st"))


def test_settings_of_models_alone_count_for_teachers_also_where_they_are_typed(tmp_path):
    plan = plan_of(tmp_path, flags={"alone": {"optimizer": {"learning_rate": 0.5}}}, methods=("st",), seeds=1)
    assert {run.config.optimizer.learning_rate for run in plan.runs} == {RECIPE["optimizer"]["learning_rate"]}
    assert [teacher.optimizer.learning_rate for teacher in plan.teachers] == [0.5]


def test_sixteen_students_at_most_are_trained_together(tmp_path):
    values = ",".join(map(str, range(1, 21)))
    plan = plan_of(tmp_path, methods=("st",), seeds=1, axis=(f"distill.temperature={values}",))
    assert [len(group.runs) for group in plan.groups] == [16, 5]
    assert [group.folder for group in plan.groups] == [tmp_path / "seed-0-1", tmp_path / "seed-0-2"]
    assert all(run.folder.parent == group.folder for group in plan.groups for run in group.runs)


def test_an_axis_of_an_assistants_training_makes_rows_of_the_methods_that_have_one(tmp_path):
    plan = plan_of(tmp_path, methods=("st", "takd"), seeds=1, axis=("assistant_training.epochs=1, 2",))
    assert [row for _, row in plan.rows] == ["alone", "st", "takd, epochs 1", "takd, epochs 2"]


def test_values_of_an_axis_may_have_room_around_them(tmp_path):
    plan = plan_of(tmp_path, methods=("st",), seeds=1, axis=("student= tiny:build , tiny:build_wide",))
    assert [table for table, row in plan.rows if row == "st"] == ["student tiny:build", "student tiny:build_wide"]
