import copy

import pytest
import torch

import tiny
from distillab.config import regime_of, resolve_distill
from distillab.errors import ConfigError, ShapeError
from distillab.execution import Workplace, carry_out, planned_stages, train_alone
from distillab.guidance.cache import LogitsMemory
from distillab.models.catalog import build_model
from distillab.models.classifier import set_normalization
from distillab.runtime.device import choose_compute
from distillab.runtime.reproducibility import seeded
from distillab.scene import build_feed
from distillab.stages import PLANS, Stage, find_plan
from distillab.training.averaging import MovingAverage
from distillab.training.optimizer import make_optimizer
from distillab.training.step import Learner, Step, trainable
from distillab.training.trainer import fit

COMPUTE = choose_compute("cpu", "float32")

WHAT_EACH_PLAN_LOGS = {
    "st": [("student", "soft_target", {"labels", "soft_targets"})],
    "fitnet": [("student", "hint", {"hint"}), ("student", "soft_target", {"labels", "soft_targets"})],
    "takd": [
        ("assistant", "soft_target", {"labels", "soft_targets"}),
        ("student", "soft_target", {"labels", "soft_targets"}),
    ],
    "multi": [
        ("assistant", "hint", {"hint"}),
        ("assistant", "soft_target", {"labels", "soft_targets"}),
        ("student", "hint", {"hint"}),
        ("student", "soft_target", {"labels", "soft_targets"}),
    ],
    "mbd-delta": [("student", "merit_based", {"merit_labels", "merit_soft_targets"})],
    "mbd-hard": [("student", "merit_based", {"merit_labels", "merit_soft_targets"})],
    "mbd-soft": [("student", "merit_based", {"merit_labels", "merit_soft_targets"})],
}


def scene(**settings):
    config = resolve_distill({**tiny.RECIPE, **settings}, {})
    feed = build_feed(config, tiny.dataset(), tiny.SIZE, COMPUTE)
    return config, Workplace(feed, config.seed, COMPUTE)


def new(role: str):
    spec = tiny.RECIPE[role]
    with seeded(0, role):
        return build_model(spec, 3, image_size=tiny.SIZE)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(name: str, **settings):
    config, place = scene(method=name, **settings)
    models = {role: new(role) for role in ("teacher", "assistant", "student")}
    plan = find_plan(name)
    regime = regime_of(config)
    regimes = {"student": regime, "assistant": regime}
    return models, carry_out(plan, config.distill, models=models, regimes=regimes, place=place)


def test_seven_plans_are_seven_methods():
    students = {}
    for name, expected in WHAT_EACH_PLAN_LOGS.items():
        models, results = run(name)
        reports = [report for trained in results.values() for report in trained.stages]
        assert [(r.role, r.method, set(r.terms)) for r in reports] == expected
        for report in reports:
            for record in report.history:
                parts = sum(value for key, value in record.items() if key.startswith("loss/"))
                assert record["loss"] == pytest.approx(parts, rel=1e-6)
        students[name] = torch.cat([t.flatten().double() for t in models["student"].state_dict().values()])
    assert set(WHAT_EACH_PLAN_LOGS) == set(PLANS)
    names = list(students)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.equal(students[first], students[second]), (first, second)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_teacher_is_left_as_it_was_to_the_last_bit(name):
    config, place = scene(method=name)
    roles = ("teacher", "assistant", "student") if find_plan(name).uses_assistant else ("teacher", "student")
    models = {role: new(role) for role in roles}
    before = state(models["teacher"])
    regime = regime_of(config)
    carry_out(
        find_plan(name),
        config.distill,
        models=models,
        regimes={"student": regime, "assistant": regime},
        place=place,
    )
    assert same(before, state(models["teacher"]))
    for model in models.values():
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_parameter_of_a_stage_learns_and_no_other_moves(name):
    config, place = scene(method=name, optimizer={"learning_rate": 0.05, "weight_decay": 0.1})
    models = {role: new(role) for role in ("teacher", "assistant", "student")}
    regime = regime_of(config)
    for stage in planned_stages(
        find_plan(name), config.distill, models=models, regimes={"student": regime, "assistant": regime}, place=place
    ):
        before = {role: state(model) for role, model in models.items()}
        before_adapter = None if stage.learner.adapter is None else copy.deepcopy(stage.learner.adapter.state_dict())
        fit(stage, place.feed, regime, seed=0, compute=COMPUTE, observer=place.observer)
        for role in models:
            if role != stage.role:
                assert same(before[role], state(models[role])), f"{stage.title} moved the {role}"
        student = models[stage.role]
        reached = ("inner.first", "inner.second") if stage.learner.stop else ("inner",)
        for key, tensor in student.state_dict().items():
            moved = not torch.equal(before[stage.role][key], tensor)
            assert moved == key.startswith(reached), f"{stage.title}: {key} moved: {moved}"
        if before_adapter is not None:
            assert not same(before_adapter, stage.learner.adapter.state_dict())


