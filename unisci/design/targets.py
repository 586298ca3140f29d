"""What a user wants of molecules, in plain words, joined by `&`:

    Between("logp", 1, 2) & Above("qed", 0.55) & Without("F")
    Target("tpsa", 40, tolerance=5) & Keep("c1ccccc1")
    Above(f, 3)                                    f(list of Molecule) -> values: any Python function of yours

Each says how far a molecule is from it, in a unit of its own: 0 where it is met. `unisci.design.steering` says how each
acts while molecules are drawn.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from unisci.design.properties import Property, measure, named
from unisci.domains.molecule import Molecule, MoleculeError, parse_class


class Want:
    """What all wants share: `&`, and `gap`, how far valid molecules are from being what is wanted."""

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """(n,): 0 where met, else how far off, at least a positive number; NaN where it cannot be told."""
        raise NotImplementedError(f"{type(self).__name__} does not define gap(molecules)")

    def __and__(self, other: "Want | Wants") -> "Wants":
        return Wants((self,)) & other


@dataclass(frozen=True)
class Interval(Want):
    """low <= property <= high, both ends included. Property: a name (see `unisci.design.properties`) or a function of a
    list of valid molecules to as many values. Raises ValueError for an unknown name, an empty interval, or NaN."""

    property: str | Property
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.property, str):
            named(self.property)
        elif not callable(self.property):
            raise ValueError(f"a property is a name or a function of molecules, got {self.property!r}")
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"no value of {self.name} lies in {self.low:g}..{self.high:g}")

    @property
    def name(self) -> str:
        """The property's, in lower case, or its function's."""
        if isinstance(self.property, str):
            return self.property.lower()
        return getattr(self.property, "__name__", type(self.property).__name__)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """In the property's unit."""
        values = measure(self.property, molecules)
        return np.maximum(np.maximum(self.low - values, values - self.high), 0.0)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"{self.name} <= {self.high:g}"
        return f"{self.name} >= {self.low:g}" if self.high == math.inf else f"{self.name} {self.low:g}..{self.high:g}"


def Between(prop: str | Property, low: float, high: float) -> Interval:
    """low <= property <= high."""
    return Interval(prop, low, high)


def Below(prop: str | Property, value: float) -> Interval:
    """property <= value."""
    return Interval(prop, high=value)


def Above(prop: str | Property, value: float) -> Interval:
    """property >= value."""
    return Interval(prop, low=value)


def Target(prop: str | Property, value: float, tolerance: float) -> Interval:
    """value - tolerance <= property <= value + tolerance. Raises ValueError where the tolerance is negative."""
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is 0 or more, got {tolerance}")
    return Interval(prop, value - tolerance, value + tolerance)


