"""Crystals and molecules for the eye, and crystals for other programs: a py3Dmol view, a page that needs no network,
CIF, ASE's database.

The page projects the sites p onto the screen, (x, y, depth) = R p, nearest last (the painter's algorithm), R following
the mouse. Radii and colours are those of Jmol and of Cordero et al. (DOI 10.1039/b801115j), as ASE has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unisci.design.potentials import ABSENT
from unisci.domains.crystal import Crystal
from unisci.domains.molecule_rdkit import parse_class

if TYPE_CHECKING:
    from ase import Atoms
    from pandas import DataFrame

    from unisci.domains.molecule import Molecule

EDGE = 1e-3  # fractional distance from a face at which a site is drawn on the other face too
PAGE = """<!doctype html><meta charset="utf-8"><title>TITLE</title>
<canvas width="640" height="480" style="border:1px solid #ccc" title="TITLE: drag to turn, wheel to zoom"></canvas>
<script>(() => {
const {sites, edges, bonds, size} = DATA, canvas = document.currentScript.previousElementSibling;
const pen = canvas.getContext("2d"), [w, h] = [canvas.width / 2, canvas.height / 2];
let a = 0.5, b = 0.35, zoom = 0.8 * h / size;
const turn = ([x, y, z]) => {
  const u = Math.cos(a) * x + Math.sin(a) * y, v = Math.cos(a) * y - Math.sin(a) * x;
  return [w + zoom * u, h - zoom * (Math.cos(b) * z + Math.sin(b) * v), Math.sin(b) * z - Math.cos(b) * v];
};
const draw = () => {
  pen.clearRect(0, 0, 2 * w, 2 * h);
  pen.strokeStyle = "#888";
  for (const [p, q] of edges) {
    pen.beginPath(); pen.moveTo(...turn(p).slice(0, 2)); pen.lineTo(...turn(q).slice(0, 2)); pen.stroke();
  }
  pen.textAlign = "center"; pen.textBaseline = "middle"; pen.font = "12px sans-serif";
  const points = sites.map(s => ({...s, p: turn(s.p)})), ends = bonds.map(([i, j]) => [points[i].p, points[j].p]);
  const lines = ends.map(([from, to], k) => ({from, to, order: bonds[k][2], p: from.map((x, i) => (x + to[i]) / 2)}));
  for (const {p, r, color, symbol, order, from, to} of [...lines, ...points].sort((s, t) => s.p[2] - t.p[2])) {
    if (order) {
      const [u, v] = [to[0] - from[0], to[1] - from[1]], long = Math.hypot(u, v) || 1;
      for (let k = 0; k < order; k++) {
        const aside = 0.16 * zoom * (k - (order - 1) / 2), [x, y] = [-v / long * aside, u / long * aside];
        pen.beginPath(); pen.moveTo(from[0] + x, from[1] + y); pen.lineTo(to[0] + x, to[1] + y);
        pen.strokeStyle = "#666"; pen.lineWidth = 0.07 * zoom; pen.stroke();
      }
      continue;
    }
    pen.strokeStyle = "#333"; pen.lineWidth = 1;
    pen.beginPath(); pen.arc(p[0], p[1], zoom * r, 0, 7); pen.fillStyle = color; pen.fill(); pen.stroke();
    pen.fillStyle = "#000"; pen.fillText(symbol, p[0], p[1]);
  }
};
canvas.onmousemove = e => { if (e.buttons) { a += e.movementX / 100; b += e.movementY / 100; draw(); } };
canvas.onwheel = e => { e.preventDefault(); zoom *= Math.exp(-e.deltaY / 500); draw(); };
draw();
})();</script>
"""


def view(crystal: Crystal) -> Any:
    """A py3Dmol view: spheres and the cell. It loads its script from a network, for py3Dmol's package carries none:
    offline, take `html`. Raises ImportError where py3Dmol is not installed."""
    try:
        import py3Dmol
    except ImportError as error:
        raise ImportError(ABSENT.format("py3Dmol")) from error
    shown = py3Dmol.view(width=640, height=480)
    shown.addModel(crystal.cif, "cif")
    shown.setStyle({"sphere": {"scale": 0.3}})
    shown.addUnitCell()
    shown.zoomTo()
    return shown


def html(crystal: Crystal) -> str:
    """A web page with the crystal, to turn and zoom, its script in the page: nothing is loaded from anywhere.

    Sites on a face of the cell are drawn on the opposite face too.
    """
    corners = np.array(list(product((0, 1), repeat=3)))
    centre = 0.5 * crystal.lattice.sum(0)
    sites = [
        site(z, p @ crystal.lattice - centre)
        for z, s in zip(crystal.numbers.tolist(), crystal.fractional, strict=True)
        for p in _images(s)
    ]
    edges = [
        [(c @ crystal.lattice - centre).round(4).tolist() for c in (one, two)]
        for one in corners
        for two in corners
        if (two - one).sum() == 1 == np.abs(two - one).sum()
    ]
    size = float(np.abs((corners - 0.5) @ crystal.lattice).max())
    return _page(crystal.formula, {"sites": sites, "edges": edges, "bonds": [], "size": size})


def molecule_html(molecule: Molecule, title: str) -> str:
    """A web page as `html` with the first conformer of a molecule. Raises ValueError where it has none."""
    if molecule.positions is None:
        raise ValueError(f"{title}: there are no positions to show")
    x = molecule.positions[0] - molecule.positions[0].mean(0)
    symbols = [parse_class(name)[0] for name in molecule.atoms]
    sites = [site(chemical_symbols().index(s), p) for s, p in zip(symbols, x, strict=True)]
    pairs = zip(*np.nonzero(np.triu(molecule.bonds)), strict=True)
    bonds = [[int(i), int(j), int(molecule.bonds[i, j])] for i, j in pairs]
    size = float(max(1.5, np.linalg.norm(x, axis=1).max()))
    return f"<h3>{escape(title)}</h3>\n" + _page(title, {"sites": sites, "edges": [], "bonds": bonds, "size": size})


def chemical_symbols() -> list[str]:
    """By atomic number, "X" for 0."""
    from ase.data import chemical_symbols

    return chemical_symbols


def site(z: int, position: np.ndarray) -> dict:
    """What is drawn of an atom of atomic number z: its place "p", radius "r" in angstrom, "color" and "symbol"."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    return {
        "p": position.round(4).tolist(),
        "r": round(0.4 * float(covalent_radii[z]), 3),
        "color": "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z]),
        "symbol": chemical_symbols()[z],
    }


