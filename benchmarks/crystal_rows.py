"""Crystals packed as arrays in one .npz: frac (A, 3), z (A,), n_atoms (N,), lattice (N, 6) with lengths in angstrom and
angles in degrees, split (N,): 0 train, 1 validation."""

from pathlib import Path

import numpy as np
from pymatgen.core import Lattice

from unisci.domains.crystal import Crystal

SPLITS = {"train": 0, "validation": 1}


def load(path: Path) -> dict[str, list[Crystal]]:
    """The Niggli-reduced crystals of each split, in the file's order."""
    with np.load(path) as file:  # each entry is unpacked when asked for, so once
        frac, z, sites, cells, split = (file[k] for k in ("frac", "z", "n_atoms", "lattice", "split"))
    ends = np.cumsum(sites.astype(int))
    out: dict[str, list[Crystal]] = {}
    for name, code in SPLITS.items():
        out[name] = []
        for i in np.flatnonzero(split == code):
            part = slice(ends[i] - int(sites[i]), ends[i])
            lattice = Lattice.from_parameters(*cells[i]).matrix
            out[name].append(Crystal(z[part].astype(int), frac[part].astype(float), lattice).niggli())
    return out
