"""Run folders, checkpoints, comparisons and tables of logits made to write elsewhere, to hang or to mislead."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

import shell
import tiny
from distillab.config import resolve_train
from distillab.data.config import AugmentConfig
from distillab.guidance.cache import CacheKey, LogitsCache
from distillab.models.weight_files import write_safetensors
from distillab.run import run_one
from distillab.runtime.device import choose_compute
from hostile.conftest import tree

DEEP = b'{"a":' * 100_000
ENDLESS = "/dev/zero"
GOES_ON = ("resume", "run", "--allow-code")
LOOKS = ("verify", "run", "--allow-code")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch; it has one checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = resolve_train({**tiny.RECIPE, "checkpoint": {"minutes": 0.0, "keep": 99}}, {"output": folder})
    run_one(config, allow_code=True)
    for path in (*folder.glob("*.safetensors"), folder / "result.json", folder / "metrics.csv"):
        path.unlink()
    for place in (folder / "checkpoints").iterdir():
        if place.name != "checkpoint-5":
            shutil.rmtree(place)
    return folder


@pytest.fixture
def run(stopped: Path, work: Path) -> Path:
    """A copy in the working directory, as a stranger has sent it."""
    shutil.copytree(stopped, work / "run")
    return work / "run"


@pytest.fixture
def harmless(command: shell.Command, work: Path) -> Callable[..., shell.Outcome]:
    """Run words that write in `run` and nowhere else, and end in a result or in one clear error."""

    def go(*words: str) -> shell.Outcome:
        inside = str(work / "run")

        def outside() -> dict[str, bytes | str]:
            return {path: content for path, content in tree(work.parent).items() if not path.startswith(inside)}

        before = outside()
        outcome = command(*words)
        assert outside() == before
        text = outcome.out + outcome.err
        assert "internal error" not in text, text
        assert "Traceback" not in text
        assert all(c.isprintable() or c == "\n" for c in text), text
        if outcome.code:
            assert outcome.code in (2, 4, 5), text
            assert len(text) < 6000
        return outcome

    return go


def test_a_run_that_nobody_has_touched_goes_on_and_is_verified(harmless: shell.Command, run: Path) -> None:
    assert harmless(*LOOKS).code == 0
    outcome = harmless(*GOES_ON)
    assert outcome.code == 0
    assert "resuming after step 5" in outcome.err
    assert harmless(*LOOKS).code == 0


# --- links, pipes and holes ---------------------------------------------------------------------------------------


def linked(name: str, target: str = "../../home/diary.txt") -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


LINKS = {
    **{
        f"{name}, a link to somebody's file": linked(name)
        for name in ("log.txt", "metrics.jsonl", "timing.jsonl", ".lock", "config.toml", "env.json", "trackers.json")
    },
    "a result that is a link to an endless file": linked("result.json", ENDLESS),
    "half-written settings that are a link": linked(".tmp-x"),
    "checkpoints, a link to somebody's folder": linked("checkpoints", "../../home"),
    "a checkpoint that is a link to somebody's folder": linked("checkpoints/checkpoint-5", "../../../home"),
    "a half-written checkpoint that is a link": linked("checkpoints/.tmp-x", "../../../home"),
    "a tracker's folder that is a link": linked("tensorboard", "../../home"),
    "wandb's folder that is a link": linked("wandb", "../../home"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", LINKS)
def test_a_run_folder_with_a_link_in_it_is_not_written_to(
    name: str, harmless: shell.Command, run: Path, work: Path
) -> None:
    LINKS[name](run)
    before = tree(work)
    outcome = harmless(*GOES_ON)
    assert outcome.code == 4
    assert "this is a link" in outcome.err
    words = ("train", "--recipe", "run", "--resume", "auto", "--output", "run", "--allow-code")
    assert harmless(*words).code in (2, 4)
    harmless(*LOOKS)
    assert tree(work) == before


def filled(name: str, content: bytes | int | None) -> Callable[[Path], None]:
    """Put bytes, a hole of a size, or a pipe in the place of a file."""

    def change(run: Path) -> None:
        path = run / name
        path.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(path)
        elif isinstance(content, int):
            os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), content)
        else:
            path.write_bytes(content)

    return change


FILLINGS = {"nested too deeply": DEEP, "a hole of 100 GB": 10**11, "a pipe": None, "no text": b"\xff\x00", "empty": b""}
RECORDS = {
    f"{name}, {kind}": filled(name, content)
    for name in (
        *("result.json", "env.json", "group.json", "metrics.jsonl", "timing.jsonl", "trackers.json", "config.toml"),
        *("checkpoints/checkpoint-5/state.json", "checkpoints/checkpoint-5/manifest.json"),
    )
    for kind, content in FILLINGS.items()
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", RECORDS)
def test_a_run_folder_with_any_record_in_it_does_no_harm(name: str, harmless: shell.Command, run: Path) -> None:
    RECORDS[name](run)
    harmless(*LOOKS)
    outcome = harmless(*GOES_ON)
    if name.endswith("a pipe"):
        assert outcome.code == 4


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", FILLINGS)
def test_where_a_run_began_is_read_with_care_if_it_has_to_begin_again(
    kind: str, harmless: shell.Command, run: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    filled("env.json", FILLINGS[kind])(run)
    assert harmless(*GOES_ON).code == 4


# --- checkpoints whose hashes are right ---------------------------------------------------------------------------


def forge(place: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change state and manifest of a checkpoint, and make all hashes right again."""
    state = json.loads((place / "state.json").read_bytes())
    manifest = json.loads((place / "manifest.json").read_bytes())
    change(state, manifest)
    data = json.dumps(state).encode()
    (place / "state.json").write_bytes(data)
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("sha256")
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))


