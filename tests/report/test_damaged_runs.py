"""Runs whose files are damaged, missing or of a later version: named, and no more is lost than they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillab.errors import CheckpointError, StorageError
from distillab.report.collect import collect
from made_up_runs import write, write_comparison, write_run


@pytest.mark.parametrize("name", ["result.json", "config.toml", "env.json", "metrics.jsonl", "command.txt"])
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"{", b"[]", b'{"kind": "train"}', b"[" * 100_000, b"nothing = of\nours"],
    ids=["bytes", "cut", "list", "parts", "deep", "words"],
)
def test_a_damaged_file_is_one_clear_error(name: str, content: bytes, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "alone")
    (run / name).write_bytes(content)
    if name == "command.txt" and content != b"\xff\xfe":
        assert [one.name for one in collect([tmp_path]).variants] == ["alone"]  # any words may have been typed
        return
    with pytest.raises(CheckpointError) as caught:
        collect([tmp_path])
    assert caught.value.where == str(run / name)
    assert len(str(caught.value)) < 1000


def test_what_a_later_version_wrote_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "alone")
    whole = json.loads((run / "result.json").read_text())
    write(run / "result.json", json.dumps({**whole, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99") as caught:
        collect([run])
    assert caught.value.where == str(run / "result.json")
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8}})
    whole = json.loads((folder / "results.json").read_text())
    write(folder / "results.json", json.dumps({**whole, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99") as caught:
        collect([folder])
    assert caught.value.hint == "upgrade distillab"


@pytest.mark.parametrize("name", ["result.json", "env.json", "command.txt"])
def test_a_missing_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "alone")
    (run / name).unlink()
    with pytest.raises((CheckpointError, StorageError)) as caught:
        collect([run])
    assert str(run) in str(caught.value.where)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "high", None])
def test_numbers_that_cannot_be_are_refused(value: object, tmp_path: Path) -> None:
    write_run(tmp_path / "a", "alone", result={"test": {"top1": value}})
    with pytest.raises(CheckpointError, match=r"test\.top1"):
        collect([tmp_path])


def test_a_damaged_run_costs_no_more_than_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "teacher", "teacher")
    write_run(tmp_path / "alone", "alone")
    write_run(tmp_path / "st", "st")
    write(tmp_path / "st" / "result.json", "{")
    found = collect([tmp_path])
    assert [one.name for one in found.variants] == ["teacher", "alone"]
    (told,) = found.left_out
    assert told.startswith(f"{tmp_path / 'st' / 'result.json'}: damaged, or no file of a run: ")


def test_a_damaged_run_of_a_comparison_leaves_its_other_seeds(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8, "st": 0.9}})
    write(folder / "seed-1-0" / "st" / "env.json", "[]")
    found = collect([folder])
    seeds = {one.name: [run.result.seed for run in one.runs] for one in found.variants}
    assert seeds == {"teacher": [0], "alone": [0, 1], "st": [0]}
    (told,) = found.left_out
    assert told.startswith(str(folder / "seed-1-0" / "st" / "env.json"))


@pytest.mark.parametrize("name", ["../outside", "/etc", "seed-0/../../outside"])
def test_a_comparison_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "outside", "alone")
    folder = write_comparison(tmp_path / "table", {"": {"alone": 0.8}})
    rows = [{"table": "", "method": "alone", "run_dirs": [name], "num_teachers": 1}]
    write(folder / "results.json", json.dumps({"rows": rows}))
    with pytest.raises(CheckpointError, match="outside"):
        collect([folder])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "seed = " + "9" * 5000),
        ("result.json", None),
    ],
)
def test_numbers_beyond_all_measure_cost_no_more_than_their_run(name: str, content: str | None, tmp_path: Path) -> None:
    write_run(tmp_path / "alone", "alone")
    run = write_run(tmp_path / "st", "st", result={} if content else {"cost": {"parameters": 10**400}})
    if content:
        write(run / name, content)
    found = collect([tmp_path])
    assert [one.name for one in found.variants] == ["alone"]
    assert found.left_out[0].startswith(f"{run / name}: damaged")
