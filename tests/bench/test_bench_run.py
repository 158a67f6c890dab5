"""Whole benchmarks of tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from distillab.bench.config import BenchConfig, Case
from distillab.bench.ours import OurLoop
from distillab.bench.run import run_bench
from distillab.bench.workload import noise
from distillab.errors import ConfigError
from distillab.guidance.live import LiveTeacher
from distillab.models.catalog import MODELS
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Note

TINY, WIDE = "tiny:build", "tiny:build_wide"
PAIR = f"{WIDE}-{TINY}"
QUICK = {"data": "tiny:dataset", "batch_size": 16, "rounds": 2, "seconds": 1.0}


@pytest.fixture(autouse=True)
def with_tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that take milliseconds, under names that a process without this fixture finds them by as well."""
    for name, builder in ((TINY, tiny.build), (WIDE, tiny.build_wide)):
        monkeypatch.setitem(MODELS, name, replace(MODELS["cnn16"], name=name, builder=builder))


def check_rows(rows: list[dict], work: str, method: str, paths: list[str]) -> None:
    assert [(row["work"], row["method"], row["path"]) for row in rows] == [(work, method, path) for path in paths]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["images_per_second"] / rows[0]["images_per_second"])
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
        assert row["rounds"] == 2
        assert row["warm_up_seconds"] > 0
        assert row["share_of_bound"] == pytest.approx(row["images_per_second"] / row["bound_images_per_second"])


def test_every_path_has_a_row_and_the_result_is_json(tmp_path: Path):
    notes = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    config = BenchConfig(
        work=(PAIR, TINY), method=("mbd-soft", "alone"), threads=1, profile=tmp_path / "trace.json", **QUICK
    )
    result = run_bench(config, observer=notes.append)
    check_rows(result["rows"][:3], PAIR, "mbd-soft", ["classic", "live", "cached"])
    check_rows(result["rows"][3:], TINY, "alone", ["classic", "live"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["classic_workers"] in (0, 2)
    assert result["threads"] == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert all(isinstance(event, Note) for event in notes)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_trace_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: object, steps: int, *, run_in: bool) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OurLoop, "seconds", fail)
    (tmp_path / "trace.json").write_text("older")
    with pytest.raises(RuntimeError):
        run_bench(BenchConfig(work=(TINY,), profile=tmp_path / "trace.json", **QUICK))
    assert (tmp_path / "trace.json").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_trace_has_the_suffix_of_what_it_is(tmp_path: Path):
    with pytest.raises(ConfigError, match="JSON"):
        run_bench(BenchConfig(work=(TINY,), profile=tmp_path / "trace.pt", **QUICK))


def test_a_batch_may_not_be_larger_than_the_data(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="more than the 72"):
        run_bench(BenchConfig(**{**QUICK, "batch_size": 73}, work=(TINY,)))


def test_a_cached_loop_asks_the_teacher_for_one_epoch_only(monkeypatch: pytest.MonkeyPatch):
    asked = []
    ask = LiveTeacher.__call__
    monkeypatch.setattr(LiveTeacher, "__call__", lambda self, batch: (asked.append(1), ask(self, batch))[1])
    case = Case(PAIR, "st", TINY, WIDE)
    loops = {
        cached: OurLoop(
            case, noise(48), choose_compute("cpu", "float32"), cached=cached, batch_size=16, steps_per_epoch=3
        )
        for cached in (True, False)
    }
    for cached, expected in ((True, 3), (False, 11)):
        asked.clear()
        loops[cached].seconds(10, run_in=True)
        assert len(asked) == expected
        loops[cached].close()
    assert loops[True].warm_up_steps == 4


def test_students_side_by_side_ask_their_teacher_once(monkeypatch: pytest.MonkeyPatch):
    asked = []
    ask = LiveTeacher.__call__
    monkeypatch.setattr(LiveTeacher, "__call__", lambda self, batch: (asked.append(1), ask(self, batch))[1])
    compute, case = choose_compute("cpu", "float32"), Case(PAIR, "st", TINY, WIDE)
    loop = OurLoop(case, noise(48), compute, cached=False, batch_size=16, steps_per_epoch=3, num_students=3)
    loop.seconds(4, run_in=False)
    loop.close()
    assert len(asked) == 4


def test_a_row_tells_its_students():
    result = run_bench(BenchConfig(work=(PAIR,), method=("st",), students=2, **QUICK))
    assert [row["students"] for row in result["rows"]] == [1, 2, 2]
    assert result["students"] == 2


@pytest.mark.gpu
@pytest.mark.parametrize("execution", ["eager", "captured"])
def test_a_gpu_is_measured_with_its_launches(execution: str):
    config = BenchConfig(work=(PAIR,), method=("st",), device="cuda", execution=execution, **QUICK)
    result = run_bench(config)
    check_rows(result["rows"], PAIR, "st", ["classic", "live", "cached"])
    assert result["device"] == "cuda"
    assert all(row["peak_memory_bytes"] > 0 for row in result["rows"])
    assert result["rates"]["launch_seconds"] > 0
