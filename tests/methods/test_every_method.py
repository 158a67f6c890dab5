"""What holds of every method, whoever wrote it: found by name, given made-up outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillab.methods.base import method_class, method_names
from distillab.models.features import ModelOutput

CLASSES = 5
CASES = [(name, {}) for name in method_names()] + [
    ("merit_based", {"variant": "hard"}),
    ("merit_based", {"variant": "soft", "temperature": 3.0}),
    ("soft_target", {"distill_weight_start": 4.0, "temperature": 2.0}),
]
every_method = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[" ".join([name, *map(str, options.values())]) for name, options in CASES]
)
examples = settings(derandomize=True, max_examples=20, deadline=None)

sizes = st.integers(1, 9)
seeds = st.integers(0, 10_000)
mixed_labels = st.booleans()


def made_up(n, seed, *, mixed=False, scale=3.0, dtype=torch.float64):
    """Outputs of a student and a teacher, and labels: ({"student", "teacher"} -> ModelOutput, labels)."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, dtype=torch.float64, generator=source) * scale).to(dtype)

    outputs = {role: ModelOutput(draw(n, CLASSES), {"layer": draw(n, 3, 4, 4)}) for role in ("student", "teacher")}
    if mixed:
        return outputs, torch.rand(n, CLASSES, generator=source).softmax(dim=1)
    return outputs, torch.randint(CLASSES, (n,), generator=source)


def terms_of(name, options, outputs, labels, progress=0.3):
    found = method_class(name)
    method = found(found.Config(**options))
    teacher = outputs["teacher"] if method.needs_teacher else None
    return method.terms(outputs["student"], teacher, labels, torch.tensor(progress))


def tensors_of(output):
    return [output.logits, *output.features.values()]


@every_method
@examples
@given(n=sizes, seed=seeds, mixed=mixed_labels)
def test_terms_keep_the_sample_axis_and_are_not_negative(name, options, n, seed, mixed):
    outputs, labels = made_up(n, seed, mixed=mixed)
    terms = terms_of(name, options, outputs, labels)
    assert terms
    for term in terms.values():
        assert term.shape == (() if method_class(name).couples_samples else (n,))
        assert term.dtype == torch.float64
        assert (term >= -1e-12).all()


@every_method
@examples
@given(n=st.integers(2, 9), seed=seeds, mixed=mixed_labels)
def test_the_order_of_the_batch_does_not_matter(name, options, n, seed, mixed):
    outputs, labels = made_up(n, seed, mixed=mixed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = {
        role: ModelOutput(out.logits[order], {layer: f[order] for layer, f in out.features.items()})
        for role, out in outputs.items()
    }
    straight = terms_of(name, options, outputs, labels)
    for key, term in terms_of(name, options, shuffled, labels[order]).items():
        expected = straight[key] if term.ndim == 0 else straight[key][order]
        torch.testing.assert_close(term, expected, rtol=1e-9, atol=1e-9)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mixed", [False, True])
def test_large_numbers_stay_finite_in_every_type_and_so_do_gradients(name, options, dtype, mixed):
    outputs, labels = made_up(8, 0, mixed=mixed, scale=1.0)
    large = {
        role: ModelOutput((out.logits.sign() * 3e4).to(dtype), {k: (f * 50).to(dtype) for k, f in out.features.items()})
        for role, out in outputs.items()
    }
    student = [tensor.requires_grad_() for tensor in tensors_of(large["student"])]
    terms = terms_of(name, options, large, labels)
    for term in terms.values():
        assert term.dtype == torch.float32
        assert term.isfinite().all()
    sum(term.mean() for term in terms.values()).backward()
    gradients = [tensor.grad for tensor in student if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_method
@examples
@given(n=sizes, seed=seeds, mixed=mixed_labels)
def test_the_student_gets_a_gradient_and_the_teacher_none(name, options, n, seed, mixed):
    outputs, labels = made_up(n, seed, mixed=mixed)
    for output in outputs.values():
        for tensor in tensors_of(output):
            tensor.requires_grad_()
    before = [tensor.detach().clone() for tensor in tensors_of(outputs["teacher"])]
    sum(term.mean() for term in terms_of(name, options, outputs, labels).values()).backward()
    assert any(tensor.grad is not None for tensor in tensors_of(outputs["student"]))
    assert all(tensor.grad is None for tensor in tensors_of(outputs["teacher"]))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(outputs["teacher"]), strict=True))


@every_method
@examples
@given(n=st.integers(2, 9), seed=seeds, mixed=mixed_labels)
def test_a_batch_is_the_mean_of_its_samples(name, options, n, seed, mixed):
    if method_class(name).couples_samples:
        pytest.skip("its samples are compared with each other")
    outputs, labels = made_up(n, seed, mixed=mixed)
    alone = []
    for i in range(n):
        one = {
            role: ModelOutput(out.logits[i : i + 1], {k: f[i : i + 1] for k, f in out.features.items()})
            for role, out in outputs.items()
        }
        alone.append(sum(term.item() for term in terms_of(name, options, one, labels[i : i + 1]).values()))
    together = sum(term.mean() for term in terms_of(name, options, outputs, labels).values())
    assert together.item() == pytest.approx(sum(alone) / n, rel=1e-9, abs=1e-12)


@every_method
def test_a_step_against_the_gradient_lowers_the_loss(name, options):
    outputs, labels = made_up(8, 0)
    student = [tensor.requires_grad_() for tensor in tensors_of(outputs["student"])]
    before = sum(term.mean() for term in terms_of(name, options, outputs, labels).values())
    before.backward()
    with torch.no_grad():
        for tensor in student:
            if tensor.grad is not None:
                tensor -= 0.1 * tensor.grad
    assert sum(term.mean() for term in terms_of(name, options, outputs, labels).values()) < before
