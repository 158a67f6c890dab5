import copy
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from distillab.config import regime_of, resolve_distill
from distillab.errors import ConfigError, NonFiniteLossError, ShapeError
from distillab.execution import Job, carry_out, carry_out_together, train_alone
from distillab.feeding import build_feed
from distillab.guidance.cache import LogitsCache
from distillab.models.catalog import build_model
from distillab.models.classifier import set_normalization
from distillab.models.plain_cnn import cnn16
from distillab.preparation import Workplace
from distillab.runtime.capture import CannotCaptureError
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Note
from distillab.runtime.reproducibility import seeded
from distillab.stages import PLANS, Stage, find_plan
from distillab.training.averaging import MovingAverage
from distillab.training.compilation import repeated_blocks
from distillab.training.optimizer import make_optimizer
from distillab.training.program import Program
from distillab.training.stage_run import StageRun
from distillab.training.step import Step, trainable
from distillab.training.step_time import seconds_per_step
from one_stage import fit

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


def job(name, *, models=None, place=None, cache=None, execution="eager", **settings):
    config, found = scene(method=name, **settings)
    place = replace(place or found, cache=cache, compute=replace(COMPUTE, execution=execution))
    plan = find_plan(name)
    models = models or {role: new(role) for role in ("teacher", *plan.learners)}
    regime = regime_of(config)
    return Job(models, {"student": regime, "assistant": regime}, place, plan, config.distill)


def all_stages(work):
    return (stage for role in work.learners for stage, _ in work.stages(role))


def test_seven_plans_are_seven_methods():
    students = {}
    for name, expected in WHAT_EACH_PLAN_LOGS.items():
        work = job(name)
        models, results = work.models, carry_out(work)
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
    work = job(name)
    models = work.models
    before = state(models["teacher"])
    carry_out(work)
    assert same(before, state(models["teacher"]))
    for model in models.values():
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_parameter_of_a_stage_learns_and_no_other_moves(name):
    work = job(name, optimizer={"learning_rate": 0.05, "weight_decay": 0.1})
    models, place, regime = work.models, work.place, work.regimes["student"]
    for stage in all_stages(work):
        before = {role: state(model) for role, model in models.items()}
        before_adapter = None if stage.learner.adapter is None else copy.deepcopy(stage.learner.adapter.state_dict())
        fit(stage, place.feed, regime, seed=0, compute=COMPUTE, observer=place.observer)
        for role in models:
            if role != stage.role:
                assert same(before[role], state(models[role])), f"{stage.title} moved the {role}"
        student = models[stage.role]
        reached = ("inner.first", "inner.second") if stage.learner.stop else ("inner",)
        for key, tensor in student.state_dict().items():
            if key.startswith(reached) and key.endswith("num_batches_tracked"):
                continue  # counted anew where statistics are re-estimated: two stages may come to one number
            moved = not torch.equal(before[stage.role][key], tensor)
            assert moved == key.startswith(reached), f"{stage.title}: {key} moved: {moved}"
        if before_adapter is not None:
            assert not same(before_adapter, stage.learner.adapter.state_dict())


def hint_stage(**training):
    """Stage 1 of FitNets, its settings and its images."""
    some = job("fitnet", training={**tiny.RECIPE["training"], **training})
    stage, regime = next(iter(some.stages("student")))
    assert stage.learner.stop
    return stage, regime, some.place.feed


def test_a_stage_that_stops_at_a_layer_leaves_its_last_weights_and_no_average():
    ends = []
    for ema_decay in (None, 0.9):
        stage, regime, feed = hint_stage(ema_decay=ema_decay)
        fit(stage, feed, regime, seed=0, compute=COMPUTE, observer=lambda event: None)
        ends.append(state(stage.learner.student))
    assert same(*ends)


def test_looking_for_what_a_stage_reaches_moves_no_statistics():
    stage, regime, feed = hint_stage()
    before = state(stage.learner)
    StageRun(stage, feed, regime, compute=COMPUTE, observer=lambda event: None, record=None)
    assert same(before, state(stage.learner))


