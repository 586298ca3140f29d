"""Typed configurations of jobs, read from YAML. An unknown key is an error that names it."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from unisci.jobs.base_config import ConfigError, Strict, TrainingConfig
from unisci.jobs.structure_config import StructureJob


class NetworkConfig(Strict):
    """Sizes of a graph transformer; product = 0 leaves the edge product out."""

    width: int = Field(96, ge=4)
    pair_width: int = Field(32, ge=4)
    layers: int = Field(5, ge=1)
    heads: int = Field(6, ge=1)
    product: int = Field(16, ge=0)


class ModelConfig(Strict):
    """Pard (arXiv 2402.03687): hops of the order (0 = one shot), the noise, the denoiser, the head of block sizes, and
    the properties that it is told: columns of the data's table, "qed", "logp", "sa", "mass", or RDKit's descriptors."""

    hops: int = Field(1, ge=0, le=8)
    noise: Literal["marginal", "absorbing", "uniform"] = "marginal"
    denoiser: NetworkConfig = NetworkConfig()
    head: NetworkConfig = NetworkConfig(width=48, pair_width=24, layers=3, heads=4, product=8)
    causal: bool = False
    parallel: bool = False
    condition: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _parallel_is_causal(self) -> "ModelConfig":
        # Training all blocks at once hides later blocks; a network that sees them when it draws was never trained so.
        if self.parallel and not self.causal:
            raise ValueError("parallel training needs causal sight: set causal: true beside parallel: true")
        return self


class DataConfig(Strict):
    """smiles: a .smi, .csv or .parquet file, or an embedded set, "nci" or "qm9"; every `hold_out`-th row is kept for
    validation (0 = none); the job refuses to start where more than `max_rejected` of the rows cannot be held."""

    smiles: str = "nci"
    column: str | None = None
    hold_out: int = Field(25, ge=0)
    limit: int | None = Field(None, ge=1)
    max_atoms: int = Field(64, ge=1, le=64)
    max_rejected: float = Field(0.05, ge=0, le=1)


class SampleConfig(Strict):
    """n molecules after training (0 = none), with `steps` network calls a block."""

    n: int = Field(100, ge=0)
    steps: int = Field(12, ge=1)
    seed: int = Field(0, ge=0)


class MoleculeJob(Strict):
    """Train a generator of molecules on SMILES, then draw from it. start: weights to begin from, by name or file, of
    the same model up to conditions."""

    job: Literal["molecules"]
    out: Path
    start: str | None = None
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    sample: SampleConfig = SampleConfig()


class PropertyJob(Strict):
    """Train a noise-aware model of molecules' properties, for steering a generator of the same hops, noise and data.

    properties: columns of the data's table, "qed", "logp", "sa", "mass", or names of RDKit descriptors; every
    `hold_out`-th row judges it.
    """

    job: Literal["properties"]
    out: Path
    data: DataConfig = DataConfig()
    properties: tuple[str, ...] = Field(("logp", "qed"), min_length=1)
    hops: int = Field(1, ge=0, le=8)
    noise: Literal["marginal", "absorbing", "uniform"] = "marginal"
    network: NetworkConfig = NetworkConfig(width=64, pair_width=24, layers=3, heads=4, product=8)
    training: TrainingConfig = TrainingConfig()


class CrystalDataConfig(Strict):
    """crystals: "aflow" (AFLOW's prototypes), a .npz of saved templates, or a folder, .cif, .csv, .parquet or .extxyz,
    see unisci.domains.crystal_files; validation: the same, or none; templates: known crystals beside each one.

    Crystals of more than most_sites in the primitive cell are rejected; the job refuses to start where more than
    `max_rejected` of a source cannot be used.
    """

    crystals: str
    validation: str | None = None
    most_sites: int = Field(20, ge=1, le=64)
    templates: int = Field(5, ge=1)
    workers: int = Field(2, ge=1)
    max_rejected: float = Field(0.05, ge=0, le=1)


class OrbitTraining(TrainingConfig):
    """validate_samples: crystals of data.validation that judge the model."""

    steps: int = Field(5000, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    ema: float = Field(0.998, ge=0, lt=1)
    validate_samples: int = Field(2000, ge=1)


class RefinerTraining(TrainingConfig):
    steps: int = Field(15_000, ge=1)
    lr: float = Field(1.5e-3, gt=0)


class OrbitsConfig(Strict):
    """Sizes of the two transformers of unisci.autoregression.orbits."""

    width: int = Field(128, ge=1)
    layers: int = Field(4, ge=1)
    heads: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    training: OrbitTraining = OrbitTraining()


class RefinerConfig(Strict):
    """Sizes of an AtomTransformer; without: the share of training examples that see no template; parts: of these, the
    share that learns a part of the sites from another, for drawing in blocks."""

    width: int = Field(96, ge=1)
    layers: int = Field(4, ge=1)
    heads: int = Field(8, ge=1)
    without: float = Field(0.4, ge=0, le=1)
    parts: float = Field(0.0, ge=0, le=1)
    training: RefinerTraining = RefinerTraining()


class RankersConfig(Strict):
    """count networks of seeds 0, 1, ..., whose scores are averaged; 0: templates come in the order of chemistry."""

    count: int = Field(4, ge=0)
    epochs: int = Field(10, ge=1)


class CrystalJob(Strict):
    """Train a generator of crystals: what orders orbits, what refines sites, what ranks templates, in this order."""

    job: Literal["crystals"]
    out: Path
    data: CrystalDataConfig
    orbits: OrbitsConfig = OrbitsConfig()
    refiner: RefinerConfig = RefinerConfig()
    rankers: RankersConfig = RankersConfig()


class TableConfig(Strict):
    """Series of a table. series: a .csv or .parquet file, or an embedded set, "synthetic" or "eeg"; freq, id, time,
    targets: as unisci.domains.series_frames.read_frame, found where they are not given; wide: each target, or each
    column of numbers, is a series of its own; counted: rows are one step after another, columns of dates not used;
    missing: numbers that stand for a value not taken, such as -9999."""

    series: str
    freq: str | None = Field(None, coerce_numbers_to_str=True)
    id: str | None = None
    time: str | None = None
    targets: tuple[str, ...] = ()
    wide: bool = False
    counted: bool = False
    missing: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _columns_agree(self) -> "TableConfig":
        if self.wide and self.id is not None:
            raise ValueError("wide: each column is a series, so that there is no id: leave one of them out")
        if self.counted and self.time is not None:
            raise ValueError("counted: rows have no times, so that no column is time: leave one of them out")
        return self


class SourceConfig(TableConfig):
    """hold_out: the last steps of every series, kept from training to judge it; weight: how often windows are of this
    source, beside the others' weights; season: in steps, for the seasonal naive forecast; that of freq where None."""

    hold_out: int = Field(0, ge=0)
    weight: float = Field(1.0, gt=0)
    season: int | None = Field(None, ge=1)


class WindowConfig(Strict):
    """Steps that a forecast sees, and steps that it is of."""

    context: int = Field(168, ge=1)
    horizon: int = Field(24, ge=1)


class MLPConfig(Strict):
    """See unisci.networks.window_mlp; anchored: see unisci.forecasting.anchors."""

    kind: Literal["mlp"] = "mlp"
    anchored: bool = False
    width: int = Field(256, ge=1)
    hidden: int = Field(512, ge=1)
    blocks: int = Field(4, ge=1)
    condition: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class TransformerConfig(Strict):
    """See unisci.networks.window_transformer."""

    kind: Literal["transformer"]
    patch: int = Field(8, ge=1)
    width: int = Field(96, ge=1)
    layers: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    hidden: int = Field(288, ge=1)


class StateSpaceConfig(Strict):
    """See unisci.networks.state_space."""

    kind: Literal["state_space"]
    width: int = Field(64, ge=1)
    blocks: int = Field(3, ge=1)
    modes: int = Field(64, ge=1)


class PatternsConfig(Strict):
    """What is known of training windows, see unisci.forecasting.window_model.Patterns."""

    gaps: float = Field(0.1, ge=0, le=1)
    nothing: float = Field(0.1, ge=0, le=1)
    shorter: float = Field(0.1, ge=0, le=1)
    splits: bool = False


class SeriesTraining(TrainingConfig):
    """validate_samples: most held-out windows of each source that judge the model."""

    steps: int = Field(2500, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: int = Field(100, ge=0)
    ema: float = Field(0.998, ge=0, lt=1)


class PathsConfig(Strict):
    """steps: network calls a path, here and of the weights; n paths of each held-out window judge the model."""

    n: int = Field(100, ge=19)
    steps: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)


class SeriesJob(Strict):
    """Train one forecaster on the series of all sources, which have as many channels but any frequency."""

    job: Literal["series"]
    out: Path
    data: tuple[SourceConfig, ...] = Field(min_length=1)
    shape: WindowConfig = WindowConfig()
    network: MLPConfig | TransformerConfig | StateSpaceConfig = Field(MLPConfig(), discriminator="kind")
    patterns: PatternsConfig = PatternsConfig()
    training: SeriesTraining = SeriesTraining()
    sample: PathsConfig = PathsConfig()

    @model_validator(mode="after")
    def _held_out_is_a_horizon(self) -> "SeriesJob":
        for source in self.data:
            if 0 < source.hold_out < self.shape.horizon:
                raise ValueError(
                    f"data: {source.series} holds out {source.hold_out} steps: give 0, or at least the horizon of "
                    f"{self.shape.horizon}"
                )
        return self


Job = MoleculeJob | PropertyJob | StructureJob | CrystalJob | SeriesJob


def read_job(path: Path, overrides: list[str] = ()) -> Job:
    """The job of a YAML file, changed by overrides such as ["--training.steps", "500"] or ["--training.steps=500"].

    Raises ConfigError where the file, a key or a value is wrong.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    for key, value in _pairs(list(overrides)):
        _put(values, key, value)
    try:
        return _job_class(values, path).model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or path.name}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path} cannot be used:\n" + "\n".join(lines)) from error


def _job_class(values: dict, path: Path) -> type[Job]:
    known = {"molecules": MoleculeJob, "properties": PropertyJob, "molecules3d": StructureJob, "crystals": CrystalJob}
    known |= {"series": SeriesJob}
    if values.get("job") not in known:
        raise ConfigError(f"{path} cannot be used:\n  job: one of {sorted(known)}, got {values.get('job')!r}")
    return known[values["job"]]


def _pairs(words: list[str]) -> list[tuple[str, Any]]:
    pairs = []
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not key.startswith("--") or (not equals and not words):
            raise ConfigError(f"{key!r} is not an override: write --key value, as in --training.steps 500")
        text = value if equals else words.pop(0)
        try:
            pairs.append((key[2:], yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise ConfigError(f"{key} {text}: the value is not YAML: {error}") from error
    return pairs


def _put(values: dict, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--{key}: {name} is a value, not a group of keys")
    values[last] = value
