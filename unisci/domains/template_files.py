"""The templates that a user names: nothing, files of crystals, a saved library, or crystals at hand.

Reading CIFs and reducing the cells takes minutes for ten thousands of them, so that what came out is kept in the cache
folder (see `prototypes.cached`) under a hash of what went in.
"""

from collections.abc import Sequence
from pathlib import Path

from unisci.domains.crystal import Crystal
from unisci.domains.crystal_files import read_crystals
from unisci.domains.prototypes import (
    Map,
    NamedLibrary,
    aflow_prototypes,
    cached,
    named_library,
    read_library,
    write_library,
)


def load_templates(source: str | Path | Sequence[Crystal] | None = None, map: Map = map) -> NamedLibrary:
    """source: None for AFLOW's prototypes; what `read_crystals` reads; a .npz of `save_templates`; or crystals, whose
    names are then "0", "1", ... map: reduces the crystals where they are new, such as the map of a process pool.

    What cannot be used is a row of rejects. Raises ValueError where nothing is left or the source is none of these.
    """
    if source is None:
        return aflow_prototypes()
    if isinstance(source, str | Path):
        path = Path(source)
        return _saved(path) if path.suffix.lower() == ".npz" else cached(_key(path), lambda: _parsed(path, map))
    crystals = list(source) if isinstance(source, Sequence) else [source]
    if wrong := [c for c in crystals if not isinstance(c, Crystal)]:
        raise ValueError(
            f"templates are a path or crystals, got a {type(wrong[0]).__name__}: see Crystal.from_structure"
        )
    key = repr([len(c) for c in crystals]).encode()
    key += b"".join(array.tobytes() for c in crystals for array in (c.numbers, c.fractional, c.lattice))
    entries = [(str(i), c) for i, c in enumerate(crystals)]
    return cached(b"crystals" + key, lambda: named_library(entries, "the sequence of crystals", map))


def save_templates(library: NamedLibrary, path: str | Path) -> None:
    """Write the templates, their names, space groups and rejects as .npz. Raises ValueError for another suffix."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"templates are saved as .npz, not as {path.name!r}")
    write_library(library, path)


def _saved(path: Path) -> NamedLibrary:
    try:
        return read_library(path)
    except Exception as error:  # of foreign bytes any error may come
        raise ValueError(f"{path} is no library that save_templates wrote: {error}") from error


def _parsed(path: Path, map: Map) -> NamedLibrary:
    found = read_crystals(path)
    entries = [*zip(found.rejects["name"], found.rejects["reason"], strict=True)]
    entries += zip(found.names, found.crystals, strict=True)
    return named_library(entries, str(path), map)


def _key(path: Path) -> bytes:
    """Of a file its name and bytes; of a folder its path and the names, sizes and times of its CIFs."""
    if path.is_file():
        return path.name.encode() + b"\0" + path.read_bytes()
    files = sorted(p for p in path.glob("*") if p.suffix.lower() == ".cif")
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return repr((str(path.resolve()), stats)).encode()