def test_stages_go_on_through_the_views():
    stages = list(all_stages(job("fitnet", training={"epochs": 8, "batch_size": 16})))
    assert [(stage.first_epoch, stage.epochs, stage.final) for stage in stages] == [(0, 2, False), (2, 6, True)]


@pytest.mark.parametrize("augment", [{"crop_padding": 2}, {"mixup": 0.5, "cutmix": 1.0}], ids=["crop", "mixed"])
@pytest.mark.parametrize("name", ["st", "takd"])
def test_cached_answers_give_the_same_student_to_the_last_bit(name, augment):
    cache = LogitsCache(None, limit_bytes=0)
    results = []
    for use in (None, cache, cache):  # live, filling, reading
        work = job(name, cache=use, augment=augment)
        carry_out(work)
        results.append(state(work.models["student"]))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("views", [None, 1, 2])
def test_the_teacher_is_run_once_a_view(views, monkeypatch):
    cache = LogitsCache(None, limit_bytes=0)
    asked = []
    for _ in range(2):
        work = job("st", cache=cache, views=views, training={"epochs": 4, "batch_size": 16})
        number_of_images = []
        work.models["teacher"].register_forward_hook(lambda m, args, out, n=number_of_images: n.append(len(out)))
        carry_out(work)
        asked.append(sum(number_of_images))
    assert asked == [(views or 4) * work.place.feed.training.num_samples, 0]


def test_the_cache_never_answers_for_another_teacher_or_other_images():
    cache = LogitsCache(None, limit_bytes=0)
    changes = ({}, {"seed": 1}, {"augment": {"crop_padding": 1}}, {"split": {"seed": 5}}, "a weight", "normalisation")
    for change in changes:
        work = job("st", cache=cache, **(change if isinstance(change, dict) else {}))
        if change == "a weight":
            with torch.no_grad():
                work.models["teacher"].inner.head.bias[0] += 1e-3
        elif change == "normalisation":
            set_normalization(work.models["teacher"], (0.5,) * 3, (0.2,) * 3)
        asked = []
        work.models["teacher"].register_forward_hook(lambda m, args, out, n=asked: n.append(len(out)))
        carry_out(work)
        assert asked, change


TOGETHER = ("st", "fitnet", "takd", "multi", "mbd-soft")


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_students_that_train_together_go_the_way_that_each_goes_alone(cached):
    settings = {"training": {"epochs": 4, "batch_size": 16, "ema_decay": 0.9}}
    alone = {}
    for name in TOGETHER:
        work = job(name, cache=LogitsCache(None, limit_bytes=0) if cached else None, **settings)
        alone[name] = carry_out(work), {role: state(model) for role, model in work.models.items()}
    shared = job("st", cache=LogitsCache(None, limit_bytes=0) if cached else None, **settings)
    teacher, place = shared.models["teacher"], shared.place
    jobs = []
    for name in TOGETHER:
        models = {"teacher": teacher, **{role: new(role) for role in find_plan(name).learners}}
        jobs.append(job(name, models=models, place=place, cache=place.cache, **settings))
    asked = []
    teacher.inner.first.register_forward_hook(lambda m, args, out: asked.append(len(out)))  # run even where it stops
    for name, work, outcome in zip(TOGETHER, jobs, carry_out_together(jobs), strict=True):
        reports, states = alone[name]
        for role, trained in outcome.items():
            assert same(states[role], state(work.models[role])), (name, role)
            assert trained.validation == reports[role].validation
            without_times = [
                {k: v for k, v in record.items() if k != "seconds"} for record in trained.stages[0].history
            ]
            expected = [
                {k: v for k, v in record.items() if k != "seconds"} for record in reports[role].stages[0].history
            ]
            assert without_times == expected
    # Live, once for all assistants and once for all students, in each of four epochs. Cached, the students need it in
    # the first alone, where one of them reads a layer.
    batches = place.feed.training
    assert asked.count(batches.batch_size) == (4 + (1 if cached else 4)) * batches.steps_per_epoch


