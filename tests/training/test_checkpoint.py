import hashlib
import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillab.errors import CheckpointError, StorageError
from distillab.runtime.events import silent
from distillab.training.checkpoint import FORMAT_VERSION, CheckpointDir, read_checkpoint

MADE_BY = {"numerics": 1, "threads": 2, "runs": [{"optimizer": {"learning_rate": 1e-05}}]}
FILES = ("ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]


def state(step):
    """What a small run would save, different at every step."""
    weights = torch.arange(24.0).reshape(2, 3, 2, 2) + step
    return {
        "seconds": 1.5,
        "phases": [
            {
                "name": "student",
                "epoch": step,
                "learner": {"weight": weights, "num_batches_tracked": torch.tensor(step)},
                "optimizer": {"0": {"momentum_buffer": weights / 3}},
                "ema": {"weight": weights / 7},
                "history": [{"loss": 0.1, "validation_loss": float("inf")}],
                "best": None,
            }
        ],
    }


def folder(tmp_path, *steps, keep=10, observer=silent):
    checkpoints = CheckpointDir(tmp_path / "checkpoints", keep=keep, observer=observer)
    for step in steps:
        checkpoints.save(step, state(step), MADE_BY)
    return checkpoints


def steps_of(checkpoints):
    return [int(place.name.removeprefix("checkpoint-")) for place in checkpoints.places()]


def same(one, other):
    """Equal to the last bit, NaN and the sign of zero included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def bits(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def is_good(checkpoint, step):
    return checkpoint.step == step and same(checkpoint.state, state(step)) and checkpoint.made_by == MADE_BY


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


def sealed(record):
    """A manifest whose own hash is right: somebody wrote it on purpose."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    return {**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def rewrite_manifest(place, change):
    record = json.loads((place / "manifest.json").read_text())
    change(record)
    (place / "manifest.json").write_text(json.dumps(sealed(record)))


def replace_file(place, name, data):
    """Put other bytes in the place of a file, sizes and hashes to match."""
    (place / name).write_bytes(data)
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_manifest(place, lambda record: record["files"].update({name: found}))


def test_what_was_saved_comes_back_to_the_last_bit(tmp_path):
    checkpoints = folder(tmp_path, 3)
    assert is_good(checkpoints.newest(), 3)
    assert checkpoints.newest().path == tmp_path / "checkpoints" / "checkpoint-3"


def test_a_checkpoint_is_plain_tensors_json_and_a_manifest(tmp_path):
    place = folder(tmp_path, 3).newest().path
    assert sorted(contents(place)) == sorted(FILES)
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert (manifest["step"], manifest["made_by"]) == (3, MADE_BY)
    for name, data in contents(place).items():
        if name != "manifest.json":
            assert manifest["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert sealed(manifest) == manifest


def test_a_state_without_tensors_needs_no_tensor_files(tmp_path):
    CheckpointDir(tmp_path, keep=1).save(1, {"phases": []}, {})
    assert sorted(contents(tmp_path / "checkpoint-1")) == ["manifest.json", "state.json"]
    assert read_checkpoint(tmp_path / "checkpoint-1").state == {"phases": []}


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_of_all_kinds_come_back_to_the_last_bit(tmp_path, data):
    shape = data.draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = data.draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    whole = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    form = data.draw(st.sampled_from(["contiguous", "transposed", "channels_last", "expanded", "parameter"]))
    if form == "transposed":
        whole = whole.transpose(0, -1) if whole.ndim > 1 else whole
    elif form == "channels_last" and whole.ndim == 4:
        whole = whole.to(memory_format=torch.channels_last)
    elif form == "expanded":
        whole = whole.expand(2, *whole.shape)
    elif form == "parameter" and dtype.is_floating_point:
        whole = torch.nn.Parameter(whole)
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    place = CheckpointDir(tmp_path / "c", keep=1).save(1, {"tensor": whole}, {})
    assert same(read_checkpoint(place).state["tensor"], whole)


def test_tensors_that_share_memory_come_back_as_tensors_of_their_own(tmp_path):
    base = torch.arange(6.0)
    place = CheckpointDir(tmp_path, keep=1).save(1, {"a": base, "b": [base, base[2:].view(2, 2)], "c": base[::2]}, {})
    found = read_checkpoint(place).state
    assert same(found, {"a": base, "b": [base, base[2:].view(2, 2)], "c": base[::2]})
    found["a"].zero_()
    assert same(found["b"][0], base)


def test_only_so_many_of_the_newest_stay(tmp_path):
    assert steps_of(folder(tmp_path, 1, 2, 3, 10, keep=2)) == [10, 3]


def test_none_goes_before_the_newer_one_is_verified(tmp_path, monkeypatch):
    checkpoints = folder(tmp_path, 1, keep=1)
    rename = Path.rename

    def spoil(self, target):
        (self / "state.json").write_bytes(b"{}")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", spoil)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.save(2, state(2), MADE_BY)
    assert is_good(checkpoints.newest(), 1)
    checkpoints.save(2, state(2), MADE_BY)  # takes the damaged one's place
    assert steps_of(checkpoints) == [2]
    assert is_good(checkpoints.newest(), 2)


def test_a_damaged_newest_one_is_told_and_the_one_before_is_used(tmp_path):
    notes = []
    checkpoints = folder(tmp_path, 1, 2, observer=notes.append)
    (tmp_path / "checkpoints" / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    assert is_good(checkpoints.newest(), 1)
    (note,) = notes
    assert "checkpoint-2 is not used, the one before is: damaged or cut short" in note.text


def test_what_is_saved_after_a_damaged_one_stays_and_the_damaged_one_goes(tmp_path):
    """The run goes on from an earlier step than the damaged one's: what it saves then is older by number only."""
    checkpoints = folder(tmp_path, 3, 10, keep=1)
    (checkpoints.path / "checkpoint-10" / "state.json").write_bytes(b"")
    checkpoints.save(4, state(4), MADE_BY)
    assert steps_of(checkpoints) == [4]
    assert is_good(checkpoints.newest(), 4)


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert CheckpointDir(tmp_path / "none", keep=1).newest() is None


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint-x", "checkpoint--1", "Checkpoint-1", "checkpoint-1.bak"])
def test_folders_of_other_names_are_not_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    assert CheckpointDir(tmp_path, keep=1).places() == []


def test_leftovers_of_killed_processes_are_never_read_and_go(tmp_path):
    checkpoints = folder(tmp_path, 1)
    shutil.copytree(checkpoints.path / "checkpoint-1", checkpoints.path / ".tmp-half")
    assert steps_of(checkpoints) == [1]
    checkpoints.tidy()
    assert [path.name for path in checkpoints.path.iterdir()] == ["checkpoint-1"]


def cut(name, share):
    def damage(place):
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[: int(len(data) * share)])

    return damage


def longer(name):
    return lambda place: (place / name).write_bytes((place / name).read_bytes() + b" ")


def zeroed(name):
    """A page that never reached the disk."""

    def damage(place):
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        (place / name).write_bytes(data)

    return damage


def missing(name):
    return lambda place: (place / name).unlink()


def linked(name):
    """The right bytes, but elsewhere."""

    def damage(place):
        (place / name).rename(place.parent.parent / name)
        (place / name).symlink_to(place.parent.parent / name)

    return damage


def queue(name):
    def damage(place):
        (place / name).unlink()
        os.mkfifo(place / name)

    return damage


def made_folder(name):
    def damage(place):
        (place / name).unlink()
        (place / name).mkdir()

    return damage


def swapped(place):
    (place / "ema.safetensors").rename(place / "kept")
    (place / "optimizer.safetensors").rename(place / "ema.safetensors")
    (place / "kept").rename(place / "optimizer.safetensors")


def anothers(name):
    """The file of the checkpoint before, of the same size."""
    return lambda place: shutil.copy(place.with_name("checkpoint-10") / name, place / name)


def renamed(place):
    shutil.rmtree(place)
    place.with_name("checkpoint-10").rename(place)


def manifest_with(**changes):
    return lambda place: rewrite_manifest(place, lambda record: record.update(changes))


def one_file_says(name, **changes):
    return lambda place: rewrite_manifest(
        place, lambda record: record["files"].update({name: record["files"].get("state.json") | changes})
    )


def holds(name, data):
    """Written on purpose: all hashes are right."""
    return lambda place: replace_file(place, name, data)


DAMAGES = {
    **{f"{name} cut to {share:.0%}": cut(name, share) for name in FILES for share in (0.0, 0.5, 0.99)},
    **{f"{name} with a byte more": longer(name) for name in FILES if name != "manifest.json"},
    **{f"{name} with zeros": zeroed(name) for name in FILES},
    **{f"{name} missing": missing(name) for name in FILES},
    **{f"{name} a link": linked(name) for name in FILES},
    **{f"{name} a queue": queue(name) for name in FILES},
    **{f"{name} a folder": made_folder(name) for name in FILES},
    "two files swapped": swapped,
    **{f"{name} of another checkpoint": anothers(name) for name in FILES if name != "ema.safetensors"},
    "the folder of another step": renamed,
    "empty": lambda place: [path.unlink() for path in place.iterdir()],
    "a step in words": manifest_with(step="12"),
    "no step": manifest_with(step=None),
    "no file listed": manifest_with(files={}),
    "files in a list": manifest_with(files=["state.json"]),
    "an unknown file": one_file_says("weights.pkl"),
    "a file elsewhere": one_file_says("../checkpoint-10/state.json"),
    "a size in words": one_file_says("state.json", bytes="many"),
    "a negative size": one_file_says("state.json", bytes=-1),
    "a huge size": one_file_says("state.json", bytes=1 << 60),
    "a file that is not described": manifest_with(files={"state.json": None}),
    "JSON nested deeply": holds("state.json", b'{"a":' * 100_000 + b"0" + b"}" * 100_000),
    "JSON that is no object": holds("state.json", b"[]"),
    "a number of many digits": holds("state.json", b'{"a": ' + b"9" * 10_000 + b"}"),
    "text that is not UTF-8": holds("state.json", b'{"a": "\xff\xfe"}'),
    "a tensor that is not there": holds("state.json", b'{"a": {"tensors": "nowhere"}}'),
    "a tensor of no name": holds("state.json", b'{"a": {"tensors": ["a"]}}'),
    "no tensors at all": holds("model.safetensors", b"\x00" * 16),
    "a header beyond the end": holds("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
    "a pickle": holds("model.safetensors", b"\x80\x04cposix\nsystem\n."),
}


def vast(place):
    """A file that takes no room on the disk, but would in memory."""
    path = place / "model.safetensors"
    os.truncate(path, 1 << 42)
    rewrite_manifest(place, lambda record: record["files"][path.name].update(bytes=1 << 42))


DAMAGES["a file larger than any memory"] = vast


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    checkpoints = folder(tmp_path, 10, 12)
    damage(checkpoints.path / "checkpoint-12")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(checkpoints.path / "checkpoint-12")
    assert "damaged or cut short" in caught.value.message
    assert len(str(caught.value)) < 1000
    assert caught.value.hint == "resume from the one before"


def test_a_newer_format_says_to_upgrade(tmp_path):
    checkpoints = folder(tmp_path, 1)
    rewrite_manifest(checkpoints.path / "checkpoint-1", lambda record: record.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match="written in format") as caught:
        read_checkpoint(checkpoints.path / "checkpoint-1")
    assert caught.value.hint == "upgrade distillab"


@settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.tuples(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7)))
def test_no_flipped_bit_goes_unnoticed(tmp_path, where):
    checkpoints = CheckpointDir(tmp_path / "checkpoints", keep=1)
    place = checkpoints.path / "checkpoint-12"
    if not place.exists():
        checkpoints.save(12, state(12), MADE_BY)
    name, position, bit = where
    whole = (place / name).read_bytes()
    flipped = bytearray(whole)
    flipped[int(position * len(whole))] ^= 1 << bit
    (place / name).write_bytes(flipped)
    try:
        with pytest.raises(CheckpointError):
            read_checkpoint(place)
        assert checkpoints.newest() is None
    finally:
        (place / name).write_bytes(whole)


def test_what_is_parsed_are_the_bytes_that_were_verified(tmp_path, monkeypatch):
    """Somebody changes a file between its verification and its use."""
    place = folder(tmp_path, 3).newest().path
    loads = json.loads

    def change_first(data, **more):
        found = loads(data, **more)
        if "files" in found:
            return found
        for path in place.glob("*.safetensors"):
            path.write_bytes(b"")
        return found

    monkeypatch.setattr(json, "loads", change_first)
    assert is_good(read_checkpoint(place), 3)
    assert (place / "model.safetensors").read_bytes() == b""


CALLS = [(os, "fsync"), (os, "open"), (os, "mkdir"), (Path, "open"), (Path, "rename"), (Path, "iterdir")]


@contextmanager
def refusing(monkeypatch, number):
    """The disk refuses the `number`-th call, counted from 0; gives how many there were."""
    count = [0]

    def refusing_once(real):
        def call(*args, **more):
            count[0] += 1
            if count[0] - 1 == number:
                raise OSError(28, "No space left on device")
            return real(*args, **more)

        return call

    with monkeypatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, refusing_once(getattr(owner, name)))
        yield count


