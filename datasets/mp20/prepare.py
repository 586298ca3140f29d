"""Write train.npz and validation.npz from a packed MP-20: python datasets/mp20/prepare.py mp20.npz --out DIR

Templates as `unisci train` reads them (see unisci.domains.template_files), not CIFs: a CIF's reader moves coordinates
that are within 1e-4 of a simple fraction, and takes minutes.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from pandas import DataFrame
from pymatgen.core import Lattice

from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.prototypes import NamedLibrary
from unisci.domains.template_files import save_templates
from unisci.domains.templates import TemplateLibrary

SPLITS = {"train": 0, "validation": 1}


def read(path: Path, split: str) -> NamedLibrary:
    """The Niggli-reduced crystals of a split, in the file's order, by their ids; sites are as they were given.

    The file: frac (A, 3), z (A,), n_atoms (N,), lattice (N, 6) with lengths in angstrom and angles in degrees, split
    (N,), ids: N names as UTF-8, a line each.
    """
    with np.load(path) as file:  # each entry is unpacked when asked for, so once
        frac, z, sites, cells, splits, ids = (file[k] for k in ("frac", "z", "n_atoms", "lattice", "split", "ids"))
    names, ends = ids.tobytes().decode().split("\n"), np.cumsum(sites.astype(int))
    kept, rejects = [], []
    for i in np.flatnonzero(splits == SPLITS[split]):
        part = slice(ends[i] - int(sites[i]), ends[i])
        try:
            lattice = Lattice.from_parameters(*cells[i]).matrix
            kept.append((names[i], Crystal(z[part].astype(int), frac[part].astype(float), lattice).niggli()))
        except CrystalError as error:
            rejects.append((names[i], str(error)))
    library = TemplateLibrary.from_crystals(c for _, c in kept)
    return NamedLibrary(library, tuple(n for n, _ in kept), DataFrame(rejects, columns=["name", "reason"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the packed set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        named, path = read(args.data, split), args.out / f"{split}.npz"
        save_templates(named, path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}: {len(named)} crystals, {len(named.rejects)} rejected, sha256 {sha}")


if __name__ == "__main__":
    main()