def test_a_teacher_costs_the_time_of_those_who_ask_it_and_not_of_the_student_alone():
    taught = job("st")
    taught.models["teacher"].inner.first.register_forward_hook(lambda *_: time.sleep(0.1))
    untaught = Job({"student": new("student")}, {"student": taught.regimes["student"]}, taught.place)
    seconds = [outcome["student"].seconds for outcome in carry_out_together([taught, untaught])]
    assert seconds[0] - seconds[1] > 0.05 * 2 * taught.place.feed.training.steps_per_epoch


def test_one_student_among_others_may_stop_early_or_train_longer():
    long = {"training": {"epochs": 6, "batch_size": 16}}
    short = {
        "training": {"epochs": 12, "batch_size": 16, "early_stop_patience": 1},
        "optimizer": {"learning_rate": 2.0},
    }
    alone = []
    for settings in (long, short):
        work = job("st", **settings)
        alone.append((carry_out(work)["student"].stages[0].epochs, state(work.models["student"])))
    jobs = [job("st", **long)]
    jobs.append(job("st", place=jobs[0].place, **short))
    outcomes = carry_out_together(jobs)
    for work, outcome, (epochs, expected) in zip(jobs, outcomes, alone, strict=True):
        assert outcome["student"].stages[0].epochs == epochs
        assert same(state(work.models["student"]), expected)
    assert alone[1][0] < 12


def test_a_student_that_diverges_leaves_and_the_others_go_on():
    good = job("st")
    carry_out(good)
    jobs = [job("st"), job("st", optimizer={"learning_rate": 1e30})]
    jobs[1] = replace(jobs[1], place=replace(jobs[1].place, feed=jobs[0].place.feed))
    done, failed = carry_out_together(jobs)
    assert isinstance(failed, NonFiniteLossError)
    assert same(state(done["student"].model), state(good.models["student"]))


class Fragile(tiny.TinyNet):
    """Says nothing but NaN as soon as its statistics have been re-estimated."""

    def forward(self, images):
        self.broken = getattr(self, "broken", False) or (not self.training and self.first[1].training)
        return super().forward(images) * (float("nan") if self.broken else 1.0)


def test_a_student_that_is_spoilt_after_its_last_step_leaves_and_the_others_go_on():
    good = job("st")
    carry_out(good)
    jobs = [job("st", models={"teacher": new("teacher"), "student": Fragile(3)}), job("st")]
    jobs[1] = replace(jobs[1], place=jobs[0].place)
    failed, done = carry_out_together(jobs)
    assert isinstance(failed, NonFiniteLossError)
    assert same(state(done["student"].model), state(good.models["student"]))


