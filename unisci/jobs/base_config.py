"""What the configurations of all jobs share."""

from pydantic import BaseModel, ConfigDict, Field

from unisci.training.fit import FitConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the fix."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingConfig(Strict):
    """See unisci.training.fit.FitConfig; validate_samples: molecules drawn at each validation."""

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(200, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.9995, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=0)
    validate_every: int = Field(0, ge=0)
    validate_samples: int = Field(200, ge=1)

    def fit_config(self) -> FitConfig:
        """The part that the training loop reads."""
        return FitConfig(**self.model_dump(exclude={"validate_samples"}))