def _page(title: str, data: dict) -> str:
    # The data last: a title may hold the word.
    return PAGE.replace("DATA", json.dumps(data)).replace("TITLE", escape(title))


def _images(s: np.ndarray) -> list[np.ndarray]:
    """Fractional coordinates (3,) and those of the copies on opposite faces."""
    s = np.where(s > 1 - EDGE, s - 1, s)
    return [s + step for step in product(*((0, 1) if x < EDGE else (0,) for x in s))]


def write_cifs(crystals: Sequence[Crystal], table: DataFrame, folder: Path) -> list[Path]:
    """{formula}_{id}.cif for each row; characters that have no place in a file's name become "_".

    Raises ValueError before it writes anything, where two rows would have one name.
    """
    names = [re.sub(r"[^\w().+-]", "_", f"{f}_{i}") for f, i in zip(table["formula"], table["id"], strict=True)]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"two samples are called {twice[0]}: give each an id of its own in the table")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.cif" for name in names]
    for crystal, path in zip(crystals, paths, strict=True):
        path.write_text(crystal.cif)
    return paths


def with_info(crystals: Sequence[Crystal], table: DataFrame) -> list[Atoms]:
    """ASE Atoms with the columns that have a value as info."""
    out = []
    for crystal, row in zip(crystals, table.to_dict("records"), strict=True):
        atoms = crystal.atoms
        atoms.info = {str(k): v for k, v in row.items() if v is not None and v == v}
        out.append(atoms)
    return out


def write_database(atoms: Sequence[Atoms], path: str | Path) -> None:
    """An ASE database in place of one that is there: numbers as keys, the whole info as data."""
    from ase.db import connect
    from ase.db.core import reserved_keys

    with connect(path, append=False) as database:
        for one in atoms:
            keys = {}
            for name, value in one.info.items():
                key = re.sub(r"\W", "_", name)
                if isinstance(value, bool | int | float) and re.match(r"[A-Za-z]", key):
                    keys[f"sample_{key}" if key in reserved_keys else key] = value
            database.write(one, key_value_pairs=keys, data=dict(one.info))
