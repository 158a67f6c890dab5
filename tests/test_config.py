import tomllib

import pytest

from distillab import config as cfg
from distillab.errors import ConfigError
from distillab.recipe import load_recipe, recipe_names, recipe_summary

RECIPES = recipe_names()


def test_the_promised_recipes_are_shipped():
    promised = {f"cifar{n}-{f}-{k}" for n in (10, 100) for f in ("cnn", "resnet") for k in ("classic", "modern")}
    small = {"cifar10-cnn-small", "cifar100-cnn-small", "cifar10-resnet-small"}
    assert promised | small | {"digits-modern", "digits-demo"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves_for_every_verb_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe_summary(name).strip()
    for role in ("teacher", "assistant", "student"):
        assert cfg.resolve_train(recipe, {"role": role}).model == recipe[role]
    for method in ("st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft"):
        assert cfg.resolve_distill(recipe, {"method": method}).method == method


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_config_is_itself_a_valid_recipe(name, tmp_path):
    file = tmp_path / "config.toml"
    distill = cfg.resolve_distill(load_recipe(name), {"method": "mbd-delta"})
    file.write_text(cfg.to_toml(distill))
    assert cfg.resolve_distill(load_recipe(str(file)), {}) == distill
    train = cfg.resolve_train(load_recipe(name), {"role": "teacher"})
    file.write_text(cfg.to_toml(train))
    assert cfg.resolve_train(load_recipe(str(tmp_path)), {}) == train


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults():
    recipe = {"seed": 3, "optimizer": {"learning_rate": 0.2}, "training": {"epochs": 7}}
    found = cfg.resolve_distill(recipe, {"seed": 5, "training": {"batch_size": 32}})
    assert (found.seed, found.training.epochs, found.training.batch_size) == (5, 7, 32)
    assert found.optimizer.learning_rate == 0.2
    assert found.optimizer.weight_decay == cfg.OptimizerConfig().weight_decay


def test_a_role_has_its_own_epochs_and_rates_unless_a_flag_says_otherwise():
    recipe = {"training": {"epochs": 10}, "teacher_training": {"epochs": 4, "learning_rate": 0.01}}
    teacher = cfg.resolve_train(recipe, {"role": "teacher"})
    assert (teacher.training.epochs, teacher.optimizer.learning_rate) == (4, 0.01)
    assert cfg.resolve_train(recipe, {"role": "student"}).training.epochs == 10
    assert cfg.resolve_train(recipe, {"role": "teacher", "training": {"epochs": 2}}).training.epochs == 2


@pytest.mark.parametrize("role", [[], {}, 3, "pupil"])
def test_a_role_that_is_none_is_refused_whatever_a_recipe_has_in_its_place(role):
    with pytest.raises(ConfigError) as caught:
        cfg.resolve_train({"role": role}, {})
    assert caught.value.where == "role"


def test_the_classic_recipe_trains_alone_and_distils_by_different_schedules():
    recipe = load_recipe("cifar10-cnn-classic")
    alone = cfg.resolve_train(recipe, {})
    assert (alone.schedule.name, alone.schedule.milestones) == ("multi_step", (10, 15))
    assert alone.training.early_stop_patience == 5
    distill = cfg.resolve_distill(recipe, {})
    assert (distill.schedule.name, distill.training.early_stop_patience) == ("constant", None)
    assert distill.training.stage_epochs == "each"
    for found in (alone, distill):
        assert (found.optimizer.name, found.optimizer.learning_rate) == ("adam", 1e-3)
        assert (found.split.validation_fraction, found.training.batch_size) == (0.2, 128)


def test_the_methods_settings_are_filled_in():
    found = cfg.resolve_distill({}, {"method": "kd", "distill": {"temperature": 2.0}})
    assert found.method == "st"
    assert found.distill["temperature"] == 2.0
    assert (found.distill["label_weight"], found.distill["distill_weight"]) == (0.1, 0.9)


def test_another_method_by_flag_drops_the_recipes_settings_that_are_not_its_own():
    recipe = {"method": "st", "distill": {"temperature": 3.0, "label_weight": 0.5}}
    assert cfg.resolve_distill(recipe, {"method": "mbd-soft"}).distill == {"temperature": 3.0}


@pytest.mark.parametrize(
    ("values", "field", "hint"),
    [
        ({"sede": 1}, None, None),
        ({"optimizer": {"learning_rat": 0.1}}, "optimizer.learning_rat", "learning_rate"),
        ({"optimizer": {"learning_rate": -0.1}}, "optimizer.learning_rate", "Peak learning rate"),
        ({"training": {"epochs": 0}}, "training.epochs", "Passes"),
        ({"split": {"validation_fraction": 1.0}}, "split.validation_fraction", "held out"),
        ({"distill": {"temprature": 2}}, "distill.temprature", "temperature"),
        ({"distill": {"temperature": 0}}, "distill.temperature", None),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "optimizer.momentum", None),
        ({"optimizer": {"momentum": 0.0, "nesterov": True}}, "optimizer.nesterov", None),
        ({"schedule": {"milestones": [3]}}, "schedule.milestones", None),
        ({"schedule": {"factor": 0.5}}, "schedule.factor", None),
        ({"schedule": {"name": "multi_step"}}, "schedule.milestones", None),
        ({"schedule": {"name": "multi_step", "milestones": [5, 3]}}, "schedule.milestones", None),
        (
            {"training": {"early_stop_patience": 3}, "split": {"validation_fraction": 0.0}},
            "training.early_stop_patience",
            "validation_fraction",
        ),
        ({"alone": {"optimizer": {"nam": "sgd"}}}, "optimizer.nam", "name"),
        ({"method": "mbd-hard", "distill": {"delta": 0.2}}, None, None),
        ({"training": {"gradient_clip": float("inf")}}, "training.gradient_clip", None),
        ({"role": "teacher", "model": "cnn8"}, "recipe: role, model", "--teacher"),
        (
            {
                "method": "custom",
                "training": {"stage_epochs": "each"},
                "stages": [{"method": "hint", "share": 0.5}, {"method": "soft_target"}],
            },
            "stages",
            "stage_epochs",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(values, field, hint, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(cfg.tomli_w.dumps(values))
    with pytest.raises(ConfigError) as caught:
        cfg.resolve_distill(load_recipe(str(file)), {})
    if field:
        assert field in (caught.value.where or "")
    if hint:
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "values", [{"method": "zzz"}, {"distill": {"temprature": 2}}, {"method": "mbd-hard", "distill": {"delta": 0.2}}]
)
def test_a_wrong_method_in_a_recipe_is_refused_by_every_verb(values):
    for resolve in (cfg.resolve_train, cfg.resolve_distill):
        with pytest.raises(ConfigError):
            resolve(values, {})


def test_the_run_folder_of_a_model_alone_is_no_recipe_for_distilling(tmp_path):
    (tmp_path / "config.toml").write_text(cfg.to_toml(cfg.resolve_train({}, {"role": "teacher", "model": "cnn12"})))
    recipe = load_recipe(str(tmp_path))
    assert cfg.resolve_train(recipe, {}).model == "cnn12"
    with pytest.raises(ConfigError, match="distillab train"):
        cfg.resolve_distill(recipe, {})


def test_how_a_teacher_would_be_trained_does_not_matter_where_it_is_loaded(tmp_path):
    recipe = {"alone": {"training": {"early_stop_patience": 3}}, "split": {"validation_fraction": 0.0}}
    with pytest.raises(ConfigError, match="early stopping"):
        cfg.resolve_distill(recipe, {})
    assert cfg.resolve_distill(recipe, {"teacher": str(tmp_path)}).teacher == str(tmp_path)


def test_a_recipes_setting_that_a_flag_makes_idle_is_taken_away_by_none():
    recipe = load_recipe("cifar10-cnn-classic")
    with pytest.raises(ConfigError) as caught:
        cfg.resolve_train(recipe, {"schedule": {"name": "cosine"}})
    assert caught.value.where == "schedule.milestones"
    assert "--schedule.milestones=none --schedule.factor=none" in caught.value.hint
    gone = {"schedule": {"name": "cosine", "milestones": None, "factor": None}}
    assert cfg.resolve_train(recipe, gone).schedule.name == "cosine"
    with pytest.raises(ConfigError) as caught:
        cfg.resolve_train(recipe, {"schedule": {"name": "cosine", "milestones": (3,), "factor": None}})
    assert "leave it out" in caught.value.hint


def test_code_in_a_recipe_needs_permission(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('student = "os:system"')
    with pytest.raises(ConfigError, match="--allow-code"):
        load_recipe(str(file))
    assert load_recipe(str(file), allow_code=True) == {"student": "os:system"}


def test_the_output_folder_is_not_part_of_the_recipe_that_a_run_leaves(tmp_path):
    found = cfg.resolve_distill({}, {"output": tmp_path / "run"})
    assert "output" not in tomllib.loads(cfg.to_toml(found))


def test_paths_that_are_there_are_written_whole_and_names_stay(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "digits").mkdir()  # a name wins over a folder
    (tmp_path / "cnn8").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"data": "photos", "teacher": "./photos"}
    assert cfg.anchored(given) == dict.fromkeys(given, str(tmp_path / "photos"))
    for text in ("digits", "package.module:function", "not-there", "x" * 5000, "~nobody-of-this-name/x", "a\0b"):
        assert cfg.anchored({"data": text, "seed": 1}) == {"data": text, "seed": 1}
    assert cfg.anchored({"teacher": "cnn8"}) == {"teacher": "cnn8"}


def test_views_of_images_that_are_not_augmented_are_refused():
    with pytest.raises(ConfigError, match="views has no effect") as caught:
        cfg.resolve_train({"data": "digits", "model": "cnn16"}, {"views": 2})
    assert caught.value.where == "views"
    assert cfg.resolve_train({"augment": {"crop_padding": 2}}, {"views": 2}).views == 2
