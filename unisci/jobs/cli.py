"""The command line: each command is one function of the Python API with its arguments."""

import contextlib
import csv
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from unisci.jobs.config import ConfigError, CrystalJob, MoleculeJob, PropertyJob, SeriesJob, read_job
from unisci.jobs.forecast_commands import backtest, forecast
from unisci.jobs.structure_commands import conformers, generate_structures
from unisci.jobs.structure_config import StructureJob

if TYPE_CHECKING:
    from unisci.design.crystal_designer import CrystalDesigner

app = typer.Typer(
    name="unisci",
    help="Generate molecules and crystals, and forecast time series, by diffusion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Weights = Annotated[str, typer.Argument(help="Shipped weights (see `unisci list`) or a .safetensors file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, new or of the same run.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]


@app.command()
def generate(
    weights: Weights,
    out: Out,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 100,
    seed: Annotated[int, typer.Option(help="Sample i of a seed is always the same.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Network calls a block; default: what the card was measured at.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples at once; default: by memory. Changes no sample.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes. Changes no sample.")] = 1,
    device: Device = "cpu",
    where: Annotated[
        str | None, typer.Option(help="What is wanted, as: Between(logp, 1, 2) & Above(qed, .55) & Keep('c1ccoc1').")
    ] = None,
    particles: Annotated[int, typer.Option(help="With --where: molecules grown for each one kept.")] = 4,
    push: Annotated[float, typer.Option(help="With --where: strength of the gradient; 0 is particles alone.")] = 1.0,
    composition: Annotated[
        list[str] | None, typer.Option(help="Crystals: a formula such as SrTiO3, again for another; none: new ones.")
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(help="Crystals: known ones to start from, a folder of CIFs or a table; none: no one's."),
    ] = None,
    spacegroup: Annotated[int | None, typer.Option(help="Crystals: the number of the space group to take.")] = None,
    element: Annotated[list[str] | None, typer.Option(help="New crystals: an element they may have.")] = None,
    units: Annotated[int | None, typer.Option(help="Crystals: formula units in the primitive cell.")] = None,
    relax: Annotated[bool, typer.Option(help="Crystals: relax with CHGNet.")] = False,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Molecules in space: atoms, bonds and positions all together.")
    ] = False,
) -> None:
    """Draw molecules into a folder: samples.parquet, molecules.smi, molecules.sdf, molecules.png, manifest.json, and
    with --where hit_rates.csv; in space also molecules.html. Or crystals: samples.parquet, samples.csv, cif/,
    crystals.extxyz, crystals.html.

    The same command again continues a run that was interrupted.
    """
    from unisci.design.crystal_designer import CrystalDesigner
    from unisci.design.parse import spelled
    from unisci.design.structure_designer import StructureDesigner
    from unisci.forecasting.forecaster import Forecaster
    from unisci.jobs.models import load
    from unisci.jobs.runs import generate as run

    designer = load(weights, device)
    if isinstance(designer, Forecaster):
        raise ConfigError(f"{weights} forecasts series: use `unisci forecast DATA --weights {weights}`")
    if at_once and not isinstance(designer, StructureDesigner):
        raise ConfigError(f"--at-once: for molecules in space, which {weights} does not draw")
    told = {"composition": composition, "templates": templates, "spacegroup": spacegroup, "element": element}
    told |= {"units": units, "relax": relax}
    if isinstance(designer, CrystalDesigner):
        wanted = {} if where is None else {"where": spelled(where), "particles": particles}
        _generate_crystals(designer, weights, out, n, seed, steps, told | wanted)
        return
    if given := [f"--{k}" for k, v in told.items() if v]:
        raise ConfigError(f"{', '.join(given)}: for crystals only, and {weights} draws molecules")
    if isinstance(designer, StructureDesigner):
        if workers > 1:
            raise ConfigError("--workers: molecules in space are drawn by one process")
        wanted = {} if where is None else {"where": spelled(where), "particles": particles, "push": push}
        wanted |= {"n": n, "seed": seed, "steps": steps, "batch_size": batch_size, "at_once": at_once}
        with _interruptible():
            generate_structures(designer, weights, out, wanted)
        _say_hit_rates(out)
        return
    with _interruptible(), tqdm(total=n, unit=" molecules", disable=None) as bar:
        told = lambda done: bar.update(done - bar.n)
        for _ in run(weights, n, out, seed, steps, batch_size, workers, device, told, where, particles, push):
            pass
    names = ("samples.parquet", "molecules.smi", "molecules.sdf", "molecules.png", "hit_rates.csv", "manifest.json")
    typer.echo(f"{n} samples in {out}: {', '.join(name for name in names if (out / name).is_file())}")
    _say_hit_rates(out)


