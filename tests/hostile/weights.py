"""Weight files as an attacker would make them. Each builder takes the canary's path and a folder to write into."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distillab.models.catalog import build_model
from distillab.models.weight_files import write_pickle, write_safetensors

Build = Callable[[Path, Path], Path]

DESCRIPTION = {"model": "cnn16", "num_classes": 2, "mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 32}


def state(num_classes: int = 2) -> dict[str, torch.Tensor]:
    """Good weights of the smallest classic model."""
    return dict(build_model("cnn16", num_classes).state_dict())


class Payload:
    """Runs code when it is unpickled: makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.canary),))


class Subclass(OrderedDict):  # type: ignore[type-arg]
    """A state dict of one's own class, which a pickle names."""


# --- pickles -----------------------------------------------------------------------------------------------------


def saved(make: Callable[[Path], object], *, zipped: bool = True) -> Build:
    """A file of torch.save."""

    def build(canary: Path, folder: Path) -> Path:
        torch.save(make(canary), folder / "x.pth", _use_new_zipfile_serialization=zipped)
        return folder / "x.pth"

    return build


def plain(protocol: int) -> Build:
    """A pickle without anything of torch around it."""

    def build(canary: Path, folder: Path) -> Path:
        (folder / "x.pth").write_bytes(pickle.dumps({"fc.weight": Payload(canary)}, protocol))
        return folder / "x.pth"

    return build


def in_archive(program: Callable[[bytes], bytes]) -> Build:
    """A zip archive of torch.save whose pickle is written by hand; it gets the canary's path."""

    def build(canary: Path, folder: Path) -> Path:
        return rewritten(folder, lambda name, data: program(bytes(canary)) if name.endswith("data.pkl") else data)

    return build


