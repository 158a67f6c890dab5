import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiny
from distillab.config import regime_of, resolve_distill
from distillab.data.batch import Batch
from distillab.errors import GuardError
from distillab.execution import Job
from distillab.feeding import build_feed
from distillab.preparation import Workplace
from distillab.runtime.device import choose_compute
from distillab.stages import find_plan
from distillab.training.guards import LearnerGuard, TeacherGuard, describe_batch, fingerprint, term_shares
from distillab.training.step import Learner
from one_stage import fit

COMPUTE = choose_compute("cpu", "float32")
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex128)


@given(st.sampled_from(TYPES), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_change_of_any_bit_of_any_element_shows(dtype, size, data):
    tensor = torch.randint(0, 2, (size,)).to(dtype)
    before = fingerprint({"a": tensor})
    stored = tensor.view(torch.uint8)  # the bytes
    place = data.draw(st.integers(0, len(stored) - 1))
    # The stored form of a truth value is 0 or 1: other bits are not its own.
    bit = 0 if dtype == torch.bool else data.draw(st.integers(0, 7))
    stored[place] ^= 1 << bit
    assert fingerprint({"a": tensor}) != before
    stored[place] ^= 1 << bit
    assert fingerprint({"a": tensor}) == before


@pytest.mark.parametrize("change", [[1.0, -2.0, 1.0, 0.0], [1.0, 0.0, 0.0, -1.0], [1.0, -1.0, -1.0, 1.0]])
def test_changes_that_cancel_in_a_sum_show(change):
    before, after = torch.arange(4.0), torch.arange(4.0) + torch.tensor(change)
    assert fingerprint({"a": before}) != fingerprint({"a": after})
    assert fingerprint({"a": before.int()}) != fingerprint({"a": after.int()})


def test_elements_that_change_places_show_within_and_between_the_pieces_of_a_large_tensor():
    tensor = torch.zeros(600_001)
    tensor[0], tensor[600_000] = 1.0, 2.0
    before = fingerprint({"a": tensor})
    for one, other in ((0, 1), (0, 1 << 18), (0, 600_000)):
        swapped = tensor.clone()
        swapped[one], swapped[other] = tensor[other], tensor[one]
        assert fingerprint({"a": swapped}) != before, (one, other)


def test_strides_do_not_count_and_zero_has_a_sign():
    images = torch.rand(2, 3, 4, 4)
    assert fingerprint({"a": images}) == fingerprint({"a": images.to(memory_format=torch.channels_last)})
    assert fingerprint({"a": torch.tensor(0.0)}) != fingerprint({"a": torch.tensor(-0.0)})
    assert fingerprint({"a": torch.tensor(math.nan)}) == fingerprint({"a": torch.tensor(math.nan)})
    assert fingerprint({"a": torch.empty(0)}) == {"a": 0}


def test_a_fingerprint_moves_nobodys_generator():
    before = torch.get_rng_state()
    fingerprint({"a": torch.ones(3)})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_teacher_that_stays_is_let_through():
    teacher = tiny.TinyNet(3).eval()
    guard = TeacherGuard(teacher, title="student by st")
    teacher(torch.rand(4, 3, tiny.SIZE, tiny.SIZE))
    teacher.to(memory_format=torch.channels_last)
    guard.check()


@torch.no_grad()
def _weight(teacher):
    teacher.head.weight[0, 0] *= 1 + 2**-22


def _statistics(teacher):
    teacher.train()(torch.rand(4, 3, tiny.SIZE, tiny.SIZE))


def _replaced(teacher):
    teacher.head.bias = nn.Parameter(teacher.head.bias.detach() + 1)


def _grown(teacher):
    teacher.register_buffer("calls", torch.zeros(()), persistent=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_weight, ": head.weight"),
        (_statistics, "first.1.num_batches_tracked, first.1.running_mean, first.1.running_var, ... (9 in all)"),
        (_replaced, ": head.bias"),
        (_grown, ": calls"),
    ],
)
def test_a_teacher_that_changes_is_named_to_the_tensor(change, named):
    teacher = tiny.TinyNet(3).eval()
    guard = TeacherGuard(teacher, title="student by st")
    change(teacher)
    with pytest.raises(GuardError) as caught:
        guard.check()
    assert caught.value.message.endswith(named)
    assert caught.value.where == "student by st"
    assert caught.value.exit_code == 1


def moved(part):
    with torch.no_grad():
        next(parameter for parameter in part.parameters() if parameter.requires_grad).view(-1)[0] += 1.0


