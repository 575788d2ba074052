"""The numbers of `conf/grade.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from omegaconf import OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.rewards.grading import check_version


@dataclass(frozen=True)
class Settings:
    """See conf/grade.yaml."""

    workers: int
    timeout_seconds: float
    memory_mb: int
    version: int
    slowest: int
    page_rows: int
    characters: int

    def __post_init__(self) -> None:
        check_version(self.version)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "version" and not value > 0:
                raise ValueError(f"{field.name}={value} must be above 0")


def load_settings(**given: float | None) -> Settings:
    """Read `conf/grade.yaml`; values given by name replace its own, None leaves them.

    Raises:
        ValueError: a value out of range.
    """
    stored = OmegaConf.to_container(OmegaConf.load(conf_dir() / "grade.yaml"))
    return Settings(**stored | {name: value for name, value in given.items() if value is not None})