def _say_hit_rates(out: Path) -> None:
    """What share of a run's samples meets what was wanted, if anything was."""
    if not (out / "hit_rates.csv").is_file():
        return
    for row in csv.DictReader((out / "hit_rates.csv").open()):
        share, low, high = (float(row[k]) for k in ("share", "low", "high"))
        typer.echo(f"{row['want']}: met by {share:.1%} ({low:.1%} to {high:.1%}) of {row['n']}")


def _generate_crystals(
    designer: "CrystalDesigner", weights: str, out: Path, n: int, seed: int, steps: int | None, told: dict
) -> None:
    from unisci.jobs.crystal_runs import FILES, CrystalRun
    from unisci.jobs.crystal_runs import generate as run

    named = {"composition": tuple(told.pop("composition") or ()), "elements": tuple(told.pop("element") or ())}
    settled = CrystalRun(weights, designer.hash, n, seed, steps or designer.steps, **named, **told)
    with _interruptible(), tqdm(total=settled.total, unit=" crystals", disable=None) as bar:
        for _ in run(designer, settled, out, lambda done: bar.update(done - bar.n)):
            pass
    typer.echo(f"{settled.total} samples in {out}: {', '.join(name for name in FILES if (out / name).exists())}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A YAML job, such as configs/molecules_tiny.yaml.")],
) -> None:
    """Train a generator, model of properties or forecaster by a YAML job. Change keys by --key value.

    As in: unisci train configs/molecules_tiny.yaml --training.steps 500

    A run that was interrupted continues. On several devices: torchrun --nproc-per-node 4 -m unisci train CONFIG.
    """
    from unisci.jobs import crystals, molecules, properties, series, structures

    job = read_job(config, context.args)
    kinds = {MoleculeJob: molecules, PropertyJob: properties, StructureJob: structures, CrystalJob: crystals}
    kinds |= {SeriesJob: series}
    with _interruptible():
        folder = kinds[type(job)].run(job)
    if isinstance(job, SeriesJob):
        typer.echo((folder / "report.md").read_text(), nl=False)
    typer.echo(f"weights in {folder / 'model.safetensors'}")


@app.command()
def evaluate(
    samples: Annotated[
        Path, typer.Argument(help="A folder of `unisci generate`, a samples.parquet, a .smi or a .csv file.")
    ],
    reference: Annotated[str | None, typer.Option(help="Compare with qm9, nci, or a file of SMILES.")] = None,
    fcd: Annotated[
        bool | None, typer.Option(help='The Fréchet ChemNet distance; default: if the extra "metrics" is installed.')
    ] = None,
) -> None:
    """Validity, uniqueness, novelty, distributions and distances, each with its interval, n and failures."""
    from unisci.jobs.evaluate import evaluate as judge
    from unisci.metrics.metric import markdown

    if fcd is None:
        fcd = find_spec("fcd_torch") is not None
        if reference and not fcd:
            typer.echo("without the Fréchet ChemNet distance, which needs: pip install 'unisci[metrics]'", err=True)
    typer.echo(markdown(judge(samples, reference, fcd)), nl=False)


@app.command()
def verify(
    weights: Weights,
    n: Annotated[int, typer.Option("--n", "-n", help="Samples to draw.")] = 500,
) -> None:
    """Draw samples again and compare with the numbers of the weights' card; exit code 1 where they differ."""
    from unisci.jobs import series_models
    from unisci.jobs.evaluate import verify as check
    from unisci.jobs.models import find_weights
    from unisci.jobs.weights_file import form

    if form(find_weights(weights)) == series_models.FORMAT:
        raise ConfigError(f"{weights} forecasts series: judge it by `unisci backtest DATA --weights {weights}`")
    checks = check(weights, n)
    for c in checks:
        mark = "holds" if c.holds else "DIFFERS"
        typer.echo(f"{c.name}: card {c.card:.4f}, now {c.measured:.4f} ({c.low:.4f} to {c.high:.4f}, n = {n}): {mark}")
    if not all(c.holds for c in checks):
        raise typer.Exit(1)


@app.command("list")
def list_weights() -> None:
    """The weights that come with the package."""
    from unisci.jobs.models import card_of, shipped

    for name, path in shipped().items():
        card = card_of(path)
        typer.echo(f"{name}\t{path.stat().st_size / 2**20:.1f} MB\t{card.get('summary', '')}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    # Inside the commands, for typer turns an interrupt that reaches it into an exit without a word.
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: what is done is in the folder, the same command continues", err=True)
        raise typer.Exit(130) from None


for command in (conformers, forecast, backtest):
    app.command()(_interruptible()(command))


def main() -> None:
    """Entry point: expected errors become one line and exit code 2, an interrupt 130."""
    try:
        app()
    except (ConfigError, ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        typer.echo(f"unisci: {error}", err=True)
        sys.exit(2)
