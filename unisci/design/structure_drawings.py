"""A picture of conformers side by side: balls and sticks, each turned onto the first one of the same molecule.

Sites p are projected as (x, y) = R (p - mean), nearest last (the painter's algorithm); the rows of R are the principal
axes of the first conformer's heavy atoms, so that it is seen from its broadest side. Lengths have one scale in a sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unisci.design.view3d import chemical_symbols, site
from unisci.domains.molecule import Molecule
from unisci.domains.molecule_rdkit import parse_class
from unisci.metrics.strain import rotation

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

CELL, LEGEND = (200, 150), 34  # pixels of a drawing, and of the one or two lines of text below it
FINE = 3  # drawn so many times as large, then made small: smooth lines
MARGIN = 6
LETTERS = 30  # of a line of text


def sheet(molecules: Sequence[Molecule], legends: Sequence[str], columns: int = 5) -> Any:
    """A picture (PIL) of the first conformer of each molecule, its legend below. Raises ValueError where there is no
    molecule, or one has no positions."""
    from PIL import Image, ImageDraw

    if not len(molecules) or any(not m.conformers for m in molecules):
        raise ValueError("conformers to draw need positions: give one molecule or more that have some")
    views = turned(molecules)
    columns = min(columns, len(molecules))
    width, height = CELL[0], CELL[1] + LEGEND
    rows = -(-len(molecules) // columns)
    image = Image.new("RGB", (FINE * width * columns, FINE * height * rows), "white")
    pen = ImageDraw.Draw(image)
    reach = [max(np.abs(x[:, k]).max() for x in views) + 0.5 for k in (0, 1)]
    zoom = FINE * min((CELL[k] / 2 - MARGIN) / reach[k] for k in (0, 1))
    for i, (molecule, x, legend) in enumerate(zip(molecules, views, legends, strict=True)):
        left, top = FINE * width * (i % columns), FINE * height * (i // columns)
        middle = (left + FINE * CELL[0] / 2, top + FINE * CELL[1] / 2)
        _draw(pen, molecule, x * [zoom, -zoom, zoom] + [*middle, 0], zoom)
        place = (middle[0], top + FINE * (CELL[1] + LEGEND / 2))
        lines = (line if len(line) <= LETTERS else line[: LETTERS - 3] + "..." for line in legend.split("\n"))
        pen.text(place, "\n".join(lines), fill="black", anchor="mm", align="center", font_size=FINE * 11)
    return image.resize((width * columns, height * rows), Image.Resampling.LANCZOS)


def turned(molecules: Sequence[Molecule]) -> list[np.ndarray]:
    """Positions (n, 3) of each as they are seen, z towards the eye."""
    first: dict[tuple, np.ndarray] = {}
    views = []
    for molecule in molecules:
        x = molecule.positions[0]
        heavy = np.array([name != "H" for name in molecule.atoms])
        frame = heavy if heavy.sum() > 2 else np.ones(len(heavy), bool)
        x = x - x[frame].mean(0)
        key = tuple(molecule.to_text())
        if key not in first:
            axes = np.linalg.svd(x[frame], full_matrices=True)[2]
            axes[2] *= np.sign(np.linalg.det(axes))  # no mirror image
            first[key] = x @ axes.T
        views.append(x @ rotation(x[frame], first[key][frame]))
    return views


def _draw(pen: ImageDraw, molecule: Molecule, x: np.ndarray, zoom: float) -> None:
    """Sticks and balls of x (n, 3) in pixels, farthest first."""
    symbols = [parse_class(name)[0] for name in molecule.atoms]
    balls = [site(chemical_symbols().index(s), p) for s, p in zip(symbols, x, strict=True)]
    pairs = zip(*np.nonzero(np.triu(molecule.bonds)), strict=True)
    things = [(x[i, 2] / 2 + x[j, 2] / 2, int(i), int(j)) for i, j in pairs]
    things += [(x[i, 2], i, -1) for i in range(len(x))]
    for _, i, j in sorted(things):
        if j < 0:
            (u, v), r = x[i, :2], zoom * balls[i]["r"]
            pen.ellipse((u - r, v - r, u + r, v + r), fill=balls[i]["color"], outline="#333333", width=FINE)
            continue
        along = x[j, :2] - x[i, :2]
        across = np.array([-along[1], along[0]]) / max(1.0, np.linalg.norm(along))
        order = int(molecule.bonds[i, j])
        for k in range(order):
            aside = 0.16 * zoom * (k - (order - 1) / 2) * across
            ends = [tuple(x[m, :2] + aside) for m in (i, j)]
            pen.line(ends, fill="#666666", width=max(1, round(0.07 * zoom)))
