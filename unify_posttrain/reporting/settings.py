"""The numbers of `conf/report.yaml`: how much the page holds, and from where on a value is worth a warning."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from omegaconf import OmegaConf

from unify_posttrain.config import conf_dir


@dataclass(frozen=True)
class Limits:
    """How much the page holds; see conf/report.yaml."""

    chart_points: int
    heat_columns: int
    rollout_steps: int
    rollout_prompts: int
    rollout_rows: int
    validation_steps: int
    validation_prompts: int
    characters: int
    picture_side: int
    picture_quality: int
    picture_bytes: int
    pictures_bytes: int
    picture_pixels: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"{field.name}={value} must be at least 1")

    def shared(self, runs: int) -> Limits:
        """The same page size for several runs: each shows fewer prompts."""
        return replace(
            self,
            rollout_prompts=max(1, self.rollout_prompts // runs),
            validation_prompts=max(1, self.validation_prompts // runs),
        )


@dataclass(frozen=True)
class VerdictRules:
    window: float
    min_change: float
    z: float


@dataclass(frozen=True)
class AlertRules:
    truncated: float
    below_best: float
    missing: float
    correlation: float


@dataclass(frozen=True)
class Settings:
    limits: Limits
    verdict: VerdictRules
    alerts: AlertRules


def load_settings(**limits: int | None) -> Settings:
    """Read `conf/report.yaml`; limits given by name replace its own, None leaves them.

    Raises:
        ValueError: a limit below 1.
    """
    stored = OmegaConf.to_container(OmegaConf.load(conf_dir() / "report.yaml"))
    given = {name: value for name, value in limits.items() if value is not None}
    return Settings(Limits(**stored["limits"] | given), VerdictRules(**stored["verdict"]), AlertRules(**stored["alerts"]))
