"""Relaxation of many crystals at once: atoms and cell go to a minimum of the energy, all as one padded batch.

Each crystal moves by its own L-BFGS (Liu and Nocedal, DOI 10.1007/BF01589116), with a largest step of its own, and
leaves the batch when it is done or has failed. From forces f and the virial W = -V sigma,
    g = (f, W / c),  p = H g,   r <- (r + p_r) exp(S),  L <- L exp(S),  S = p_F / c,
H being the inverse Hessian of the last steps s = p and of what they did to the slope, y = g_old - g. The deformation
exp(S) starts from 1 at every step, where W is the exact slope in S: the Frechet derivative of ase.filters.
FrechetCellFilter, whose minima and measure of convergence these are, is needed for a fixed reference cell only. The
length c = 2 sqrt(N) A makes cell and bonds about equally stiff, which ASE's c = N does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unisci.design.potentials import Evaluation, Potential
from unisci.domains.crystal import Crystal, CrystalError
from unisci.metrics.cells import cell
from unisci.metrics.crystal_validity import structure_fault

STIFFNESS = 30.0  # eV/A^2, the first guess; a bond has 5 to 50
MEMORY = 30  # steps that H is made of
CELL_LENGTH = 2.0  # A, times sqrt(N)
STEP = (0.02, 0.3)  # A, the least and the largest limit of a step; halved where the energy rises
VOLUMES = (1.0, 1000.0)  # A^3 a site: elements take 5 to 120
RISE, FALL = 10.0, 100.0  # eV an atom since the start: more is no relaxation but a hole in the potential


@dataclass(frozen=True, eq=False)
class Relaxed:
    """crystal: the minimum, or the crystal as given where relaxing failed; energy_per_atom: eV, NaN where it failed.

    steps: evaluations; fmax: the largest force left (eV/A), the rows of the virial over N counting as forces; reason:
    None where converged, else what failed, or that the steps were used up: then crystal and energy are the last ones.
    """

    crystal: Crystal
    energy_per_atom: float
    converged: bool
    steps: int
    fmax: float
    reason: str | None


@dataclass(frozen=True, eq=False)
class _Batch:
    """B crystals of up to N sites; D = 3 N + 9 numbers move, the sites', then the cell's, padding never; M steps."""

    index: np.ndarray  # (B,) the place of each in the list
    sites: np.ndarray  # (B, N) bool
    lattice: np.ndarray  # (B, 3, 3)
    position: np.ndarray  # (B, N, 3)
    slope: np.ndarray  # (B, D) g of the last evaluation
    steps: np.ndarray  # (B, M, D) s, the last one of them has led here
    slopes: np.ndarray  # (B, M, D) y, after an evaluation
    limit: np.ndarray  # (B,) of the longest row of p
    energy: np.ndarray  # (B,) eV an atom, of the last evaluation
    start: np.ndarray  # (B,) of the first; NaN before it

    @property
    def length(self) -> np.ndarray:
        """c (B, 1, 1)."""
        return CELL_LENGTH * np.sqrt(self.sites.sum(1))[:, None, None]

    def take(self, keep: np.ndarray) -> _Batch:
        """Those where keep (B,) is True."""
        return replace(self, **{name: value[keep] for name, value in vars(self).items()})


def relax(crystals: Sequence[Crystal], potential: Potential, fmax: float = 0.05, steps: int = 300) -> list[Relaxed]:
    """The minimum that each crystal falls into, without pressure; fmax in eV/A, at most `steps` evaluations of each.

    No crystal depends on the others. What the potential fails on, or what runs away, is a Relaxed with its reason.
    Raises ValueError where fmax <= 0 or steps < 1.
    """
    if not fmax > 0 or steps < 1:
        raise ValueError(f"fmax is {fmax} and steps {steps}: give a force above 0 and at least one step")
    out: list[Relaxed] = [Relaxed(c, np.nan, False, 0, np.nan, None) for c in crystals]
    batch, count = _padded(crystals), 0
    while len(batch.index):
        count += 1
        places = zip(batch.index, batch.position, batch.sites, batch.lattice, strict=True)
        now = [_crystal(crystals[i], r[sites], lattice) for i, r, sites, lattice in places]
        found = _evaluations(now, batch.start, potential)
        for i, e in zip(batch.index, found, strict=True):
            out[i] = replace(out[i], steps=count, reason=e.reason)
        sound = np.array([e.reason is None for e in found])
        batch, force = _observed(batch.take(sound), [e for e in found if e.reason is None])
        done = (force < fmax) | (count == steps)
        last = [c for c, good in zip(now, sound, strict=True) if good]
        for b in np.flatnonzero(done):
            reason = None if force[b] < fmax else f"not converged in {count} steps"
            out[batch.index[b]] = Relaxed(last[b], float(batch.energy[b]), not reason, count, float(force[b]), reason)
        batch = _moved(batch.take(~done))
    return out


def _padded(crystals: Sequence[Crystal]) -> _Batch:
    b, n = len(crystals), max(map(len, crystals), default=0)
    d, sites, position = 3 * n + 9, np.zeros((b, n), bool), np.zeros((b, n, 3))
    for i, c in enumerate(crystals):
        sites[i, : len(c)] = True
        position[i, : len(c)] = c.fractional @ c.lattice
    return _Batch(
        index=np.arange(b),
        sites=sites,
        lattice=np.array([c.lattice for c in crystals]).reshape(b, 3, 3),
        position=position,
        slope=np.zeros((b, d)),
        steps=np.zeros((b, 0, d)),
        slopes=np.zeros((b, 0, d)),
        limit=np.full(b, STEP[1]),
        energy=np.full(b, np.nan),
        start=np.full(b, np.nan),
    )


def _crystal(given: Crystal, position: np.ndarray, lattice: np.ndarray) -> Crystal | str:
    """The crystal as it is now, or why it can be none: a potential must not see it, neighbours would have no end."""
    try:
        crystal = Crystal(given.numbers, position @ np.linalg.inv(lattice), lattice)
    except (CrystalError, np.linalg.LinAlgError) as error:
        return f"ran away: {error}"
    volume = crystal.volume / len(crystal)
    if not VOLUMES[0] < volume < VOLUMES[1]:
        return f"ran away: a volume of {volume:.3g} A^3 a site"
    return "ran away: two sites within 0.5 A" if structure_fault(cell(crystal)) else crystal


def _evaluations(now: Sequence[Crystal | str], start: np.ndarray, potential: Potential) -> list[Evaluation]:
    """start: (B,) eV an atom, NaN before the first."""
    places = [b for b, c in enumerate(now) if not isinstance(c, str)]
    out, asked = [Evaluation.failed(0, str(c)) for c in now], potential([now[b].atoms for b in places])
    for b, e in zip(places, asked, strict=True):
        e = e if e.reason else Evaluation.of(e.energy, e.forces, e.stress)
        change = e.energy / len(now[b]) - start[b]
        far = change > RISE or change < -FALL  # not so for NaN
        out[b] = Evaluation.failed(0, f"ran away: by {change:.3g} eV an atom") if far else e
    return out


def _observed(batch: _Batch, found: Sequence[Evaluation]) -> tuple[_Batch, np.ndarray]:
    """The batch with what was found, and the largest force (B,)."""
    n = batch.sites.sum(1)
    rows = np.zeros((len(n), batch.sites.shape[1] + 3, 3))
    for b, e in enumerate(found):
        rows[b, : n[b]], rows[b, -3:] = e.forces, e.stress
    rows[:, -3:] *= -np.abs(np.linalg.det(batch.lattice))[:, None, None]
    energy = np.array([e.energy for e in found]) / n
    per_atom = np.concatenate([rows[:, :-3], rows[:, -3:] / n[:, None, None]], 1)
    force = np.linalg.norm(per_atom, axis=-1).max(1, initial=0.0)
    rows[:, -3:] /= batch.length
    slope = rows.reshape(batch.slope.shape)
    change = (batch.slope - slope)[:, None][:, : batch.steps.shape[1]]  # none before the first step
    seen = replace(
        batch,
        slope=slope,
        slopes=np.concatenate([batch.slopes, change], 1)[:, -MEMORY:],
        limit=np.where(energy > batch.energy, batch.limit / 2, batch.limit * 1.2).clip(*STEP),
        energy=energy,
        start=np.where(np.isnan(batch.start), energy, batch.start),
    )
    return seen, force


def _direction(g: np.ndarray, steps: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """H g (B, D) by the two-loop recursion; a step along which the energy curved down counts for nothing."""
    dot = lambda x, y: (x * y).sum(-1, keepdims=True)
    curvature = dot(steps, slopes)
    sound = curvature > 1e-10
    weight = np.where(sound, 1 / np.where(sound, curvature, 1), 0)
    scale, p, parts = np.full((len(g), 1), 1 / STIFFNESS), g, []
    for m in range(steps.shape[1]):
        scale = np.where(sound[:, m], curvature[:, m] / np.maximum(dot(slopes[:, m], slopes[:, m]), 1e-300), scale)
    for m in reversed(range(steps.shape[1])):
        parts.append(weight[:, m] * dot(steps[:, m], p))
        p = p - parts[-1] * slopes[:, m]
    p = scale * p
    for m in range(steps.shape[1]):
        p = p + (parts.pop() - weight[:, m] * dot(slopes[:, m], p)) * steps[:, m]
    return p


def _moved(batch: _Batch) -> _Batch:
    """One step on."""
    b = len(batch.index)
    rows = _direction(batch.slope, batch.steps, batch.slopes).reshape(b, batch.sites.shape[1] + 3, 3)
    rows *= np.minimum(1, batch.limit / np.linalg.norm(rows, axis=-1).max(1, initial=1e-300))[:, None, None]
    rows[:, -3:] = (rows[:, -3:] + rows[:, -3:].transpose(0, 2, 1)) / 2  # no rotation creeps in
    stretches, axes = np.linalg.eigh(rows[:, -3:] / batch.length)
    deformation = (axes * np.exp(stretches)[:, None]) @ axes.transpose(0, 2, 1)
    return replace(
        batch,
        position=(batch.position + rows[:, :-3]) @ deformation,
        lattice=batch.lattice @ deformation,
        steps=np.concatenate([batch.steps, rows.reshape(batch.slope[:, None].shape)], 1)[:, -MEMORY:],
    )
