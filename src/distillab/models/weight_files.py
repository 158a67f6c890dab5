"""Weight files as tensors and metadata: written whole, verified when read, never able to run code.

The only file that calls torch.load, and always with weights_only=True.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from distillab.errors import CheckpointError
from distillab.runtime.files import check_format, json_object, read_json_object, replacing, write_text

FORMAT_VERSION = 1

# The one key of the safetensors header: the library writes several in random order.
METADATA_KEY = "distillab"

_ZIP_START = b"PK\x03\x04"
_BLOCK_BYTES = 1 << 20


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and one JSON string of metadata, whole or not at all.

    `format_version` and `sha256` are added to the metadata; the latter is the hash of the metadata and of every
    tensor's name, type, shape and bytes.

    Args:
        path: Where; an older file is replaced.
        tensors: Contiguous ones on the CPU that share no memory.
        metadata: JSON values only.

    Raises:
        StorageError: The disk refuses.
    """
    import safetensors.torch

    record = _stamped(metadata, _tensor_chunks(tensors))
    # In memory first: the library's own writing reports a full disk as an error of its own.
    data = safetensors.torch.save(dict(tensors), {METADATA_KEY: json.dumps(record, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_pickle(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a plain state dict with torch.save, and its metadata as a `.json` beside it.

    Each is written whole or not at all. `sha256` in the `.json` is the hash of both, so that a pair that does not
    belong together is refused.

    Args:
        path: Of the `.pth`; an older file is replaced.
        tensors: On the CPU.
        metadata: JSON values only.

    Raises:
        StorageError: The disk refuses.
    """
    # In memory first: saving to a path would put the temporary file's random name into the archive.
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    record = _stamped(metadata, [buffer.getbuffer()])
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    write_text(path.with_suffix(".json"), json.dumps(record, sort_keys=True, indent=2) + "\n")


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a weight file, verified where it carries a hash.

    Args:
        path: `.safetensors`, or a `.pth`, `.pt` or `.bin` that holds a state dict: plain, or under "state_dict",
            "model_state_dict" or "model"; with or without the prefixes of DataParallel and torch.compile.

    Returns:
        Name -> tensor on the CPU; the metadata, of a `.pth` those in the `.json` beside it; {} where there are none.

    Raises:
        CheckpointError: Missing, unreadable, damaged, of a newer format, of another kind, a pickle that holds
            anything but tensors, or tensors that are larger than what the file holds of them.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".pth": _read_pickle, ".pt": _read_pickle, ".bin": _read_pickle}
    if not path.exists():
        raise CheckpointError("no such weight file or run folder", where=str(path), hint="check the path")
    if path.is_dir():
        raise CheckpointError("this is a folder, not a weight file", where=str(path), hint="name a file in it")
    if not path.is_file():
        raise CheckpointError("neither a file nor a folder", where=str(path), hint="name a weight file")
    if path.suffix not in readers:
        raise CheckpointError(
            f"no weight file: its name ends in '{path.suffix}'",
            where=str(path),
            hint="known: " + ", ".join(readers),
        )
    try:
        tensors, metadata = readers[path.suffix](path)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint="check the file's permissions"
        ) from error
    if not tensors:
        raise CheckpointError("no weights in this file", where=str(path), hint="save model.state_dict() in it")
    return tensors, metadata


def shown(name: str) -> str:
    """A tensor's name as messages show it: cut where it is longer than a name is."""
    return name if len(name) <= 80 else name[:77] + "..."


def digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of metadata (`sha256` in it aside) and of every tensor's name, type, shape and bytes.

    Args:
        metadata: JSON values only.
        tensors: On the CPU, in any memory format.

    Returns:
        64 hexadecimal digits.
    """
    return _digest(metadata, _tensor_chunks(tensors))


def _digest(metadata: Mapping[str, Any], chunks: Iterable[bytes | memoryview]) -> str:
    hashed = {key: value for key, value in metadata.items() if key != "sha256"}
    total = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def _tensor_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _stamped(metadata: Mapping[str, Any], chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    # Through JSON once, so that what is hashed now is what will be read.
    record: dict[str, Any] = json.loads(json.dumps({**metadata, "format_version": FORMAT_VERSION}, allow_nan=False))
    return {**record, "sha256": _digest(record, chunks)}


def _verify(path: Path, metadata: Mapping[str, Any], chunks: Iterable[bytes | memoryview]) -> None:
    if metadata.get("sha256") == _digest(metadata, chunks):
        return
    check_format(metadata, FORMAT_VERSION, path)
    raise _damaged(path, "its SHA-256 is not the recorded one")


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"damaged, cut short, or no weight file: {reason}", where=str(path), hint="copy it again, or train again"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            header: dict[str, str] = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error
    if METADATA_KEY in header:
        metadata = json_object(header[METADATA_KEY], path)
        _verify(path, metadata, _tensor_chunks(tensors))
        return tensors, metadata
    # A bit flipped in the key itself must not turn a file of ours into one that carries no hash.
    if any('"sha256"' in text for text in header.values()):
        raise _damaged(path, "its metadata has lost its name")
    return tensors, {}


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    beside = path.with_suffix(".json")
    with path.open("rb") as stream:
        if beside.is_file():
            record = read_json_object(beside)
            # What another tool wrote under this name has neither.
            if "sha256" in record or "format_version" in record:
                _verify(path, record, iter(lambda: stream.read(_BLOCK_BYTES), b""))
                metadata = record
        _check_archive(stream, path)
        tensors = _state_dict_in(_unpickled(stream, path), path)
    _check_sizes(tensors, path)
    return tensors, metadata


def _unpickled(stream: BinaryIO, path: Path) -> object:
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Warnings about odd files: every one of them is an error below, and said there.
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    # None has a cause: torch's texts explain how to run the file's code all the same.
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise _not_tensors(path, "Python objects, which could run code") from None
        raise CheckpointError(
            "damaged, or a pickle of other things than tensors, which is not opened",
            where=str(path),
            hint="copy it again; where it was made: torch.save(model.state_dict(), path)",
        ) from None
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise _damaged(path, f"torch cannot read it ({type(error).__name__})") from None


def _check_archive(stream: BinaryIO, path: Path) -> None:
    """Refuse a zip archive that torch.save does not write: unpacked, it could be of any size."""
    stream.seek(0)
    if stream.read(len(_ZIP_START)) != _ZIP_START:
        return  # of before torch 1.6: a pickle, and bytes behind it
    try:
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
    except Exception as error:  # as above
        raise _damaged(path, "its archive cannot be read") from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise _not_tensors(path, "a TorchScript program")
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > path.stat().st_size:
        raise _damaged(path, "its records are larger than the file")


def _check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors whose numbers do not stand in the file, one by one: a few bytes could declare any shape."""
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise _not_tensors(path, f"a tensor of an unusual kind under '{shown(name)}'")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise _damaged(path, f"'{shown(name)}' is larger than its data")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > path.stat().st_size:
        raise _damaged(path, "its tensors are larger than the file")


def _state_dict_in(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise _not_tensors(path, f"a {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            key = f"'{shown(name)}'" if isinstance(name, str) else f"a {type(name).__name__} as a name"
            raise _not_tensors(path, f"a {type(value).__name__} under {key}")
        tensors[name] = value
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _not_tensors(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"holds {found}, where a state dict holds tensors by name",
        where=str(path),
        hint="where it was made: torch.save(model.state_dict(), path)",
    )
