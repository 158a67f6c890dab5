"""Archives, image folders and stored arrays made to leave their folder, to fill the memory or to hang."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shell
from distillab.data import cifar
from distillab.data.catalog import open_dataset
from distillab.data.cifar import CIFAR10
from distillab.data.decoding import decode_image
from distillab.data.download import RemoteFile
from distillab.errors import DataError

FOLDER = CIFAR10.folder
RECORD_BYTES = 3073
FILES = dict.fromkeys(CIFAR10.files, 1)

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **changes: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def good(**changed: bytes) -> list[Member]:
    """All members of CIFAR-10 in small: one image a file."""
    return [member(f"{FOLDER}/{name}", changed.get(name, bytes(RECORD_BYTES))) for name in FILES]


def packed(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1)


def declared(name: str, size: int) -> bytes:
    """An archive that ends with a member of which there is no more than the declaration."""
    info = tarfile.TarInfo(name)
    info.size = size
    return gzip.compress(gzip.decompress(packed(*good()))[: 1024 * 24] + info.tobuf(tarfile.GNU_FORMAT), 1)


def zipped() -> bytes:
    import zipfile

    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("../../home/canary", b"x")
    return raw.getvalue()


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a member above its folder": lambda: packed(*good(), member("../home/canary", b"x")),
    "a member above its folder, from within": lambda: packed(*good(), member(f"{FOLDER}/../../home/canary", b"x")),
    "a member with a path from the root": lambda: packed(*good(), member("/tmp/canary", b"x")),
    "a link to a password file": lambda: packed(*good(), member(f"{FOLDER}/a", **LINK)),
    "a link in the place of the images": lambda: packed(member(f"{FOLDER}/test_batch.bin", **LINK), *good()),
    "a hard link": lambda: packed(*good(), member("a", type=tarfile.LNKTYPE, linkname=f"{FOLDER}/test_batch.bin")),
    "a device": lambda: packed(*good(), member("a", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "a pipe": lambda: packed(*good(), member("a", type=tarfile.FIFOTYPE)),
    "a member of a terabyte": lambda: declared("readme.html", 1 << 40),
    "a batch of a terabyte": lambda: declared(f"{FOLDER}/test_batch.bin", 1 << 40),
    "a member of 64 MB that packs well": lambda: packed(*good(), member("readme.html", bytes(1 << 26))),
    "a batch twice": lambda: packed(*good(), *good()[-1:]),
    "a batch of half a record": lambda: packed(*good(**{"test_batch.bin": bytes(RECORD_BYTES // 2)})),
    "a label beyond the classes": lambda: packed(*good(**{"test_batch.bin": b"\xff" + bytes(RECORD_BYTES - 1)})),
    "no batches": lambda: packed(member("readme.html", b"hello")),
    "an archive in the archive": lambda: packed(member(f"{FOLDER}.tar.gz", packed(*good()))),
    "a zip archive": zipped,
    "text": lambda: b"<script>alert(1)</script>",
    "nothing": lambda: b"",
    "half an archive": lambda: (whole := packed(*good()))[: len(whole) // 2],
}


def stored(work: Path) -> list[Path]:
    return [path for path in work.parent.rglob("*") if path.suffix in (".npy", ".bin") or path.name == "manifest.json"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_strangers_archive_is_refused_unopened(
    name: str, refused: shell.Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / CIFAR10.file.name).write_bytes(ARCHIVES[name]())
    monkeypatch.setattr(tarfile, "open", None)
    error = refused("train", "--data", CIFAR10.file.name, "--output", "run", code=3)
    assert "bytes instead of" in error
    assert stored(work) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_the_right_hash_is_refused_by_what_it_holds(
    name: str, refused: shell.Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ARCHIVES[name]()
    file = RemoteFile(CIFAR10.file.url, len(content), hashlib.sha256(content).hexdigest())
    train = {name: FILES[name] for name in CIFAR10.train_files}
    small = dataclasses.replace(CIFAR10, file=file, train_files=train, test_files={"test_batch.bin": 1})
    monkeypatch.setattr(cifar, "CIFAR10", small)
    (work / CIFAR10.file.name).write_bytes(content)
    refused("train", "--data", CIFAR10.file.name, "--output", "run", code=3)
    assert stored(work) == []


def test_an_unpacked_archive_with_links_and_pipes_is_no_archive(refused: shell.Command, work: Path) -> None:
    (work / FOLDER).mkdir()
    for name in FILES:
        os.mkfifo(work / FOLDER / name)
    refused("train", "--data", FOLDER, "--output", "run", code=3)


# --- image folders -----------------------------------------------------------------------------------------------


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path, "PNG")


def photos(work: Path, *classes: str) -> Path:
    """A good folder of images."""
    for name in classes or ("cat", "dog"):
        for number in range(5):
            picture(work / "photos" / name / f"{number}.png", number)
    return work / "photos"


def png(width: int, height: int) -> bytes:
    """A PNG that declares its size and holds next to nothing of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a text that unpacks to 64 MB."""
    data = b"Comment\0\0" + zlib.compress(bytes(1 << 26))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = png(16, 16)
    return whole[:33] + chunk + whole[33:]


def postscript(canary: str) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n(%pipe%touch {canary}) (w) file\nshowpage\n".encode()


IMAGES: dict[str, Callable[[Path], object]] = {
    "60,000 x 60,000 pixels": lambda path: path.write_bytes(png(60_000, 60_000)),
    "2**31 pixels wide": lambda path: path.write_bytes(png(2**31 - 1, 1)),
    "no pixels": lambda path: path.write_bytes(png(0, 0)),
    "a text that unpacks to 64 MB": lambda path: path.write_bytes(text_bomb()),
    "PostScript, which another program would run": lambda path: path.write_bytes(postscript("canary")),
    "a text": lambda path: path.write_text("<script>alert(1)</script>"),
    "a picture of a kind that is not read": lambda path: Image.new("RGB", (16, 16)).save(path, "ICO"),
    "a pipe": os.mkfifo,
    "a link to an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link out of the folder": lambda path: path.symlink_to("/etc/passwd"),
    "a link to somebody's file": lambda path: path.symlink_to("../../../home/diary.txt"),
    "a link to a folder around it": lambda path: path.symlink_to("../.."),
    "a hole of 100 GB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**11),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image_is_refused(name: str, refused: shell.Command, work: Path) -> None:
    path = photos(work) / "cat" / "x.png"
    IMAGES[name](path)
    error = refused("train", "--data", "photos", "--image-size", "32", "--output", "run", code=3)
    assert "x.png" in error
    assert stored(work) == []
    with pytest.raises(DataError):
        decode_image(path, 8)


def test_a_picture_with_much_exif_is_read_without_a_word(work: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    exif[0x0112] = 99  # no such orientation
    Image.new("RGB", (16, 16)).save(work / "x.jpg", exif=exif)
    damaged = (work / "x.jpg").read_bytes().replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff", 1)
    (work / "y.jpg").write_bytes(damaged)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert decode_image(work / "x.jpg", 8).shape == (8, 8, 3)
    assert said == []


NAMES = (
    "<script>alert(1)</script>",
    "=cmd|'!A1",
    "a\x1b[31mb",
    "a\nb",
    "~",
    "-rf",
    "\u202egnp.exe",
    "x" * 200,
    os.fsdecode(b"\xff\xfe"),
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_class_of_any_name_stays_a_name(name: str, work: Path) -> None:
    folder = photos(work, "cat", name.replace("/", ":"))
    data = open_dataset(str(folder), data_dir="data", image_size=8)
    assert set(data.classes) == {"cat", name.replace("/", ":")}
    again = open_dataset(str(folder), data_dir="data", image_size=8)
    assert again.sha256 == data.sha256
    assert {path.parts[0] for path in (p.relative_to(work) for p in stored(work))} == {"data"}


@pytest.mark.parametrize("name", [*(name for name in NAMES if "/" not in name), "..a", "con:"], ids=ascii)
def test_a_folder_of_any_name_is_kept_where_images_are_kept(name: str, work: Path) -> None:
    photos(work).rename(work / name)
    open_dataset(str(work / name), data_dir="data", image_size=8)
    assert {path.relative_to(work).parts[:2] for path in stored(work)} == {("data", "image_folders")}


# --- arrays that were stored -------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def array_of(shape: str, kind: str = "'|u1'") -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}", bytes(64))


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1 << 20))
    return stream.getvalue()


ARRAYS = {
    "objects, which are pickled": pickled,
    "an archive of arrays": npz,
    "a shape of 10**15": lambda: array_of("(1000000000000000,)", "'<i8'"),
    "a negative shape": lambda: array_of("(-1,)"),
    "a shape that is code": lambda: array_of("__import__('os').mkdir('canary')"),
    "a structured type": lambda: array_of("(1,)", "[('a', '<i8'), ('b', '|u1')]"),
    "a head nested too deeply": lambda: npy("(" * 5000),
    "text": lambda: b"hello",
    "nothing": bytes,
}
MANIFESTS = {
    "nested too deeply": b"[" * 100_000,
    "no object": b"[1]",
    "no text": b"\xff\xfe",
    "no statistics": {"mean": None},
    "statistics that are words": {"mean": ["a", "b", "c"]},
    "statistics that are no numbers": {"std": [float("nan")] * 3},
    "statistics that divide by zero": {"std": [0, 0, 0]},
}


@pytest.fixture
def decoded(work: Path) -> Path:
    """Images that were decoded and stored before a stranger came by."""
    open_dataset(str(photos(work)), data_dir="data", image_size=8)
    (manifest,) = work.rglob("manifest.json")
    return manifest.parent


def opened(decoded: Path) -> tuple[str, tuple[float, ...]]:
    data = open_dataset("photos", data_dir="data", image_size=8)
    return data.sha256, (*data.mean, *data.std)


@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_stored_arrays_that_were_altered_are_made_again(file: str, name: str, decoded: Path, work: Path) -> None:
    before = opened(decoded)
    (decoded / file).unlink()
    (decoded / file).write_bytes(ARRAYS[name]())
    assert opened(decoded) == before
    assert not (work / "canary").exists()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_was_altered_is_made_again(name: str, decoded: Path) -> None:
    before, change = opened(decoded), MANIFESTS[name]
    path = decoded / "manifest.json"
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps({**json.loads(path.read_bytes()), **change}).encode()
    )
    assert opened(decoded) == before


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "manifest.json"])
def test_stored_files_that_became_pipes_are_made_again(file: str, decoded: Path) -> None:
    before = opened(decoded)
    (decoded / file).unlink()
    os.mkfifo(decoded / file)
    assert opened(decoded) == before


def test_a_stored_file_that_became_a_link_is_replaced_and_not_written_through(decoded: Path, work: Path) -> None:
    before, diary = opened(decoded), work.parent / "home" / "diary.txt"
    for file in ("images.npy", "labels.npy", "manifest.json"):
        (decoded / file).unlink()
        (decoded / file).symlink_to(diary)
    assert opened(decoded) == before
    assert diary.read_text() == "mine alone"