def of_state(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda state, manifest: state.update(changes)


def of_phase(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda state, manifest: state["phases"][0].update(changes)


def of_lane(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda state, manifest: state["phases"][0]["lanes"][0].update(changes)


def of_stage(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda state, manifest: state["phases"][0]["lanes"][0]["run"].update(changes)


def of_making(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda state, manifest: manifest["made_by"].update(changes)


ESCAPE = "\x1b[2J\x1b]0;x\x07<script>alert(1)</script>"
ERROR = {"message": ESCAPE, "where": None, "hint": None}
FORGERIES = {
    "no phases": of_state(phases=[]),
    "phases in a word": of_state(phases="student"),
    "a phase of another name": of_phase(name=ESCAPE),
    "a hundred thousand phases": of_state(phases=[{}] * 100_000),
    "seconds in a word": of_state(seconds="long"),
    "more seconds than there are": of_state(seconds=1e308),
    "no seconds": of_state(seconds=float("nan")),
    "an epoch that is far away": of_phase(epoch=10**18),
    "an epoch before the first": of_phase(epoch=-1),
    "a step beyond the epoch": of_phase(step=10**9),
    "no lanes": of_phase(lanes=[]),
    "lanes of numbers": of_phase(lanes=[3]),
    "a lane that has diverged with a message of escapes": of_lane(is_over=True, error=ERROR, run=None),
    "a lane with an error of other parts": of_lane(error={"os": "system"}),
    "a lane that is over without weights": of_lane(is_over=True, run=None),
    "reports that are none": of_lane(reports=[{"title": "x"}]),
    "reports of nothing": of_lane(reports=[None]),
    "a stage of another title": of_stage(title=ESCAPE),
    "epochs in a list": of_stage(epochs=[1]),
    "epochs beyond the last": of_stage(epochs=10**9),
    "epochs before the first": of_stage(epochs=-5),
    "a history of words": of_stage(history=["x"]),
    "a history with names of escapes": of_stage(history=[{ESCAPE: 1.0, "stage": "../../x"}]),
    "a history of a million epochs": of_stage(history=[{}] * 1_000_000),
    "weights in words": of_stage(learner="weights"),
    "weights of no name": of_stage(learner={}),
    "an optimizer of other parameters": of_stage(optimizer={"999": {}}),
    "an optimizer in words": of_stage(optimizer={"0": "fast"}),
    "sums of other terms": of_stage(tally={"names": ["x"] * 5, "scored": True, "tensors": {}}),
    "best weights that are none": of_stage(best={"epoch": 1, "validation": {}, "state": {}}),
    "threads without end": of_making(threads=10**9),
    "runs that are none": of_making(runs=7),
    "settings with escapes": of_making(runs=[{"optimizer": ESCAPE}]),
    "no numerics": of_making(numerics=None),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FORGERIES)
def test_a_checkpoint_that_was_written_on_purpose_does_no_harm(name: str, harmless: shell.Command, run: Path) -> None:
    forge(run / "checkpoints" / "checkpoint-5", FORGERIES[name])
    harmless(*LOOKS)
    harmless(*GOES_ON)
    harmless(*GOES_ON, "--force")


# --- groups and comparisons ---------------------------------------------------------------------------------------


def test_a_group_whose_run_is_a_link_to_another_folder_is_refused(
    command: shell.Command, run: Path, work: Path
) -> None:
    group = work / "group"
    group.mkdir()
    (group / "st").symlink_to(run)
    (group / "group.json").write_text('{"runs": ["st"]}')
    before = tree(work.parent)
    assert command("resume", "group", "--allow-code").code == 4
    assert tree(work.parent) == before


REQUESTS: dict[str, Callable[[Path], object]] = {
    **{kind: filled("comparison.json", content) for kind, content in FILLINGS.items()},
    "a link": linked("comparison.json"),
    "no object": filled("comparison.json", b"[1]"),
    "parts that are none": filled("comparison.json", b'{"comparison": 3, "recipe": [], "flags": "x"}'),
    "code": filled(
        "comparison.json",
        json.dumps({"comparison": {"methods": ["st"]}, "recipe": {"student": "evil:build"}, "flags": {}}).encode(),
    ),
    "methods that lead out of the folder": filled(
        "comparison.json", json.dumps({"comparison": {"methods": ["../../home/x"]}, "recipe": {}, "flags": {}}).encode()
    ),
    "settings nested too deeply": filled(
        "comparison.json",
        json.dumps(
            {"comparison": {}, "recipe": {"alone": {"a": {"b": {"c": {"d": {"e": {}}}}}}}, "flags": {}}
        ).encode(),
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_comparison_is_refused(
    name: str, harmless: shell.Command, work: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(work)
    (work / "run").mkdir()
    REQUESTS[name](work / "run")
    assert harmless("resume", "run").code in (2, 4)


def test_a_comparison_with_a_link_in_it_is_not_written_to(command: shell.Command, work: Path) -> None:
    (work / "tiny.toml").write_text(tomli_w.dumps(tiny.RECIPE))
    (work / "run" / "seed-0").mkdir(parents=True)
    (work / "run" / "comparison.json").write_text('{"comparison": {"methods": ["st"]}, "recipe": {}, "flags": {}}')
    (work / "run" / "seed-0" / "st").symlink_to("../../../home")
    before = tree(work.parent)
    outcome = command("resume", "run")
    assert (outcome.code, "this is a link" in outcome.err) == (4, True)
    assert tree(work.parent) == before


# --- tables of logits ---------------------------------------------------------------------------------------------

COMPUTE = choose_compute("cpu", "float32")
KEY = CacheKey("teacher", "data", "test", 4, 2, 8, COMPUTE, AugmentConfig(), 0)
TABLE = torch.arange(8.0).reshape(4, 2)


def table(path: Path, **metadata: Any) -> None:
    write_safetensors(path, {"logits": TABLE + 1}, {"key": KEY.parts, "view": 0, **metadata})


TABLES: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n."),
    "a hole of 100 GB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**11),
    "a header beyond the end": lambda path: path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to an endless file": lambda path: path.symlink_to(ENDLESS),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "the table of another view": lambda path: table(path, view=1),
    "the table of another teacher": lambda path: table(path, key={**KEY.parts, "teacher": "other"}),
    "a key nested too deeply": lambda path: table(path, key=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_of_logits_is_told_and_not_used(name: str, work: Path) -> None:
    home = work / "logits" / KEY.sha256
    home.mkdir(parents=True)
    TABLES[name](home / "view-0.safetensors")
    before = {path: content for path, content in tree(work.parent).items() if "logits" not in path}
    told: list[object] = []
    cache = LogitsCache(work / "logits", limit_bytes=1 << 30, observer=told.append)
    assert torch.equal(cache.recall(KEY, lambda: TABLE), TABLE)
    assert told
    assert {path: content for path, content in tree(work.parent).items() if "logits" not in path} == before


@pytest.mark.parametrize("name", [KEY.sha256, "0" * 64])
def test_a_cache_that_leads_elsewhere_is_not_written_to(name: str, work: Path) -> None:
    (work / "logits").mkdir()
    (work.parent / "home" / ".tmp-mine").write_text("mine alone")
    (work / "logits" / name).symlink_to("../../home")
    before = tree(work.parent)
    told: list[object] = []
    cache = LogitsCache(work / "logits", limit_bytes=1 << 30, observer=told.append)
    assert torch.equal(cache.recall(KEY, lambda: TABLE), TABLE)
    assert told
    assert {path: content for path, content in tree(work.parent).items() if not path.endswith(".lock")} == before