@pytest.mark.parametrize("name", [*sorted(PLANS), "alone"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_recorded_steps_go_the_same_way_as_eager_ones(name, cached):
    """On a CPU the graph has a stand-in; the warm-up, the static tensors and the clocks are those of a GPU."""
    settings = {"training": {"epochs": 4, "batch_size": 16, "ema_decay": 0.9, "gradient_clip": 1.0}}
    for optimizer in ("sgd", "adamw"):
        found = {}
        for execution in ("eager", "captured"):
            cache = LogitsCache(None, limit_bytes=0) if cached else None
            more = {
                "optimizer": {"name": optimizer, "learning_rate": 0.01},
                "augment": {"crop_padding": 2, "mixup": 0.5},
            }
            work = job("st" if name == "alone" else name, cache=cache, execution=execution, views=2, **settings, **more)
            if name == "alone":
                work = Job({"student": work.models["student"]}, work.regimes, work.place)
            outcome = carry_out(work)
            found[execution] = state(work.models["student"]), outcome["student"].validation
        assert same(found["eager"][0], found["captured"][0]), optimizer
        assert found["eager"][1] == found["captured"][1]


def test_recorded_students_beside_each_other_go_the_same_way_as_alone():
    alone = {}
    for name in ("st", "fitnet"):
        work = job(name)
        carry_out(work)
        alone[name] = state(work.models["student"])
    first = job("st", execution="captured")
    jobs = [first, job("fitnet", models={"teacher": first.models["teacher"], "student": new("student")})]
    jobs[1] = replace(jobs[1], place=first.place)
    carry_out_together(jobs)
    for name, work in zip(("st", "fitnet"), jobs, strict=True):
        assert same(alone[name], state(work.models["student"]))


def test_a_recorded_step_learns_from_its_own_batch_whatever_was_said_to_follow():
    work = job("st", execution="captured")
    batches, compute = work.place.feed.training, work.place.compute
    raws = list(batches.raw(0))
    found = []
    for following in ([None, None], [raws[1], None], [raws[2], None], [tuple(part[:3] for part in raws[1]), None]):
        stage, step = recorded_step(job("st", execution="captured"), compute)
        program = Program(batches, compute, observer=work.place.observer)
        program.begin_epoch([step], [stage.guidance], 0)
        for number, coming in enumerate(following):
            step.set_clock(number, 10, 0.01)
            program(raws[number], number, coming)
        found.append(state(stage.learner.student))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("execution", ["eager", "captured"])
def test_an_estimate_tells_the_teachers_part_of_a_step(execution):
    work = job("st", execution=execution)
    stage, regime = next(work.stages("student"))
    assert min(seconds_per_step(stage, work.place.feed, regime, work.place.compute)) > 0.0


@pytest.mark.parametrize(("execution", "ahead"), [("eager", 0), ("captured", 1)])
def test_a_batch_is_asked_for_early_only_where_it_can_be_begun(execution, ahead):
    """A loader may fill one buffer again and again."""
    place = job("st", execution=execution).place
    program = Program(place.feed.training, place.compute, observer=place.observer)
    asked = []
    raws = ((asked.append(number), (torch.tensor(number),))[1] for number in range(4))
    for number, (raw, following) in enumerate(program.with_following(raws)):
        assert raw[0].item() == number
        assert len(asked) == min(4, number + 1 + ahead)
        assert (following is None) == (not ahead or number == 3)
    assert list(program.with_following([])) == []


def test_a_step_that_cannot_be_recorded_runs_eagerly_and_says_so(monkeypatch):
    def refuse(*args, **kwargs):
        raise CannotCaptureError("it waits for the device")

    work = job("st")
    carry_out(work)
    events = []
    other = job("st", execution="captured")
    other = replace(other, place=replace(other.place, observer=events.append))
    monkeypatch.setattr("distillab.training.program.Capture", refuse)
    carry_out(other)
    assert same(state(work.models["student"]), state(other.models["student"]))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ["the steps cannot be captured and run eagerly: it waits for the device"]


def test_the_blocks_that_are_compiled_are_those_that_repeat():
    assert len(repeated_blocks(cnn16(10))) == 16
    assert len(repeated_blocks(build_model("resnet98", 10, image_size=32))) == 6 + 8 + 12 + 6
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert repeated_blocks(plain) == [plain]


def recorded_step(work, compute):
    """All that a step of a plan's first stage needs, on a device."""
    stage, regime = next(work.stages("student"))
    learner = stage.learner.train()
    average = MovingAverage(learner.student, 0.9)
    optimizer = make_optimizer(trainable(learner), regime.optimizer)
    step = Step(learner, method=stage.method, optimizer=optimizer, gradient_clip=1.0, average=average, compute=compute)
    return stage, step


def on_a_gpu(name, execution, **settings):
    compute = replace(choose_compute("cuda", "float32"), execution=execution)
    config = resolve_distill({**tiny.RECIPE, **settings}, {"method": name})
    feed = build_feed(config, tiny.dataset(), tiny.SIZE, compute)
    place = Workplace(feed, config.seed, compute)
    models = {role: new(role) for role in ("teacher", *find_plan(name).learners)}
    regime = regime_of(config)
    return Job(models, {"student": regime, "assistant": regime}, place, find_plan(name), config.distill)


@pytest.fixture
def exact_products():
    """Products in full, by kernels that sum in one order: what differs then is how steps are executed."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


BUSY = {
    "augment": {"crop_padding": 2, "mixup": 0.5},
    "training": {"epochs": 4, "batch_size": 16, "ema_decay": 0.9, "gradient_clip": 1.0, "precision": "float32"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_on_a_gpu_never_waits(name):
    work = on_a_gpu("st", "eager", optimizer={"name": name, "learning_rate": 0.01}, **BUSY)
    stage, step = recorded_step(work, work.place.compute)
    for epoch in range(2):  # tables and state are made in the first
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")
        try:
            for number, batch in enumerate(work.place.feed.training.epoch(epoch)):
                step.set_clock(number, 100, 0.01)
                step(batch, stage.guidance(batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("default")  # the compiler looks at .grad of tensors that have none, and warns of it
@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("execution", ["captured", "compiled"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", sorted(PLANS))
def test_on_a_gpu_recorded_and_compiled_steps_go_the_same_way_as_eager_ones(name, optimizer, execution):
    found, judged = {}, {}
    for way in ("eager", execution):
        work = on_a_gpu(name, way, optimizer={"name": optimizer, "learning_rate": 0.01}, **BUSY)
        notes = []
        work = replace(work, place=replace(work.place, observer=notes.append))
        outcome = carry_out(work)
        assert not [event for event in notes if isinstance(event, Note) and "eagerly" in event.text]
        history = outcome["student"].stages[-1].history
        found[way] = [record["loss"] for record in history]
        judged[way] = [record["validation_loss"] for record in history]
    assert found["eager"] == pytest.approx(found[execution], rel=1e-3)
    assert judged["eager"] == pytest.approx(judged[execution], rel=1e-2)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_products")
def test_on_a_gpu_students_side_by_side_go_the_same_way_as_alone():
    alone = {}
    for name in ("st", "mbd-soft"):
        work = on_a_gpu(name, "captured", **BUSY)
        carry_out(work)
        alone[name] = work.models["student"].state_dict()
    first = on_a_gpu("st", "captured", **BUSY)
    second = on_a_gpu("mbd-soft", "captured", **BUSY)
    models = {"teacher": first.models["teacher"], "student": second.models["student"]}
    jobs = [first, replace(second, models=models, place=first.place)]
    carry_out_together(jobs)
    for name, work in zip(("st", "mbd-soft"), jobs, strict=True):
        for key, tensor in work.models["student"].state_dict().items():
            assert torch.allclose(tensor.float(), alone[name][key].float(), rtol=1e-3, atol=1e-4), (name, key)


def test_a_teacher_of_other_classes_is_refused():
    models = {"teacher": build_model(tiny.RECIPE["teacher"], 4, image_size=tiny.SIZE), "student": new("student")}
    with pytest.raises(ShapeError, match="4 classes, the data has 3"):
        carry_out(job("st", models=models))


def test_a_missing_assistant_is_named():
    with pytest.raises(ConfigError) as caught:
        carry_out(job("takd", models={"teacher": new("teacher"), "student": new("student")}))
    assert caught.value.where == "assistant"


def test_a_plan_cannot_end_at_a_layer():
    plan = find_plan("custom", (Stage(method="hint"),))
    with pytest.raises(ConfigError, match="ends at a layer"):
        carry_out(replace(job("st"), plan=plan, options={}))


def test_layers_can_be_chosen_by_name():
    stage = next(all_stages(job("fitnet", distill={"hint_layer": "third", "guided_layer": "first"})))
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
    work = job("st")
    stage = next(all_stages(work))
    batch = next(iter(work.place.feed.training.epoch(0)))
    assert not stage.guidance(batch).logits.requires_grad


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_a_step_reads_nothing_back_to_the_host(monkeypatch, cached):
    cache = LogitsCache(None, limit_bytes=0) if cached else None
    work = job("mbd-soft", cache=cache, augment={"crop_padding": 2, "mixup": 0.5}, views=1)
    stage, step = recorded_step(work, COMPUTE)
    batches = work.place.feed.training
    program = Program(batches, COMPUTE, observer=work.place.observer)

    def go_through(epoch):
        for number, raw in enumerate(batches.raw(epoch)):
            step.set_clock(number, 100, 0.01)
            program(raw, number)

    program.begin_epoch([step], [stage.guidance], 0)
    go_through(0)  # tables and state are made once, on first use
    program.end_epoch(batches.left_out(0))
    program.begin_epoch([step], [stage.guidance], 1)
    read = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, _n=name, **k: (read.append(_n), _o(self, *a, **k))[1]
        )
    go_through(1)
    assert read == []
