"""Weight files made to run code, to fill the memory, to hang or to mislead: each is one clear error."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import hostile.weights as hostile
import shell
from distillab.errors import CheckpointError
from distillab.models.weight_files import read_weights
from distillab.models.weights import load_model

WEIGHT = "layer1.0.conv.weight"
DEEP = "[" * 100_000
F32 = "F32"

CODE = {
    **{f"a plain pickle of protocol {protocol}": hostile.plain(protocol) for protocol in range(6)},
    "code in the place of a tensor": hostile.saved(lambda canary: {"fc.weight": hostile.Payload(canary)}),
    "code beside the weights": hostile.saved(lambda canary: {"model": {}, "optimizer": hostile.Payload(canary)}),
    "code deep inside the weights": hostile.saved(hostile.nested_state),
    "code deep inside the weights, old format": hostile.saved(hostile.nested_state, zipped=False),
    "code in attributes of the dictionary": hostile.saved(hostile.with_attributes),
    "a whole module": hostile.saved(lambda canary: nn.Linear(2, 2)),
    "a class of one's own": hostile.saved(lambda canary: hostile.Subclass(w=torch.zeros(2))),
    "opcode REDUCE": hostile.in_archive(hostile.reduce_program),
    "opcode INST": hostile.in_archive(hostile.inst_program),
    "opcode OBJ": hostile.in_archive(hostile.obj_program),
    "opcode STACK_GLOBAL": hostile.in_archive(hostile.stack_global_program),
    "opcode EXT1": hostile.in_archive(hostile.extension_program),
    "opcode BUILD": hostile.in_archive(hostile.build_program),
    "opcode BINPERSID": hostile.in_archive(hostile.persistent_program),
    "a function of torch": hostile.in_archive(hostile.cuda_program),
    "a TorchScript program": hostile.script_archive,
    "a tar of torch 0.1": hostile.legacy_tar,
}

SIZES = {
    "a compressed tensor": hostile.compressed("data/0", 1 << 30),
    "a compressed pickle": hostile.compressed("data.pkl", 1 << 30),
    "one record under a thousand names": hostile.overlapping,
    "a tensor of 4 TB over one number": hostile.stretched((10**12,)),
    "a tensor of 4 TB over one number, old format": hostile.stretched((10**12,), zipped=False),
    "a last layer of 10**12 classes": hostile.stretched_classes(10**12),
    "a last layer of 10**8 classes": hostile.stretched_classes(10**8),
    "a storage of 2**60 numbers": hostile.declared_storage(2**60),
    "a storage of 2**33 numbers": hostile.declared_storage(2**33),
    "a storage of a negative size": hostile.declared_storage(-1),
    "a storage of 2**60 numbers, old format": hostile.legacy_storage(2**60),
    "a storage of 2**33 numbers, old format": hostile.legacy_storage(2**33),
    "a tensor before its storage": hostile.negative_offset,
    "a hole of 100 GB": hostile.sparse_file("x.pth", 10**11),
    "a hole of 100 GB as safetensors": hostile.sparse_file("x.safetensors", 10**11),
    "a header of 2**63 bytes": hostile.header(b"{}", length=2**63),
    "a header of 90 MB that is not there": hostile.header(b"{}", length=90_000_000),
    "metadata of 40 MB": hostile.with_metadata("[" + "0," * 20_000_000 + "0]"),
    "metadata nested too deeply": hostile.with_metadata(DEEP),
    "a .json nested too deeply": hostile.with_json(DEEP.encode()),
    "a .json that is a hole of 100 GB": hostile.with_json(10**11),
    "10**12 classes": hostile.described(num_classes=10**12),
    "10**30 classes": hostile.described(num_classes=10**30),
    "as many classes as numbers": hostile.described(num_classes=700_000),
    "images of 10**9 pixels": hostile.described(image_size=10**9),
    "a huge model of torchvision": hostile.described(model="torchvision:vit_h_14", image_size=224),
}

NO_WEIGHTS = {
    "a sparse tensor": hostile.spoilt(hostile.replace(WEIGHT, torch.eye(4).to_sparse())),
    "a tensor without numbers": hostile.spoilt(hostile.replace(WEIGHT, torch.empty(16, 3, 3, 3, device="meta"))),
    "complex weights": hostile.spoilt(hostile.cast(torch.complex64)),
    "whole numbers": hostile.spoilt(hostile.cast(torch.int32)),
    "truth values": hostile.spoilt(hostile.cast(torch.bool), ".safetensors"),
    "eight bits": hostile.spoilt(hostile.cast(torch.float8_e4m3fn), ".safetensors"),
    "a counter of broken numbers": hostile.spoilt(
        hostile.replace("layer1.0.bn.num_batches_tracked", torch.tensor(1.5)), ".safetensors"
    ),
    "a weight that is not a number": hostile.spoilt(hostile.fill(float("nan"))),
    "a weight that is infinite": hostile.spoilt(hostile.fill(float("inf")), ".safetensors"),
    "a name with a line break and an escape": hostile.spoilt(
        hostile.replace("\x1b[2J\nerror: none", torch.zeros(1)), ".safetensors"
    ),
    "a name of a million letters": hostile.spoilt(hostile.replace("w" * 10**6, torch.zeros(1)), ".safetensors"),
    "a name that is a pair": hostile.saved(lambda canary: {(1, "w" * 10**6): torch.zeros(1)}),
    "a name of a million letters, no tensor": hostile.saved(lambda canary: {"w" * 10**6: 3}),
    "offsets that overlap": hostile.entries(a=(F32, [4], [0, 16]), b=(F32, [4], [0, 16])),
    "offsets beyond the file": hostile.entries(a=(F32, [400], [0, 1600])),
    "offsets in reverse": hostile.entries(a=(F32, [4], [16, 0])),
    "an unknown type": hostile.entries(a=("Q128", [1], [0, 16])),
    "four bits": hostile.entries(a=("F4", [32], [0, 16])),
    "a shape whose product overflows": hostile.entries(a=(F32, [2**40, 2**40], [0, 16])),
    "a negative shape": hostile.entries(a=(F32, [-4], [0, 16])),
    "a header with one key twice": hostile.header(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
        bytes(36),
    ),
    "a header that is no UTF-8": hostile.header(b'{"\xff":1}'),
    "a header nested too deeply": hostile.header(DEEP.encode()),
    "metadata that are no object": hostile.with_metadata("[1]"),
    "a mean that is not a number": hostile.described(mean=[0.5, 0.5, "nan"]),
    "a deviation that is infinite": hostile.described(std=[1, 1, "inf"]),
    "fewer names than classes": hostile.described(classes=["cat"]),
    "more names than classes": hostile.described(classes=["cat", "dog", "<script>alert(1)</script>"]),
}

NO_FILES = {
    "a link to a password file": hostile.link("/etc/passwd"),
    "a link to an endless file": hostile.link("/dev/zero"),
    "a link to an endless file, as safetensors": hostile.link("/dev/zero", "x.safetensors"),
    "a link to itself": hostile.link("x.pth"),
    "a link to a terminal": hostile.link("/dev/tty"),
    "a pipe that nobody writes to": hostile.pipe("x.pth"),
    "a pipe as safetensors": hostile.pipe("x.safetensors"),
    "a folder called like a file": hostile.directory,
    "a result that leads out of its folder": hostile.run_folder(b'{"weights": "../../home/diary.txt"}'),
    "a result that leads to its parent": hostile.run_folder(b'{"weights": ".."}'),
    "a result that names nothing": hostile.run_folder(b'{"weights": "\\u0000"}'),
    "a result that is nested too deeply": hostile.run_folder(DEEP.encode()),
    "a run whose weights are a device": hostile.run_folder(b"{}", "/dev/zero"),
}

ALL = {**CODE, **SIZES, **NO_WEIGHTS, **NO_FILES}


@pytest.fixture
def picture(work: Path) -> str:
    Image.new("RGB", (32, 32)).save(work / "cat.png")
    return "cat.png"


def test_the_collection_is_large_and_its_payloads_work(canary: Path) -> None:
    assert len(ALL) >= 75
    pickle.loads(pickle.dumps(hostile.Payload(canary)))
    assert canary.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ALL)
def test_a_hostile_weight_file_is_refused(
    name: str, refused: shell.Command, work: Path, canary: Path, picture: str
) -> None:
    path = ALL[name](canary, work).relative_to(work)
    refused("evaluate", str(path), "--data", "digits", code=4)
    refused("predict", str(path), picture, "--output", "p.csv", code=4)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert caught.value.__cause__ is None or "weights_only" not in str(caught.value.__cause__)
    assert not canary.exists()


@pytest.mark.parametrize("name", CODE)
def test_a_file_that_holds_code_is_refused_even_where_code_is_allowed(
    name: str, refused: shell.Command, work: Path, canary: Path
) -> None:
    path = CODE[name](canary, work)
    refused("evaluate", str(path), "--data", "digits", "--allow-code", code=4)
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not canary.exists()


STUDENT = ("--data", "tiny:dataset", "--student", "tiny:build", "--image-size", "16", "--threads", "1")


@pytest.mark.parametrize(
    "name", ["opcode REDUCE", "a compressed tensor", "a weight that is not a number", "a pipe that nobody writes to"]
)
def test_a_hostile_teacher_is_refused_before_a_run_begins(
    name: str, refused: shell.Command, work: Path, canary: Path
) -> None:
    path = ALL[name](canary, work)
    refused("distill", *STUDENT, "--teacher", str(path), "--output", "run", "--training.epochs", "1", code=4)
    assert not canary.exists()


@pytest.mark.parametrize(
    "model",
    [
        "os:mkdir",
        "evil:build",
        "evil-module:build",
        "1evil:build",
        "évil:build",
        "evil:build ",
        "evil:",
        "../evil:build",
    ],
)
def test_code_that_a_weight_file_names_is_not_imported(
    model: str, refused: shell.Command, work: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("evil", "evil-module", "1evil", "évil"):
        (work / f"{module}.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(work)
    path = hostile.described(model=model)(canary, work)
    refused("evaluate", str(path), "--data", "digits", code=2)
    assert not canary.exists()


def test_code_of_an_odd_name_is_not_imported_even_where_code_is_allowed(
    refused: shell.Command, work: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "evil-module.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(work)
    path = hostile.described(model="evil-module:build")(canary, work)
    refused("evaluate", str(path), "--data", "digits", "--allow-code", code=2)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["a plain pickle of protocol 2", "a compressed tensor", "a pipe that nobody writes to"]
)
def test_the_installed_command_refuses_as_well(name: str, work: Path, canary: Path) -> None:
    path = ALL[name](canary, work)
    program = Path(sys.executable).with_name("distillab")
    done = subprocess.run(
        [program, "evaluate", path, "--data", "digits"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") <= 3
    assert not canary.exists()


def test_nothing_hostile_takes_memory(work: Path, canary: Path) -> None:
    files = []
    for number, (name, build) in enumerate(SIZES.items()):
        (work / str(number)).mkdir()
        files.append((name, str(build(canary, work / str(number)))))
    code = """
import json, resource, sys
from distillab.errors import DistillabError
from distillab.models.weights import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
grown = {}
for name, path in json.loads(sys.stdin.read()):
    before = peak()
    try:
        load_model(path)
    except DistillabError:
        grown[name] = peak() - before
print(json.dumps(grown))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(files), capture_output=True, text=True, timeout=100, check=True
    )
    grown = json.loads(done.stdout)
    assert grown.keys() == SIZES.keys()
    assert {name: mebibytes for name, mebibytes in grown.items() if mebibytes > 150} == {}
