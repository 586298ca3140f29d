"""How many SMILES of a file survive SMILES -> Molecule -> Batch -> Molecule -> SMILES, and why the others do not.

python benchmarks/round_trip.py qm9 [--limit 100000] [--every 1]
"""

import argparse
from collections import Counter

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.jobs.references import read_smiles
from unisci.metrics.molecules import canonical


def round_trip(smiles: list[str]) -> Counter[str]:
    """Counts of "same", "differs" and each reason for a rejection."""
    counts: Counter[str] = Counter()
    expected, molecules = [], []
    for text in smiles:
        try:
            molecules.append(Molecule.from_smiles(text))
            expected.append(canonical(text)[0])
        except MoleculeError as error:
            counts[str(error)] += 1
    for k in range(0, len(molecules), 1000):
        back = Molecule.unbatch(Molecule.batch(molecules[k : k + 1000]))
        for molecule, text in zip(back, expected[k : k + 1000], strict=True):
            counts["same" if molecule.smiles == text else "differs"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .smi or .csv file, or an embedded set")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--every", type=int, default=1)
    a = parser.parse_args()
    smiles = [s for _, s in read_smiles(a.source)][:: a.every][: a.limit]
    counts = round_trip(smiles)
    print(f"{a.source}: {len(smiles)} SMILES, {100 * counts['same'] / len(smiles):.3f} % survive; {dict(counts)}")


if __name__ == "__main__":
    main()