@dataclass(frozen=True)
class Maximize(Want):
    """The larger the property the better: molecules are weighed by exp(value / temperature), in the property's unit.

    It is met by every valid molecule. Raises ValueError for an unknown name and where temperature <= 0.
    """

    property: str | Property
    temperature: float

    def __post_init__(self) -> None:
        if isinstance(self.property, str):
            named(self.property)
        if not self.temperature > 0:
            raise ValueError(f"a temperature is positive, got {self.temperature}")

    @property
    def name(self) -> str:
        return Interval(self.property).name

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.where(np.isnan(self.values(molecules)), np.nan, 0.0)

    def values(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return measure(self.property, molecules)

    def __str__(self) -> str:
        return f"large {self.name}"


@dataclass(frozen=True)
class Contains(Want):
    """`least` atoms or more of an element. Raises ValueError for an unknown element or least < 1."""

    element: str
    least: int = 1

    def __post_init__(self) -> None:
        check_element(self.element)
        if self.least < 1:
            raise ValueError(f"least must be at least 1, got {self.least}")

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.array([max(0, self.least - heavy_atoms(m)[self.element]) for m in molecules], float)

    def __str__(self) -> str:
        return f"contains {self.element}" if self.least == 1 else f"contains {self.least} {self.element}"


@dataclass(frozen=True)
class Without(Want):
    """No atom of an element: never drawn at all. Raises ValueError for an unknown element."""

    element: str

    def __post_init__(self) -> None:
        check_element(self.element)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.array([heavy_atoms(m)[self.element] for m in molecules], float)

    def __str__(self) -> str:
        return f"without {self.element}"


@dataclass(frozen=True)
class Formula(Want):
    """Exactly this molecular formula, hydrogens included: Formula("C6H6O"). Raises ValueError where it is none."""

    formula: str

    def __post_init__(self) -> None:
        parse_formula(self.formula)

    @property
    def heavy(self) -> Counter[str]:
        """Atoms of each element but hydrogen."""
        return Counter({k: n for k, n in parse_formula(self.formula).items() if k != "H"})

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """How many atoms are missing or too many."""
        wanted = parse_formula(self.formula)
        return np.array([np.nan if m.rdkit is None else distance(all_atoms(m), wanted) for m in molecules])

    def __str__(self) -> str:
        return f"formula {self.formula}"


@dataclass(frozen=True)
class Composition(Want):
    """Heavy atoms in the proportions of a formula, in any number: Composition("C4N") is met by 4 C and 1 N, 8 C and 2
    N. Raises ValueError where it is no formula, or one of hydrogen alone."""

    formula: str

    def __post_init__(self) -> None:
        if not self.unit:
            raise ValueError(f"a composition counts heavy atoms, which {self.formula!r} has none of")

    @property
    def unit(self) -> Counter[str]:
        """The least whole numbers in these proportions."""
        heavy = {k: n for k, n in parse_formula(self.formula).items() if k != "H"}
        divisor = math.gcd(*heavy.values()) if heavy else 1
        return Counter({k: n // divisor for k, n in heavy.items()})

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """How many atoms are missing or too many for the nearest multiple."""
        unit, out = self.unit, []
        for m in molecules:
            found = heavy_atoms(m)
            times = range(1, sum(found.values()) + 2)
            out.append(min(distance(found, Counter({k: n * v for k, n in unit.items()})) for v in times))
        return np.array(out, float)

    def __str__(self) -> str:
        return f"composition {self.formula}"


@dataclass(frozen=True)
class Keep(Want):
    """Grown from a scaffold, whose atoms and bonds stay as they are; new atoms bond to it where valence allows.

    scaffold: SMILES. Raises ValueError where it cannot be held.
    """

    scaffold: str

    def __post_init__(self) -> None:
        _ = self.molecule

    @property
    def molecule(self) -> Molecule:
        try:
            return Molecule.from_smiles(self.scaffold)
        except MoleculeError as error:
            raise ValueError(f"the scaffold {self.scaffold!r} cannot be kept: {error}") from error

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """0 where the scaffold is a substructure, aromatic or as its Kekule bonds, else 1."""
        aromatic, kekule = Chem.MolFromSmiles(self.scaffold), _plain(self.molecule)
        there = lambda m: m.rdkit.HasSubstructMatch(aromatic) or _plain(m).HasSubstructMatch(kekule)
        return np.array([np.nan if m.rdkit is None else float(not there(m)) for m in molecules])

    def __str__(self) -> str:
        return f"keep {self.scaffold}"


@dataclass(frozen=True)
class Wants:
    """All of several wants. Raises ValueError where two contradict each other."""

    parts: tuple[Want, ...]

    def __post_init__(self) -> None:
        for i, part in enumerate(self.parts):
            if not isinstance(part, Want):
                raise ValueError(f"{part!r} is not a want, such as Above('qed', .5)")
            for other in self.parts[:i]:
                _check_together(other, part)

    def __and__(self, other: "Want | Wants") -> "Wants":
        return Wants(self.parts + (other.parts if isinstance(other, Wants) else (other,)))

    def __str__(self) -> str:
        return " & ".join(map(str, self.parts))


def wants(where: "Want | Wants | Sequence[Want]") -> Wants:
    """One want, several joined by &, or a list of them, as Wants."""
    if isinstance(where, Wants):
        return where
    return Wants((where,) if isinstance(where, Want) else tuple(where))


def _check_together(a: Want, b: Want) -> None:
    clash = False
    if isinstance(a, Interval | Maximize) and isinstance(b, Interval | Maximize) and a.name == b.name:
        if (a.property != b.property) and not (isinstance(a.property, str) and isinstance(b.property, str)):
            raise ValueError(f"two properties have the name {a.name!r}: give your function another one")
        if isinstance(a, Interval) and isinstance(b, Interval):
            clash = max(a.low, b.low) > min(a.high, b.high)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Without):
            clash = clash or one.element in elements(other)
        if isinstance(one, Formula):
            clash = clash or (isinstance(other, Contains) and one.heavy[other.element] < other.least)
    clash = clash or (isinstance(a, Keep) and isinstance(b, Keep))
    clash = clash or (isinstance(a, Formula) and isinstance(b, Formula) and a.formula != b.formula)
    if clash:
        raise ValueError(f"{a} and {b} cannot both be met: take one of them away")


def elements(want: Want) -> set[str]:
    """The heavy elements without which a want cannot be met."""
    match want:
        case Contains():
            return {want.element}
        case Keep():
            return set(heavy_atoms(want.molecule))
        case Formula():
            return set(want.heavy)
        case Composition():
            return set(want.unit)
    return set()


ELEMENTS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(k) for k in range(1, 119))


def check_element(symbol: str) -> None:
    """Raise ValueError where there is no such element."""
    if symbol not in ELEMENTS:
        raise ValueError(f"unknown element {symbol!r}: write its symbol, as in 'Cl'")


def parse_formula(formula: str) -> Counter[str]:
    """Counter(C=6, H=6, O=1) of "C6H6O". Raises ValueError where it is not a formula of known elements."""
    if not re.fullmatch(r"([A-Z][a-z]?[0-9]*)+", formula):
        raise ValueError(f"{formula!r} is not a formula such as C6H6O")
    counts: Counter[str] = Counter()
    for symbol, number in re.findall(r"([A-Z][a-z]?)([0-9]*)", formula):
        check_element(symbol)
        counts[symbol] += int(number or 1)
    return +counts


def heavy_atoms(molecule: Molecule) -> Counter[str]:
    """Atoms by element, hydrogens left out; of an invalid molecule too."""
    return Counter(parse_class(a)[0] for a in molecule.atoms)


def all_atoms(molecule: Molecule) -> Counter[str]:
    """Atoms by element of a valid molecule, implicit hydrogens counted."""
    return heavy_atoms(molecule) + Counter(H=sum(a.GetTotalNumHs() for a in molecule.rdkit.GetAtoms()))


def distance(a: Counter[str], b: Counter[str]) -> int:
    """How many atoms must go or come to make one of the other."""
    return sum(abs(a[k] - b[k]) for k in a.keys() | b.keys())


def _plain(molecule: Molecule) -> Chem.Mol:
    """Elements, charges and Kekule bonds alone, nothing perceived, to be matched as a graph."""
    mol = Chem.RWMol()
    for name in molecule.atoms:
        symbol, charge = parse_class(name)
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    for i, j in zip(*np.nonzero(np.tril(molecule.bonds)), strict=True):
        mol.AddBond(int(i), int(j), (None, *map(Chem.BondType.values.get, (1, 2, 3)))[molecule.bonds[i, j]])
    return mol.GetMol()
