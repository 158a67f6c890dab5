from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from distillab.runtime.capture import CannotCaptureError, Capture

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """A result that holds tensors in several ways."""

    first: Tensor
    rest: dict[str, list[Tensor]]


def test_a_call_does_the_work_on_what_lies_in_the_inputs_then():
    given = torch.tensor([1.0, 2.0])
    capture = Capture(lambda: Pair(given * 2, {"sums": [given.sum()]}), device=CPU)
    given.copy_(torch.tensor([3.0, 4.0]))
    found = capture()
    assert found.first.tolist() == [6.0, 8.0]
    assert found.rest["sums"][0].item() == 7.0


def test_results_are_always_in_the_same_tensors():
    given = torch.ones(2)
    capture = Capture(lambda: given + 1, device=CPU)
    first = capture()
    given.fill_(5.0)
    assert capture() is first
    assert first.tolist() == [6.0, 6.0]


def test_recording_leaves_the_state_as_it_was_and_what_is_new_at_zero():
    model = nn.Linear(2, 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def work():
        optimizer.zero_grad()
        model(torch.ones(3, 2)).square().mean().backward()
        optimizer.step()

    def state():
        return [*model.parameters(), *(value["momentum_buffer"] for value in optimizer.state.values())]

    capture = Capture(work, device=CPU, state=state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(not value["momentum_buffer"].any() for value in optimizer.state.values())
    capture()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_work_that_fails_in_the_warm_up_fails_as_it_would_alone_and_leaves_the_state():
    counter = torch.zeros(())

    def work():
        counter.add_(1)
        raise ValueError("a fault of the work's own")

    with pytest.raises(ValueError, match="of the work's own"):
        Capture(work, device=CPU, state=lambda: [counter])
    assert counter.item() == 0.0


@pytest.mark.gpu
def test_on_a_gpu_a_replay_draws_the_random_numbers_that_a_call_would():
    device = torch.device("cuda")
    given = torch.ones(64, 64, device=device)

    def work():
        return nn.functional.dropout(given, 0.5) + nn.functional.dropout(given, 0.2)

    capture = Capture(work, device=device)
    for seed in (3, 4, 3):
        torch.cuda.manual_seed(seed)
        replayed = capture().clone()
        torch.cuda.manual_seed(seed)
        assert torch.equal(replayed, work())


@pytest.mark.gpu
def test_on_a_gpu_work_that_waits_for_the_device_cannot_be_recorded():
    given, counter = torch.ones(3, device="cuda"), torch.zeros((), device="cuda")

    def work():
        counter.add_(1)
        return nn.functional.dropout(given, 0.5) * given.sum().item()

    with pytest.raises(CannotCaptureError, match="it waits for the device"):
        Capture(work, device=given.device, state=lambda: [counter])
    assert counter.item() == 0.0
    assert torch.cuda.get_sync_debug_mode() == 0
    assert work().shape == (3,), "the generator still draws"


@pytest.mark.gpu
def test_on_a_gpu_a_recording_that_breaks_off_leaves_the_current_stream_as_it_was():
    given, stream = torch.ones(3, device="cuda"), torch.cuda.current_stream()

    def work():
        torch.cuda.synchronize()  # of which the rehearsal hears nothing
        return given + 1

    with pytest.raises(CannotCaptureError):
        Capture(work, device=given.device)
    assert torch.cuda.current_stream() == stream
    assert work().tolist() == [2.0, 2.0, 2.0]
    assert torch.rand(3, device="cuda").shape == (3,), "the generator still draws"
    assert Capture(lambda: given + 2, device=given.device)().tolist() == [3.0, 3.0, 3.0], "others can be recorded"


@pytest.mark.gpu
def test_on_a_gpu_another_thread_may_pin_memory_while_work_is_recorded():
    """As a DataLoader with `pin_memory` does."""
    given = torch.ones(3, device="cuda")
    with ThreadPoolExecutor(1) as pool:

        def work():
            pool.submit(lambda: torch.empty(2**20).pin_memory()).result()
            return given + 1

        capture = Capture(work, device=given.device)
    assert capture().tolist() == [2.0, 2.0, 2.0]
