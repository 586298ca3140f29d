"""Weights files: safetensors with a format mark, and the hash of what was written, in the header; JSON beside them."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

MOLECULES = "unisci-weights-1"  # the format mark of generators of molecular graphs


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a weights file atomically, the header's keys in order and with the hash of what follows it.

    The library writes keys as they come, so that the same weights would have another file hash each time.
    """
    data = save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["sha256"] = hashlib.sha256(data[end:]).hexdigest()
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    temporary.rename(path)


def form(path: Path) -> str | None:
    """The format mark of a weights file; None where it is damaged, foreign, or has none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, path.stat().st_size)))
        return header["__metadata__"]["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(path: Path, form: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a weights file. Raises ValueError where it is damaged, foreign or of another format."""
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a weights file: {error}") from error
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:end]).get("__metadata__", {})
    if metadata.get("format") != form:
        found = metadata.get("format", "no format mark")
        raise ValueError(f"{path} has {found}, this version reads {form}: use weights written by `unisci train`")
    if metadata.get("sha256") != hashlib.sha256(data[end:]).hexdigest():
        raise ValueError(f"{path} is damaged: its numbers are not those that were written; get the file again")
    return metadata, tensors


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_json(path: Path, value: dict) -> None:
    """Write atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)
