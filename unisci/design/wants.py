"""What a user wants of molecules: what all kinds of wants share, and several joined by `&`. The kinds:
`unisci.design.targets`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisci.domains.molecule import Molecule


class Want:
    """What all wants share: `gap`, how far valid molecules are from being what is wanted, what it `needs`, and `&`."""

    @property
    def needs(self) -> Counter[str]:
        """Heavy atoms of each element, without which it cannot be met."""
        return Counter()

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """(n,): 0 where met, else how far off, at least a positive number; NaN where it cannot be told."""
        raise NotImplementedError(f"{type(self).__name__} does not define gap(molecules)")

    def clash(self, other: "Want") -> str | None:
        """Why the two cannot be wanted together, as far as this one can tell; None where they can."""
        return None

    def __and__(self, other: "Want | Wants") -> "Wants":
        return Wants((self,)) & other


def both(a: Want, b: Want) -> str:
    """What `clash` says of two that contradict each other."""
    return f"{a} and {b} cannot both be met: take one of them away"


@dataclass(frozen=True)
class Wants:
    """All of several wants. Raises ValueError where two contradict each other."""

    parts: tuple[Want, ...]

    def __post_init__(self) -> None:
        for i, part in enumerate(self.parts):
            if not isinstance(part, Want):
                raise ValueError(f"{part!r} is not a want, such as Above('qed', .5)")
            for other in self.parts[:i]:
                reason = other.clash(part) or part.clash(other)
                if reason:
                    raise ValueError(reason)

    def __and__(self, other: "Want | Wants") -> "Wants":
        return Wants(self.parts + (other.parts if isinstance(other, Wants) else (other,)))

    def __str__(self) -> str:
        return " & ".join(map(str, self.parts))


def wants(where: "Want | Wants | Sequence[Want]") -> Wants:
    """One want, several joined by &, or a list of them, as Wants."""
    if isinstance(where, Wants):
        return where
    return Wants((where,) if isinstance(where, Want) else tuple(where))