def test_stages_go_on_through_the_views():
    config, place = scene(method="fitnet", training={"epochs": 8, "batch_size": 16})
    models = {role: new(role) for role in ("teacher", "student")}
    regimes = {"student": regime_of(config)}
    stages = list(planned_stages(find_plan("fitnet"), config.distill, models=models, regimes=regimes, place=place))
    assert [(stage.first_epoch, stage.epochs, stage.final) for stage in stages] == [(0, 2, False), (2, 6, True)]


def test_answers_from_memory_give_the_same_student_to_the_last_bit():
    results = {}
    memory = LogitsMemory()
    for turn in ("live", "asked", "remembered"):
        config, place = scene(method="st")
        place = Workplace(place.feed, 0, COMPUTE, memory=None if turn == "live" else memory)
        models = {role: new(role) for role in ("teacher", "student")}
        carry_out(find_plan("st"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place)
        results[turn] = state(models["student"])
        if turn == "asked":
            asked = len(memory)
    assert asked == len(memory) == 2 * place.feed.training.steps_per_epoch
    assert same(results["live"], results["asked"])
    assert same(results["live"], results["remembered"])


def test_memory_never_answers_for_another_teacher():
    memory = LogitsMemory()
    config, place = scene(method="st")
    place = Workplace(place.feed, config.seed, COMPUTE, memory=memory)
    for changed in ("nothing", "a weight", "normalisation"):
        models = {role: new(role) for role in ("teacher", "student")}
        if changed == "a weight":
            with torch.no_grad():
                models["teacher"].inner.head.bias[0] += 1e-3
        elif changed == "normalisation":
            set_normalization(models["teacher"], (0.5,) * 3, (0.2,) * 3)
        known = len(memory)
        carry_out(find_plan("st"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place)
        assert len(memory) == known + 2 * place.feed.training.steps_per_epoch, changed


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_on_a_gpu_never_waits(name):
    compute = choose_compute("cuda")
    config = resolve_distill(
        {
            **tiny.RECIPE,
            "optimizer": {"name": name, "learning_rate": 0.01},
            "augment": {"crop_padding": 2, "mixup": 0.5},
        },
        {"training": {"gradient_clip": 1.0, "ema_decay": 0.9}},
    )
    feed = build_feed(config, tiny.dataset(), tiny.SIZE, compute)
    place = Workplace(feed, 0, compute)
    models = {role: new(role) for role in ("teacher", "student")}
    regime = regime_of(config)
    stage = next(planned_stages(find_plan("st"), {}, models=models, regimes={"student": regime}, place=place))
    step = Step(
        stage.learner.train(),
        method=stage.method,
        guidance=stage.guidance,
        optimizer=make_optimizer(trainable(stage.learner), regime.optimizer),
        gradient_clip=1.0,
        average=MovingAverage(stage.learner.student, 0.9),
        compute=compute,
    )
    progress = torch.zeros((), device=compute.device)
    for epoch in range(2):  # tables and state are made in the first
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for number, batch in enumerate(feed.training.epoch(epoch)):
                step(batch, number=number, step=number, progress=progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"augment": {"crop_padding": 1}}, {"training": {"epochs": 2, "batch_size": 8}}],
    ids=["seed", "augmentation", "batch size"],
)
def test_memory_never_answers_for_other_batches(change):
    memory = LogitsMemory()
    for settings in ({}, change):
        config, place = scene(method="st", **settings)
        place = Workplace(place.feed, config.seed, COMPUTE, memory=memory)
        models = {role: new(role) for role in ("teacher", "student")}
        known = len(memory)
        carry_out(find_plan("st"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place)
        assert len(memory) == known + 2 * place.feed.training.steps_per_epoch


def test_a_teacher_of_other_classes_is_refused():
    config, place = scene(method="st")
    models = {"teacher": build_model(tiny.RECIPE["teacher"], 4, image_size=tiny.SIZE), "student": new("student")}
    with pytest.raises(ShapeError, match="4 classes, the data has 3"):
        carry_out(find_plan("st"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place)


def test_a_missing_assistant_is_named():
    config, place = scene(method="takd")
    with pytest.raises(ConfigError) as caught:
        carry_out(
            find_plan("takd"),
            config.distill,
            models={"teacher": new("teacher"), "student": new("student")},
            regimes={"student": regime_of(config)},
            place=place,
        )
    assert caught.value.where == "assistant"


def test_a_plan_cannot_end_at_a_layer():
    config, place = scene()
    plan = find_plan("custom", (Stage(method="hint"),))
    with pytest.raises(ConfigError, match="ends at a layer"):
        carry_out(
            plan,
            {},
            models={"teacher": new("teacher"), "student": new("student")},
            regimes={"student": regime_of(config)},
            place=place,
        )


def test_layers_can_be_chosen_by_name():
    config, place = scene(method="fitnet", distill={"hint_layer": "third", "guided_layer": "first"})
    models = {role: new(role) for role in ("teacher", "student")}
    stage = next(
        planned_stages(
            find_plan("fitnet"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place
        )
    )
    assert (stage.learner.layer, stage.guidance.layers) == ("first", ("third",))


def test_two_trainings_with_one_seed_are_equal_to_the_last_bit_and_with_two_are_not():
    weights = []
    for seed in (3, 3, 4):
        config, place = scene(seed=seed)
        model = new("student")
        torch.manual_seed(len(weights))  # the caller's generator is of no influence
        train_alone(model, regime_of(config), place)
        weights.append(state(model))
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_the_hot_path_builds_no_graph_through_the_teacher():
    config, place = scene(method="st")
    models = {role: new(role) for role in ("teacher", "student")}
    stage = next(
        planned_stages(
            find_plan("st"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place
        )
    )
    batch = next(iter(place.feed.training.epoch(0)))
    assert not stage.guidance(batch, 0).logits.requires_grad


def test_a_step_reads_nothing_back_to_the_host(monkeypatch):
    config, place = scene(method="mbd-soft", augment={"crop_padding": 2, "mixup": 0.5})
    models = {role: new(role) for role in ("teacher", "student")}
    stage = next(
        planned_stages(
            find_plan("mbd-soft"), config.distill, models=models, regimes={"student": regime_of(config)}, place=place
        )
    )
    learner: Learner = stage.learner.train()
    step = Step(
        learner,
        method=stage.method,
        guidance=stage.guidance,
        optimizer=make_optimizer(trainable(learner), regime_of(config).optimizer),
        gradient_clip=1.0,
        average=None,
        compute=COMPUTE,
    )
    for number, batch in enumerate(place.feed.training.epoch(0)):  # tables are made once, on first use
        step(batch, number=number, step=number, progress=torch.zeros(()))
    read = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, _n=name, **k: (read.append(_n), _o(self, *a, **k))[1]
        )
    for number, batch in enumerate(place.feed.training.epoch(1)):
        step(batch, number=number, step=number, progress=torch.zeros(()))
    assert read == []
