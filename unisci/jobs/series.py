"""The job that trains a forecaster on the series of several sources, and judges it by what was held out of them."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

import torch
from torch import nn

from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.mixed import Mixed, slots
from unisci.forecasting.moments import Moments
from unisci.forecasting.temperature import WINDOWS, temperature
from unisci.forecasting.trained import Trained, build
from unisci.forecasting.window_model import Patterns, WindowModel
from unisci.forecasting.windows import Source, WindowShape
from unisci.jobs.config import ConfigError, MLPConfig, SeriesJob, StateSpaceConfig, TransformerConfig
from unisci.jobs.data import write_json
from unisci.jobs.series_data import Held, fingerprint
from unisci.jobs.series_models import NAME, load, save
from unisci.metrics.metric import Metric
from unisci.networks.state_space import WindowStateSpaceConfig
from unisci.networks.window_inputs import WindowConfig
from unisci.networks.window_mlp import WindowMLPConfig
from unisci.networks.window_transformer import WindowTransformerConfig
from unisci.rng import Rng
from unisci.training.data import GROUP
from unisci.training.fit import fit

NETWORKS = {MLPConfig: WindowMLPConfig, TransformerConfig: WindowTransformerConfig}
NETWORKS |= {StateSpaceConfig: WindowStateSpaceConfig}
Scores = dict[str, dict[str, dict[str, Metric]]]  # by source, model and metric


def run(job: SeriesJob, progress: bool = True) -> Path:
    """Train, resuming what the folder holds; writes <out>/model.safetensors and <out>/report.md, returns the folder.

    Raises ConfigError where the folder is of another configuration or other series, or a source cannot be used.
    """
    network, patterns = network_of(job), Patterns(**job.patterns.model_dump())  # refused before the data are read
    held = [Held.of(source) for source in job.data]
    resumable(job)
    job.out.mkdir(parents=True, exist_ok=True)
    trained = train(job, held, network, patterns, progress)
    card = {"data": [{"source": h.name} | h.counts() for h in held], "training": job.training.model_dump()}
    card |= {"network": job.network.model_dump(), "shape": job.shape.model_dump()}
    card["parameters"] = sum(p.numel() for p in trained.model.parameters())
    save(job.out / "model.safetensors", trained, card)
    # Judged as users have it, in half precision.
    scores, reasons = judged(job, held, load(job.out / "model.safetensors"))
    card["held out"] = {s: {m: _numbers(rows) for m, rows in both.items()} for s, both in scores.items()}
    save(job.out / "model.safetensors", trained, card)
    (job.out / "report.md").write_text(report(scores, reasons))
    return job.out


def train(job: SeriesJob, held: list[Held], network: WindowConfig, patterns: Patterns, progress: bool) -> Trained:
    """The averaged model of <out>/checkpoints."""
    shape = WindowShape(job.shape.context, job.shape.horizon, len(held[0].train.channels))
    dated = [Moments.of(h.train) for h in held if h.train.freq != "1"]
    moments = reduce(Moments.without, dated) if dated else Moments.of(held[0].train)  # of no covariates
    try:
        sources = [Source.of(h.train, 0, moments) for h in held]
        mixed = Mixed.of(sources, shape, [h.weight for h in held])
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    write_json(job.out / "job.json", identity(job))
    torch.manual_seed(job.training.seed)
    model = build(network, shape, mixed.source, patterns)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    one = lambda values: next(iter(values)) if len(values) == 1 else None
    about = {"channels": one({h.train.channels for h in held}), "freq": one({h.train.freq for h in held})}
    as_trained = lambda model: Trained(model, moments=moments, steps=job.sample.steps, card={}, **about)
    validate = partial(_validate, job=job, held=held, as_trained=as_trained)
    data = slots(GROUP * job.training.batch_size)
    config = job.training.fit_config()
    averaged = fit(model, data, config, job.out / "checkpoints", mixed, validate, progress)
    rng = Rng(config.seed, torch.arange(WINDOWS))
    c = temperature(averaged.cpu(), mixed(slots(WINDOWS), rng), job.sample.steps, config.seed)
    return replace(as_trained(averaged), temperature=c)


def _validate(
    model: nn.Module, job: SeriesJob, held: list[Held], as_trained: Callable[[WindowModel], Trained]
) -> dict[str, float]:
    """wQL of each source's held-out steps, to log."""
    assert isinstance(model, WindowModel)
    scores, _ = judged(job, held, Forecaster.of(as_trained(deepcopy(model).cpu()), NAME))
    return {f"{source} wql": both[NAME]["wql"].value for source, both in scores.items()}


def judged(job: SeriesJob, held: list[Held], forecaster: Forecaster) -> tuple[Scores, dict[str, str]]:
    """The metrics of the forecaster and of the seasonal naive forecast, of the sources that hold steps out; and why
    others have none, such as held-out steps without a value."""
    found, reasons, c = {}, {}, job.sample
    for h in held:
        try:
            both = h.judge(forecaster, job.training.validate_samples, c.n, c.seed) if h.hold_out else {}
            found[h.name] = {model: {row.name: row for row in rows} for model, rows in both.items()}
        except ValueError as error:
            reasons[h.name] = str(error)
    return {source: both for source, both in found.items() if both}, reasons


def report(scores: Scores, reasons: dict[str, str]) -> str:
    """A table of Markdown, a row for each source and model, and the reasons."""
    names = list(next(iter(next(iter(scores.values())).values()))) if scores else []
    lines = [["source", "model", *names, "windows"], ["---"] * (len(names) + 3)] if scores else []
    for source, both in scores.items():
        for model, rows in both.items():
            numbers = [f"{rows[name].value:.4g}" for name in names]
            lines.append([source, model, *numbers, str(rows["wql"].n)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines) or "nothing was held out that could be judged\n"
    return text + "".join(f"\n{source} is not judged: {reason}\n" for source, reason in reasons.items())


def _numbers(rows: dict[str, Metric]) -> dict[str, float]:
    return {name: round(row.value, 6) for name, row in rows.items()} | {"windows": rows["wql"].n}


def network_of(job: SeriesJob) -> WindowConfig:
    """The sizes of the network, without those of its windows. Raises ValueError where they do not fit each other."""
    return NETWORKS[type(job.network)](length=1, **job.network.model_dump(exclude={"kind"}))


def resumable(job: SeriesJob) -> None:
    """Raises ConfigError where the folder holds a run of another configuration or other series."""
    path = job.out / "job.json"
    if path.is_file() and json.loads(path.read_text()) != identity(job):
        raise ConfigError(
            f"{job.out} holds a run of another configuration or other series ({path}): choose another out, or delete it"
        )


def identity(job: SeriesJob) -> dict:
    """What makes two runs the same: all but where files are and how the model is judged at the end."""
    data = [s.model_dump(mode="json", exclude={"series"}) | {"hash": fingerprint(s)} for s in job.data]
    return job.model_dump(mode="json", exclude={"out", "sample", "data"}) | {"data": data}
