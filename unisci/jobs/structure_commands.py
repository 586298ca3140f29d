"""What the command line does with molecules in space: `unisci conformers`, and their part of `unisci generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from unisci.jobs.base_config import ConfigError

if TYPE_CHECKING:
    from unisci.design.structure_designer import StructureDesigner

WEIGHTS = "molecules3d-qm9"


def conformers(
    molecules: Annotated[
        list[str], typer.Argument(help="SMILES, with stereochemistry or without, or a .smi or .csv file of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, new or of the same run.")],
    n: Annotated[int, typer.Option("--n", "-n", help="Conformers of each molecule.")] = 10,
    weights: Annotated[str, typer.Option(help="Shipped weights or a .safetensors file.")] = WEIGHTS,
    seed: Annotated[int, typer.Option(help="Conformer i of a molecule and a seed is always the same.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Network calls a conformer; default: what the card was measured at.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
) -> None:
    """Conformers of molecules into a folder: conformers.sdf, conformers.xyz, samples.parquet, conformers.png,
    conformers.html, manifest.json.

    Of several molecules, those that cannot be placed are rows of samples.parquet with the reason. The same command
    again continues a run that was interrupted.
    """
    from unisci.design.structure_designer import StructureDesigner
    from unisci.design.structure_samples import StructureSamples
    from unisci.jobs.models import load
    from unisci.jobs.references import read_smiles
    from unisci.jobs.structure_runs import ConformerRun, files
    from unisci.jobs.structure_runs import conformers as run

    designer = load(weights, device)
    if not isinstance(designer, StructureDesigner):
        raise ConfigError(f"{weights} places no molecules in space: take {WEIGHTS}, or others that do")
    read = lambda text: [s for _, s in read_smiles(text)] if Path(text).is_file() else [text]
    smiles = tuple(s for text in molecules for s in read(text))
    settled = ConformerRun(weights, designer.hash, smiles, n, seed, designer.steps if steps is None else steps)
    with tqdm(total=settled.total, unit=" molecules", disable=None) as bar:
        for _ in run(designer, settled, out, lambda done: bar.update(done - bar.n)):
            pass
    samples = StructureSamples.from_parquet(out / "samples.parquet")
    typer.echo(f"{len(samples.valid())} conformers in {out}: {', '.join(files(out, 'conformers'))}")
    bad = samples.table[~samples.table["valid"]]
    for (text, reason), rows in bad.groupby(["input", "reason"], sort=False):
        typer.echo(f"{text}: {len(rows)} without positions: {reason}", err=True)


def generate_structures(designer: "StructureDesigner", weights: str, out: Path, told: dict) -> None:
    """`unisci generate` by a designer of molecules in space. told: n, seed, steps, batch_size, at_once, and where,
    particles, push where something is wanted."""
    from unisci.design.structure_designer import AT_ONCE
    from unisci.jobs.structure_runs import StructureRun, files
    from unisci.jobs.structure_runs import generate as run

    size, steps = told.pop("batch_size"), told.pop("steps")
    if steps is None:
        steps = AT_ONCE if told["at_once"] else designer.steps
    settled = StructureRun(weights, designer.hash, steps=steps, **told)
    with tqdm(total=settled.total, unit=" molecules", disable=None) as bar:
        for _ in run(designer, settled, out, lambda done: bar.update(done - bar.n), size):
            pass
    typer.echo(f"{settled.total} samples in {out}: {', '.join(files(out, 'molecules'))}")
