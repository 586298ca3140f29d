"""Libraries of templates with names, a cache of them on disk, and the one that is always there: AFLOW's prototypes.

Prototypes: The AFLOW Library of Crystallographic Prototypes (arXiv 1607.02532), as pymatgen carries it: one ideal
crystal for each of 288 structure types, from copper to clathrates.
"""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from unisci.domains.crystal import MAX_SITES, Crystal, CrystalError
from unisci.domains.symmetry import spacegroup
from unisci.domains.templates import TemplateLibrary

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 1  # of the files; another one is not read
ARRAYS = ("numbers", "fractional", "offsets", "lattice", "groups")
Map = Callable[[Callable, Iterable], Iterable]  # as the built-in map, such as the one of a process pool
Named = tuple[str, Crystal | str]  # or, in place of the crystal, why there is none


@dataclass(frozen=True, eq=False)
class NamedLibrary:
    """library: of M templates; names (M,): what to call each; rejects: a row ("name", "reason") for each left out."""

    library: TemplateLibrary
    names: tuple[str, ...]
    rejects: "DataFrame"

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: np.ndarray) -> "NamedLibrary":
        """These rows (indices or a mask). Raises ValueError where there are none."""
        names = tuple(self.names[r] for r in np.arange(len(self))[rows])
        return NamedLibrary(self.library.select(rows), names, self.rejects)


def aflow_prototypes() -> NamedLibrary:
    """The prototypes of at most MAX_SITES sites, with names such as "HgS Cinnabar (B9, AB_hP6_154_a_b)".

    Raises RuntimeError where the installed pymatgen carries none.
    """
    folders = find_spec("pymatgen.analysis").submodule_search_locations or ()
    path = next((p for folder in folders for p in sorted(Path(folder).rglob("aflow_prototypes.json*"))), None)
    if path is None:
        raise RuntimeError("pymatgen carries no aflow_prototypes.json: install another version, or name your templates")
    data = path.read_bytes()
    return cached(data, lambda: named_library(_prototypes(data), "AFLOW's prototypes"))


def _prototypes(data: bytes) -> Iterator[Named]:
    from pymatgen.core import Structure

    for entry in json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data):
        structure = Structure.from_dict(entry["snl"])
        mineral, symbol, label = (_plain(entry["tags"][k]) for k in ("mineral", "strukturbericht", "aflow"))
        title = " ".join(filter(None, (structure.composition.reduced_formula, mineral)))
        name = f"{title} ({', '.join(filter(None, (symbol, label)))})"
        try:
            yield name, Crystal.from_structure(structure)
        except CrystalError as error:
            yield name, str(error)


def _plain(tag: str) -> str:
    """A tag without its TeX; "" for none."""
    return "" if tag == "None" else re.sub(r'[\\${}"]', "", re.sub(r"\\'\{(.)\}", r"\1", tag)).strip()


def named_library(entries: Iterable[Named], source: str, map: Map = map) -> NamedLibrary:
    """Of crystals as given: each is reduced, and its space group found, by `map`.

    Raises ValueError that names the source, and the first reasons, where none is left.
    """
    from pandas import DataFrame

    names, crystals = [], []
    rejects = []
    for name, crystal in entries:
        if isinstance(crystal, str):
            rejects.append((name, crystal))
        else:
            names.append(name)
            crystals.append(crystal)
    answers = list(map(_prepare, crystals))
    rejects += [(name, a) for name, a in zip(names, answers, strict=True) if isinstance(a, str)]
    kept = [(name, *a) for name, a in zip(names, answers, strict=True) if not isinstance(a, str)]
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejects[:3])
        raise ValueError(
            f"{source}: " + (f"none of {len(rejects)} crystals is left, {reasons}" if rejects else "empty")
        )
    names, crystals, groups = zip(*kept, strict=True)
    library = TemplateLibrary.from_crystals(crystals)
    library = TemplateLibrary(*(getattr(library, k) for k in ARRAYS[:-1]), np.array(groups))
    return NamedLibrary(library, names, DataFrame(rejects, columns=["name", "reason"]))


def _prepare(crystal: Crystal) -> tuple[Crystal, int] | str:
    """The reduced crystal and its space group, or why there is none."""
    try:
        reduced = crystal.reduced()
    except ValueError as error:  # LinAlgError too
        return f"cannot be reduced: {error}"
    if len(reduced) > MAX_SITES:
        return f"{len(reduced)} sites in the primitive cell, the limit is {MAX_SITES}"
    return reduced, spacegroup(reduced)


def cached(key: bytes, build: Callable[[], NamedLibrary]) -> NamedLibrary:
    """What was built of the key before, read from the cache folder; built, and stored there if it can be, else.

    The folder: $UNISCI_CACHE, or unisci in $XDG_CACHE_HOME, or ~/.cache/unisci.
    """
    name = f"templates-{FORMAT}-{hashlib.sha256(key).hexdigest()}.npz"
    with suppress(Exception):  # none yet, or damaged: of damaged bytes any error may come
        return read_library(cache_folder() / name)
    built = build()
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_library(built, cache_folder() / name)
    return built


def cache_folder() -> Path:
    """Of this user; it may not exist yet. Raises RuntimeError where the user has no home."""
    if own := os.environ.get("UNISCI_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unisci"


def write_library(named: NamedLibrary, path: Path) -> None:
    """Write arrays (.npz, nothing pickled), all or nothing. Raises OSError where that cannot be."""
    library, text = named.library, json.dumps([named.names, named.rejects.values.tolist()])
    arrays = {k: getattr(library, k) for k in ARRAYS[:-1]} | {"groups": library.spacegroups()}
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, format=FORMAT, text=np.frombuffer(text.encode(), np.uint8), **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_library(path: Path) -> NamedLibrary:
    """Raises ValueError, OSError or what zipfile raises where the file holds no such library."""
    from pandas import DataFrame

    with np.load(path, allow_pickle=False) as file:
        if int(file["format"]) != FORMAT:
            raise ValueError(f"format {file['format']}, known is {FORMAT}")
        library = TemplateLibrary(*(file[k] for k in ARRAYS))
        names, rejects = json.loads(file["text"].tobytes())
    m, sites = len(names), len(library.numbers)
    shapes = [getattr(library, k).shape for k in ARRAYS]
    if shapes != [(sites,), (sites, 3), (m + 1,), (m, 3, 3), (m,)] or library.offsets[[0, -1]].tolist() != [0, sites]:
        raise ValueError(f"arrays of the shapes {shapes} are no library of {m} crystals")
    return NamedLibrary(library, tuple(names), DataFrame(rejects, columns=["name", "reason"]))
