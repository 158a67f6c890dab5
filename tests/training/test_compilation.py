import functools

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

import tiny
from distillab.models.plain_cnn import cnn12, cnn16
from distillab.runtime.events import Note, silent
from distillab.runtime.reproducibility import seeded
from distillab.training.compilation import Compilation, repeated_blocks


def is_compiled(model: nn.Module) -> bool:
    """Whether its blocks are to be compiled when they run next: nothing is compiled before."""
    found = {block._compiled_call_impl is not None for block in repeated_blocks(model)}
    assert len(found) == 1
    return found.pop()


def test_models_are_compiled_for_as_long_as_they_are_wanted():
    teacher, first, second = cnn12(3), cnn16(3), cnn16(3)
    with Compilation(silent) as compilation:
        compilation.keep({teacher: (), first: (), second: ()})
        blocks = [block._compiled_call_impl for block in repeated_blocks(teacher)]
        compilation.keep({second: (), teacher: ()})
        assert [is_compiled(model) for model in (teacher, first, second)] == [True, False, True]
        assert all(
            block._compiled_call_impl is known for block, known in zip(repeated_blocks(teacher), blocks, strict=True)
        )
        compilation.release(second)
        assert not is_compiled(second)
        with compilation.paused(teacher), compilation.paused(first):
            assert not is_compiled(teacher)
        assert is_compiled(teacher)
    assert not is_compiled(teacher)


def test_settings_of_the_compiler_hold_to_the_end_and_are_put_back():
    def settings():
        return torch._dynamo.config.recompile_limit, torch._inductor.config.fallback_random

    before = settings()
    first, second = cnn16(3), cnn16(3)
    with Compilation(silent) as compilation:
        for models in ((first,), (first, second), (second,)):  # the first to come is the first to go
            compilation.keep(dict.fromkeys(models, ()))
            assert settings() == (64, True) != before
    assert settings() == before


def test_models_that_are_read_by_hooks_are_left_as_they_are():
    chain, foreign, notes = cnn16(3), tiny.build(3), []
    with Compilation(notes.append) as compilation:
        compilation.keep({chain: ["layer2"], foreign: []})
        assert is_compiled(chain)
        assert is_compiled(foreign)
        for _ in range(2):
            compilation.keep({chain: ["layer2", "layer3.1"], foreign: ["second"]})
            assert not is_compiled(chain)
            assert not is_compiled(foreign)
        compilation.keep({chain: ["pool2"]})
        assert is_compiled(chain)
    assert [note.text for note in notes if isinstance(note, Note)] == [
        "PlainCNN is not compiled: its layers are read by hooks",
        "TinyNet is not compiled: its layers are read by hooks",
    ]


def test_blocks_of_torchs_own_layers_reach_the_compiler(monkeypatch):
    """Torch 2.11 runs an `nn.Sequential` as it is, without a word, where `Module.compile` is called on it."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model, images = cnn16(3).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad(), Compilation(silent) as compilation:
        expected = model(images)
        compilation.keep({model: ()})
        assert torch.equal(model(images), expected)
    assert len(graphs) == 8, "one for the first block of each of the four stages, one for the three that follow it"


@pytest.mark.filterwarnings("default")  # the compiler looks at .grad of tensors that have none, and warns of it
@pytest.mark.slow
def test_compiled_blocks_go_the_same_way_to_a_tolerance():
    """In float64: in float32 an untrained deep network with BatchNorm makes percents of rounding in four steps."""
    images, labels = torch.rand(16, 3, 32, 32, dtype=torch.float64), torch.randint(0, 3, (16,))
    found = []
    for compiles in (False, True):
        with seeded(0, "cnn"):
            model = cnn16(3).double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        with Compilation(silent) as compilation:
            if compiles:
                compilation.keep({model: ()})
            for _ in range(4):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert all(module._compiled_call_impl is None for module in model.modules())
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