def learner():
    return Learner(tiny.TinyNet(3), layer="first", adapter=nn.Conv2d(6, 9, 1))


def test_one_parameter_that_moves_is_enough():
    some = learner()
    guard = LearnerGuard(some, title="student by fitnet (hint)")
    moved(some.student)
    moved(some.adapter)
    guard.check()


@pytest.mark.parametrize(("moves", "stays"), [("student", "adapter"), ("adapter", "student")])
def test_a_part_that_does_not_learn_is_named(moves, stays):
    some = learner()
    guard = LearnerGuard(some, title="student by fitnet (hint)")
    moved(getattr(some, moves))
    with pytest.raises(GuardError, match=f"the {stays} did not learn") as caught:
        guard.check()
    assert "learning_rate" in caught.value.hint


def test_statistics_that_move_are_not_learning():
    some = Learner(tiny.TinyNet(3))
    guard = LearnerGuard(some, title="student alone")
    some.train()(torch.rand(4, 3, tiny.SIZE, tiny.SIZE))
    with pytest.raises(GuardError, match="the student did not learn"):
        guard.check()


def test_what_was_frozen_when_the_stage_began_does_not_count():
    some = learner()
    some.student.requires_grad_(False)
    some.student.first.requires_grad_(True)
    guard = LearnerGuard(some, title="student by fitnet (hint)")
    some.student.requires_grad_(True)
    moved(some.adapter)
    with torch.no_grad():
        some.student.head.bias += 1
    with pytest.raises(GuardError, match="the student"):
        guard.check()


def test_an_adapter_without_parameters_need_not_learn():
    some = Learner(tiny.TinyNet(3), layer="first", adapter=nn.AvgPool2d(2))
    guard = LearnerGuard(some, title="student by fitnet (hint)")
    moved(some.student)
    guard.check()


@pytest.mark.parametrize("plan", ["st", "multi", "mbd-soft"])
def test_every_stage_of_a_real_training_keeps_the_rules(plan):
    layers = {"hint_layer": "second", "guided_layer": "second"} if plan == "multi" else {}
    config = resolve_distill({**tiny.RECIPE, "method": plan, "distill": layers}, {})
    place = Workplace(build_feed(config, tiny.dataset(), tiny.SIZE, COMPUTE), 0, COMPUTE)
    models = {"teacher": tiny.build_wide(3), "assistant": tiny.build(3), "student": tiny.build(3)}
    regimes = dict.fromkeys(("assistant", "student"), regime_of(config))
    job = Job(models, regimes, place, find_plan(plan), config.distill)
    for role in job.learners:
        for stage, own in job.stages(role):
            guards = [
                TeacherGuard(stage.guidance.model, title=stage.title),
                LearnerGuard(stage.learner, title=stage.title),
            ]
            fit(stage, place.feed, own, seed=0, compute=COMPUTE, observer=lambda event: None)
            for guard in guards:
                guard.check()


TERMS = st.dictionaries(
    st.sampled_from("abcde"), st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=5
)


@given(TERMS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_shares_add_up_to_one_and_follow_the_terms(terms):
    found = term_shares({"loss": sum(terms.values()), "seconds": 3.0, **{f"loss/{n}": v for n, v in terms.items()}})
    if not any(terms.values()):
        assert found == {}
        return
    assert set(found) == {f"share/{name}" for name in terms}
    assert sum(found.values()) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in found.values())
    assert max(found, key=found.get) in {
        f"share/{n}" for n, v in terms.items() if abs(v) == max(map(abs, terms.values()))
    }


def test_a_negative_term_has_its_share_and_a_term_alone_has_none():
    assert term_shares({"loss/labels": 3.0, "loss/teacher": -1.0}) == {"share/labels": 0.75, "share/teacher": 0.25}
    assert term_shares({"loss": 2.0, "loss/labels": 2.0}) == {}
    assert term_shares({}) == {}


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([17], "image 17"),
        ([17, 5], "images 17, 5"),
        ([17, 5, 300, 2], "images 17, 5, 300, ... (4 in all)"),
        (None, "4 images of a loader that does not tell their positions"),
    ],
)
def test_a_batch_is_described_by_the_positions_of_its_images(indices, text):
    count = 4 if indices is None else len(indices)
    positions = None if indices is None else torch.tensor(indices)
    assert describe_batch(Batch(torch.rand(count, 3, 2, 2), torch.zeros(count).long(), positions, 0)) == text