def test_wherever_the_disk_refuses_nothing_is_lost(tmp_path, monkeypatch):
    checkpoints = folder(tmp_path / "counted", 1, keep=1)
    with refusing(monkeypatch, -1) as count:
        checkpoints.save(2, state(2), MADE_BY)
    refused = 0
    for number in range(count[0]):
        checkpoints = folder(tmp_path / str(number), 1, keep=1)
        with refusing(monkeypatch, number):
            try:
                checkpoints.save(2, state(2), MADE_BY)
            except (StorageError, CheckpointError):  # the second where it could not be read back
                refused += 1
            else:  # a leftover could not be removed: the next one who saves does
                assert checkpoints.newest().step == 2, number
        found = checkpoints.newest()
        assert is_good(found, found.step), number
        checkpoints.save(3, state(3), MADE_BY)
        assert [path.name for path in checkpoints.path.iterdir()] == ["checkpoint-3"]
    assert refused > 15


@pytest.mark.parametrize("limit", [0, 1, 200, 500])
def test_a_file_that_the_system_cuts_short_is_never_a_checkpoint(tmp_path, limit):
    checkpoints = folder(tmp_path, 1, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError) as caught:
            checkpoints.save(2, state(2), MADE_BY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.exit_code == 4
    assert [path.name for path in checkpoints.path.iterdir()] == ["checkpoint-1"]
    assert is_good(checkpoints.newest(), 1)


def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(StorageError, match="a file, not a folder"):
        CheckpointDir(tmp_path / "checkpoints", keep=1).newest()
