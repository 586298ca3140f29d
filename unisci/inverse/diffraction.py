"""The powder diffraction pattern of a crystal, as an operator of an inverse problem (RED-Diff, arXiv 2305.04391;
forward models, arXiv 2306.11719).

    F(h) = sum_j f_j(s) exp(2 pi i h . x_j) exp(-B s^2 / 4),     s = |h L^-T| = 1 / d = 2 sin(theta) / wavelength
    y(2 theta) = V^-2 sum_h |F(h)|^2 P(theta_h) N(2 theta; 2 theta_h, width^2)
    P(theta) = (1 + cos^2 2 theta) / (sin^2 theta cos theta)
with the Cromer-Mann form factor f = sum_i a_i exp(-b_i s^2 / 4) + c. V^-2 makes y independent of the choice of cell.
No origin shift, inversion or order of the atoms changes y, so it tells a structure up to these, and its misfit has
twin minima: start from several places.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from unisci.inverse.operators import pullback
from unisci.state import State

TAIL = 6.0  # widths beyond the grid from which a peak still reaches into it


@dataclass(frozen=True, eq=False)
class PowderPattern:
    """The powder pattern (B, G) of a crystal, in square electrons per A^6 and degree.

    The state has, under `names`, the cell (B, 3, 3) in angstrom, rows its vectors; fractional coordinates (B, N, 3),
    wrapped or not; the classes, (B, N) int64 or probabilities (B, N, K). What is not sought stands in `known`.
    coefficients (K, 9): a1 b1 a2 b2 a3 b3 a4 b4 c of each class. two_theta (G,) in degrees. wavelength: angstrom, a
    number or (B,). width: standard deviation of a peak, degrees. b_factor: B in square angstrom. mask (B, N): which
    atoms exist, or their occupancies. reach: the longest cell vector in angstrom; the number of reflections grows as
    its cube. chunk: reflections at a time; a call that keeps a graph, unlike `adjoint`, still holds all.

    Raises ValueError for settings out of range, missing fields and wrong shapes, and on the CPU for cells beyond reach.
    """

    coefficients: Tensor
    two_theta: Tensor
    wavelength: float | Tensor = 1.54056
    width: float = 0.1
    b_factor: float = 0.5
    mask: Tensor | None = None
    reach: float = 10.0
    known: dict[str, Tensor] = field(default_factory=dict)
    names: tuple[str, str, str] = ("lattice", "fractional", "atom")
    chunk: int = 512

    def __post_init__(self) -> None:
        if self.coefficients.ndim != 2 or self.coefficients.shape[1] != 9:
            raise ValueError(f"coefficients must be (K, 9): a1 b1 .. a4 b4 c, got {tuple(self.coefficients.shape)}")
        grid = self.two_theta
        if grid.ndim != 1 or len(grid) == 0 or not bool(((grid > 0) & (grid < 180)).all()):
            raise ValueError(f"two_theta must be (G,), degrees between 0 and 180, got {grid.tolist()}")
        if not bool((torch.as_tensor(self.wavelength) > 0).all()):
            raise ValueError(f"the wavelength must be positive, in angstrom, got {self.wavelength}")
        if self.width <= 0 or self.b_factor < 0 or self.reach <= 0 or self.chunk < 1:
            raise ValueError(
                f"need width > 0, b_factor >= 0, reach > 0 and chunk >= 1, got width = {self.width}, b_factor = "
                f"{self.b_factor}, reach = {self.reach}, chunk = {self.chunk}"
            )

    @cached_property
    def reflections(self) -> Tensor:
        """h (H, 3), float64: of each pair h, -h, which scatter alike, the one whose first number not 0 is positive.
        |h_i| <= |a_i| s holds them all."""
        end = min(self.two_theta.max().item() + TAIL * self.width, 180.0)
        s = 2 * math.sin(math.radians(end / 2)) / torch.as_tensor(self.wavelength).min().item()
        side = torch.arange(-math.floor(self.reach * s), math.floor(self.reach * s) + 1)
        h = torch.cartesian_prod(side, side, side)
        return h[len(h) // 2 + 1 :].double().to(self.coefficients.device)

    def __call__(self, clean: State) -> Tensor:
        self._check(clean)
        return sum(self._part(clean, h) for h in self.reflections.split(self.chunk))

    def adjoint(self, residual: Tensor, at: State) -> State:
        self._check(at)
        parts = [pullback(lambda x, h=h: self._part(x, h), residual, at) for h in self.reflections.split(self.chunk)]
        return {k: sum(part[k] for part in parts) for k in at}

    def _fields(self, clean: State) -> Iterator[Tensor]:
        return ((self.known | clean)[name] for name in self.names)

    def _part(self, clean: State, h: Tensor) -> Tensor:
        """What the reflections h (H, 3) and their opposites add to the pattern, (B, G). In float64: a phase of many
        turns loses its digits in float32."""
        lattice, fractional, atom = self._fields(clean)
        cell = lattice.double()
        normals = torch.linalg.cross(cell.roll(-1, 1), cell.roll(-2, 1))  # unlike an inverse, never waits for a device
        volume = (cell[:, 0] * normals[:, 0]).sum(-1).abs()[:, None]
        s = (h @ (normals / volume[..., None])).norm(dim=-1)  # (B, H)
        sine = torch.as_tensor(self.wavelength, dtype=s.dtype, device=s.device).reshape(-1, 1) * s / 2
        seen = sine < 0.9999  # there is no reflection beyond 1
        sine = torch.where(seen, sine, 0.5)
        weight = self._form_factors(s) @ self._types(atom).mT * torch.exp(-self.b_factor * s**2 / 4)[..., None]
        phase = 2 * math.pi * (h @ fractional.double().mT)  # (B, H, N)
        power = (weight * phase.cos()).sum(-1) ** 2 + (weight * phase.sin()).sum(-1) ** 2
        polarisation = (1 + (1 - 2 * sine**2) ** 2) / (sine**2 * (1 - sine**2).sqrt())
        intensity = torch.where(seen, 2 * power * polarisation, 0.0) / volume**2
        away = (self.two_theta.to(s) - torch.rad2deg(2 * sine.asin())[..., None]) / self.width
        peaks = torch.exp(-(away**2) / 2) / (self.width * math.sqrt(2 * math.pi))
        return (intensity[:, None] @ peaks)[:, 0].to(fractional.dtype)

    def _form_factors(self, s: Tensor) -> Tensor:
        """f (B, H, K) of s (B, H)."""
        table = self.coefficients.to(s)
        a, b, c = table[:, 0:8:2], table[:, 1:8:2], table[:, 8]
        return (a * torch.exp(-b * (s**2)[..., None, None] / 4)).sum(-1) + c

    def _types(self, atom: Tensor) -> Tensor:
        """Occupancies by class, (B, N, K)."""
        k = len(self.coefficients)
        types = atom.double() if atom.is_floating_point() else torch.nn.functional.one_hot(atom, k).double()
        return types if self.mask is None else types * self.mask.to(types)[..., None]

    def _check(self, clean: State) -> None:
        state = self.known | (clean if isinstance(clean, dict) else {})
        if not set(self.names) <= set(state):
            raise ValueError(f"a pattern needs the fields {self.names}, the state and `known` have {sorted(state)}")
        lattice, fractional, atom = (state[name] for name in self.names)
        b, n = fractional.shape[:2]
        classes = (b, n, len(self.coefficients)) if atom.is_floating_point() else (b, n)
        shapes = [tuple(v.shape) for v in (lattice, fractional, atom)]
        if shapes != [(b, 3, 3), (b, n, 3), classes]:
            raise ValueError(f"{self.names} must be of shapes (B, 3, 3), (B, N, 3) and {classes}, got {shapes}")
        if self.mask is not None and tuple(self.mask.shape) != (b, n):
            raise ValueError(f"the mask must be (B, N) = {(b, n)}, got {tuple(self.mask.shape)}")
        if torch.as_tensor(self.wavelength).numel() not in (1, b):
            raise ValueError(f"the wavelength must be a number or (B,), B = {b}, got {self.wavelength}")
        if lattice.device.type == "cpu":  # elsewhere the checks of values would wait
            self._check_values(lattice, atom)

    def _check_values(self, lattice: Tensor, atom: Tensor) -> None:
        longest, k = lattice.norm(dim=-1).max().item(), len(self.coefficients)
        if longest > self.reach:
            raise ValueError(f"a cell vector of {longest:.3g} A is beyond reach = {self.reach}; raise reach")
        if not atom.is_floating_point() and bool(((atom < 0) | (atom >= k)).any()):
            raise ValueError(f"classes must lie in 0..{k - 1}, those of the coefficients, got {atom.unique().tolist()}")