def rewritten(
    folder: Path, change: Callable[[str, bytes], bytes], *, compression: int = zipfile.ZIP_STORED, content: Any = None
) -> Path:
    """What torch.save wrote, each record changed."""
    whole = io.BytesIO()
    torch.save({"w": torch.zeros(4)} if content is None else content, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / "x.pth", "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return folder / "x.pth"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def reduce_program(canary: bytes) -> bytes:
    return b"\x80\x02cos\nmkdir\n" + text(canary) + b"\x85R."


def inst_program(canary: bytes) -> bytes:
    return b"(" + b"S'" + canary + b"'\nios\nmkdir\n."


def obj_program(canary: bytes) -> bytes:
    return b"(cos\nmkdir\n" + text(canary) + b"o."


def stack_global_program(canary: bytes) -> bytes:
    return b"\x80\x04" + text(b"os") + text(b"mkdir") + b"\x93" + text(canary) + b"\x85R."


def extension_program(canary: bytes) -> bytes:
    return b"\x80\x02\x82\x01" + text(canary) + b"\x85R."


def build_program(canary: bytes) -> bytes:
    """BUILD with a state that would put attributes on an object of torch."""
    return b"\x80\x02ctorch\nload\n}" + text(b"__doc__") + text(canary) + b"sb."


def persistent_program(canary: bytes) -> bytes:
    """A persistent id that is no storage."""
    return b"\x80\x02" + text(b"file") + text(canary) + b"\x86Q."


def cuda_program(canary: bytes) -> bytes:
    """A function of torch that takes a path."""
    return b"\x80\x02ctorch.hub\nload_state_dict_from_url\n" + text(b"file://" + canary) + b"\x85R."


def nested_state(canary: Path) -> object:
    return {"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2), "fc.bias": [[{"deep": Payload(canary)}]]}}


def with_attributes(canary: Path) -> object:
    whole = OrderedDict(state())
    whole._metadata = {"": Payload(canary)}  # type: ignore[attr-defined]
    return whole


def script_archive(canary: Path, folder: Path) -> Path:
    """What tells a program from weights: a table of constants beside the pickle."""
    torch.save({"w": torch.zeros(4)}, folder / "x.pth")
    with zipfile.ZipFile(folder / "x.pth", "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{top}/constants.pkl", reduce_program(bytes(canary)))
        archive.writestr(f"{top}/code/__torch__.py", "def forward(self): ...")
    return folder / "x.pth"


def legacy_tar(canary: Path, folder: Path) -> Path:
    """The format of torch 0.1: a tar of pickles."""
    with tarfile.open(folder / "x.pth", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../home/canary"):
            content = pickle.dumps(Payload(canary), 2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "x.pth"


# --- sizes -------------------------------------------------------------------------------------------------------


def compressed(name_end: str, size: int) -> Build:
    """An archive one record of which is small on disk and large in memory."""

    def build(canary: Path, folder: Path) -> Path:
        def change(name: str, data: bytes) -> bytes:
            return bytes(size) if name.endswith(name_end) else data

        return rewritten(folder, change, compression=zipfile.ZIP_DEFLATED)

    return build


def overlapping(canary: Path, folder: Path) -> Path:
    """An archive whose directory names one large record a thousand times."""
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(1 << 20))
        large = archive.infolist()[1]
        for number in range(1, 1000):
            copy = zipfile.ZipInfo(f"x/data/{number}")
            copy.header_offset, copy.file_size, copy.compress_size = large.header_offset, 1 << 20, 1 << 20
            copy.CRC = large.CRC
            archive.filelist.append(copy)
    return path


def stretched(shape: tuple[int, ...], key: str = "w", *, zipped: bool = True) -> Build:
    """A tensor of any shape over a single number."""
    return saved(lambda canary: {key: torch.zeros(1).expand(shape)}, zipped=zipped)


def stretched_classes(num_classes: int) -> Build:
    """All weights of a classic model, for more classes than there are numbers in the file."""

    def make(canary: Path) -> object:
        number = torch.zeros(1)
        last = {"mlp.fc2.weight": number.expand(num_classes, 128), "mlp.fc2.bias": number.expand(num_classes)}
        return {**state(), **last}

    return saved(make)


def declared_storage(numel: int) -> Build:
    """An archive whose pickle says that a storage of four numbers has more."""

    def change(name: str, data: bytes) -> bytes:
        size = b"\x8a\x08" + struct.pack("<q", numel)
        return data.replace(b"K\x04", size) if name.endswith("data.pkl") else data

    return lambda canary, folder: rewritten(folder, change)


def negative_offset(canary: Path, folder: Path) -> Path:
    """A tensor that begins before its storage."""
    return rewritten(
        folder,
        lambda name, data: data.replace(b"QK\x00", b"QJ\xff\xff\xff\xff") if name.endswith("data.pkl") else data,
    )


def legacy_storage(numel: int) -> Build:
    """The format before zip archives: storages of any declared size, none of which follows."""

    def build(canary: Path, folder: Path) -> Path:
        whole = io.BytesIO()
        torch.save({"w": torch.zeros(4)}, whole, _use_new_zipfile_serialization=False)
        size = b"\x8a\x08" + struct.pack("<q", numel)
        (folder / "x.pth").write_bytes(whole.getvalue().replace(b"K\x04", size))
        return folder / "x.pth"

    return build


def sparse_file(name: str, size: int) -> Build:
    """A file of nothing but a hole: huge to read, small on disk."""

    def build(canary: Path, folder: Path) -> Path:
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
        return folder / name

    return build


# --- tensors that are no weights ---------------------------------------------------------------------------------


def spoilt(change: Callable[[dict[str, torch.Tensor]], None], suffix: str = ".pth") -> Build:
    """Good weights, changed, without metadata or with them."""

    def build(canary: Path, folder: Path) -> Path:
        tensors = state()
        change(tensors)
        if suffix == ".pth":
            torch.save(tensors, folder / "x.pth")
        else:
            write_safetensors(folder / "x.safetensors", tensors, DESCRIPTION)
        return folder / f"x{suffix}"

    return build


def cast(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layer1.0.conv.weight"] = tensors["layer1.0.conv.weight"].to(dtype)

    return change


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layer1.0.conv.weight"][0, 0, 0, 0] = value

    return change


def replace(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensor

    return change


# --- safetensors -------------------------------------------------------------------------------------------------


def header(text: bytes, data: bytes = b"", *, length: int | None = None) -> Build:
    """A safetensors file with a header of one's own."""

    def build(canary: Path, folder: Path) -> Path:
        size = len(text) if length is None else length
        (folder / "x.safetensors").write_bytes(struct.pack("<Q", size) + text + data)
        return folder / "x.safetensors"

    return build


def entries(data: bytes = bytes(16), **tensors: tuple[str, list[int], list[int]]) -> Build:
    """A safetensors file of declared tensors: type, shape, offsets."""
    keys = ("dtype", "shape", "data_offsets")
    text = json.dumps({name: dict(zip(keys, entry, strict=True)) for name, entry in tensors.items()})
    return header(text.encode(), data)


def described(**changes: Any) -> Build:
    """Good weights whose metadata, under a right hash, say something else."""

    def build(canary: Path, folder: Path) -> Path:
        write_safetensors(folder / "x.safetensors", state(), {**DESCRIPTION, **changes})
        return folder / "x.safetensors"

    return build


def with_metadata(text: str) -> Build:
    """Good weights with a metadata string of one's own."""

    def build(canary: Path, folder: Path) -> Path:
        import safetensors.torch

        safetensors.torch.save_file(state(), folder / "x.safetensors", {"distillab": text})
        return folder / "x.safetensors"

    return build


def with_json(content: bytes | int) -> Build:
    """Good weights in a `.pth`, and a `.json` of one's own beside it; a number is the size of one full of blanks."""

    def build(canary: Path, folder: Path) -> Path:
        write_pickle(folder / "x.pth", state(), DESCRIPTION)
        with (folder / "x.json").open("wb") as stream:
            stream.write(content if isinstance(content, bytes) else b"")
            if isinstance(content, int):
                stream.truncate(content)
        return folder / "x.pth"

    return build


# --- things that are no files ------------------------------------------------------------------------------------


def link(target: str, name: str = "x.pth") -> Build:
    def build(canary: Path, folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return build


def pipe(name: str) -> Build:
    def build(canary: Path, folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return build


def directory(canary: Path, folder: Path) -> Path:
    (folder / "x.pth").mkdir()
    return folder / "x.pth"


def run_folder(result: bytes, link_to: str | None = None) -> Build:
    """A run folder with a result of one's own."""

    def build(canary: Path, folder: Path) -> Path:
        run = folder / "run"
        run.mkdir()
        (run / "result.json").write_bytes(result)
        if link_to is not None:
            (run / "student.safetensors").symlink_to(link_to)
        return run

    return build
