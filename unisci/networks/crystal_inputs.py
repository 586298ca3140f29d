"""What a network of crystals is told beside its atoms: the geometry of pairs, and one condition for all layers.

A template is a known crystal of another composition, its sites matched to those of the one that is made. With f the
positions and p the template's,

    r_ij = wrap((p_j - p_i) - (f_j - f_i))          is 0 at every pair where the template is kept, wherever it lies.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.lattice import cell_matrix, wrap
from unisci.networks.edges import differences, distances, fourier, radial, spacing
from unisci.networks.sites import FieldTimes

LIMIT = 6.0  # of a cell's numbers, in standard deviations: beyond it exponentials overflow
RESIDUAL_FREQUENCIES = 2


class Template(NamedTuple):
    """exists (B,) bool; distance (B,) in chemistry, 0 where none; cell (B, 6); difference and residual r (B, N, N, 3),
    0 where none; lattice (B, 3, 3).
    """

    exists: Tensor
    distance: Tensor
    cell: Tensor
    difference: Tensor
    residual: Tensor
    lattice: Tensor

    @classmethod
    def of(cls, given: dict[str, Tensor], difference: Tensor, sites: Tensor) -> "Template | None":
        """From given's "template_position" (B, N, 3), "template_cell" (B, 6) and "template_distance" (B,), which is
        negative where there is none. None where not given. Raises ValueError where one of the three is missing.
        """
        if "template_position" not in given:
            return None
        missing = {"template_cell", "template_distance"} - given.keys()
        if missing:
            raise ValueError(f"a template_position needs {sorted(missing)} beside it")
        position, cell, distance = (given[f"template_{k}"] for k in ("position", "cell", "distance"))
        exists = distance >= 0
        cell = torch.where(exists[:, None], cell, 0).clamp(-LIMIT, LIMIT)
        d = differences(position, periodic=True)
        there = exists[:, None, None, None]
        residual = torch.where(there, wrap(d - difference), 0)
        d = torch.where(there, d, 0)
        return cls(exists, distance.clamp(min=0), cell, d, residual, cell_matrix(cell, sites))


class PairEmbedding(nn.Module):
    """Edge states (B, N, N, edge) from the differences, the shortest distances, the condition and a template."""

    def __init__(self, width: int, edge: int, frequencies: int, radial: int, templates: bool):
        super().__init__()
        self.frequencies, self.radial = frequencies, radial
        features = 6 * frequencies + 2 * radial
        self.geometry, self.condition = nn.Linear(features, edge), nn.Linear(width, edge)
        self.out = nn.Linear(edge, edge)
        if templates:
            self.null = nn.Parameter(torch.zeros(edge))
            self.template = nn.Linear(features, edge)
            self.residual = nn.Linear(6 * RESIDUAL_FREQUENCIES, edge)
        self.templates = templates

    def features(self, d: Tensor, lattice: Tensor, sites: Tensor) -> Tensor:
        """Fourier features of d, and Gaussians of the shortest distance in angstrom and in mean spacings."""
        r = distances(d, lattice)
        relative = r / spacing(lattice, sites)[:, None, None]
        parts = [fourier(d, self.frequencies), radial(r, self.radial, 8.0), radial(relative, self.radial, 3.0)]
        return torch.cat(parts, -1)

    def forward(self, d: Tensor, lattice: Tensor, sites: Tensor, c: Tensor, template: Template | None) -> Tensor:
        h = self.geometry(self.features(d, lattice, sites)) + self.condition(c)[:, :, None]
        if self.templates:
            h = h + (self.null if template is None else self._template(template, sites))
        return h + self.out(F.silu(h))

    def _template(self, template: Template, sites: Tensor) -> Tensor:
        x = self.features(template.difference, template.lattice, sites)
        r = fourier(template.residual, RESIDUAL_FREQUENCIES)
        return torch.where(template.exists[:, None, None, None], self.template(x) + self.residual(r), self.null)


class Condition(nn.Module):
    """What modulates all layers, (B, 1 or N, width): times by field, the cell, its sites, its volume, its template.

    A site of an element takes a learned volume v[element]. The mean over the sites seen whose element is known
    (volume v_hat) is compared with the cell's: log(v_hat) / 3 - log(V / N) / 3 is 0 where they agree.
    volumes (classes,): first guesses in cubic angstrom, 16 for all where None.
    """

    def __init__(self, width: int, classes: int, templates: bool, volumes: Tensor | None = None):
        super().__init__()
        volumes = torch.full((classes,), 16.0) if volumes is None else volumes.detach().clone()
        if volumes.shape != (classes,) or not bool((volumes > 0).all()):
            raise ValueError(
                f"volumes must be {classes} positive numbers, got a tensor of shape {tuple(volumes.shape)}"
            )
        self.log_volume = nn.Parameter(volumes.log())
        self.times = FieldTimes(width)
        self.whole, self.volume = nn.Linear(7, width), nn.Linear(2, width, bias=False)
        if templates:
            self.template = nn.Linear(13, width)
            self.null = nn.Parameter(torch.zeros(width))
        self.templates = templates
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(
        self,
        t: dict[str, Tensor],
        cell: Tensor,
        sites: Tensor,
        atom: Tensor,
        lattice: Tensor,
        sight: Tensor,
        template: Template | None,
    ) -> Tensor:
        """t by field, (), (B,) or (B, N); sight (B, 1 or N, N) bool: the sites whose elements each may count."""
        whole = self.whole(torch.cat([cell, sites[:, None].log() - 2], -1))
        if self.templates:
            whole = whole + (self.null if template is None else self._template(template, cell))
        volume = self.volume(self._volume(atom, lattice, sites, sight))
        return self.out(whole[:, None] + volume + self.times(t, cell))

    def _volume(self, atom: Tensor, lattice: Tensor, sites: Tensor, sight: Tensor) -> Tensor:
        """log of expected over actual spacing, 0 where no element is known, and the known part: (B, 1 or N, 2)."""
        classes = len(self.log_volume)
        known = (atom < classes).to(lattice.dtype)
        volume = self.log_volume.exp()[atom.clamp(max=classes - 1)] * known
        sight = sight.to(lattice.dtype)
        total, count = (sight @ torch.stack([volume, known], -1)).unbind(-1)
        expected = torch.where(count > 0, total / count.clamp(min=1), 1.0).log() / 3
        ratio = torch.where(count > 0, expected - spacing(lattice, sites)[:, None].log(), 0.0)
        return torch.stack([ratio, count / sight.sum(-1).clamp(min=1)], -1)

    def _template(self, template: Template, cell: Tensor) -> Tensor:
        x = torch.cat([template.cell, template.cell - cell, template.distance[:, None].log1p()], -1)
        return torch.where(template.exists[:, None], self.template(x), self.null)
