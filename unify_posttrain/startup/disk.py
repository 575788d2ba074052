"""What a run's checkpoints take of the disk.

verl's FSDPCheckpointManager writes, per `checkpoint.save_contents`: `model`, the weights as they are stored (float32), each rank
its share; `optimizer`, Adam's two moments likewise; `hf_model`, the weights once more, whole; `extra`, a few kB. We write the
moments of a replayed step beside them (`FusionWorker.save_checkpoint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from unify_posttrain.startup.memory import RankPlan, Trained


@dataclass(frozen=True)
class Checkpoints:
    """Bytes of each file group of one checkpoint, how many are written and how many of them stay (None: not known)."""

    contents: Mapping[str, float]
    written: int | None
    kept: int | None

    @property
    def each(self) -> float:
        """Bytes of one."""
        return sum(self.contents.values())


def checkpoints_of(config: DictConfig, plan: RankPlan, steps: int | None) -> Checkpoints:
    """
    Args:
        steps: of the run; None: not known before the data is read.
    """
    contents = contents_of(config, plan.actor, plan.critic, plan.replay)
    frequency, keep = config.trainer.save_freq, config.trainer.get("max_actor_ckpt_to_keep")
    if frequency < 1:
        return Checkpoints(contents, 0, 0)
    written = None if steps is None else -(-steps // frequency)  # the last step is saved, too
    return Checkpoints(contents, written, (keep or None) if written is None else min(keep or written, written))


def contents_of(config: DictConfig, actor: Trained, critic: Trained | None, replay: bool) -> dict[str, float]:
    """Bytes of each file group of one checkpoint.

    Args:
        critic: None: there is none, or its model is not known.
        replay: a fine-tuning step has moments of its own.
    """
    contents = _contents(actor, config.actor_rollout_ref.actor.checkpoint.save_contents)
    if replay:
        contents["moments of the replayed step"] = actor.moments * actor.shards
    if critic is not None:
        of_critic = _contents(critic, config.critic.checkpoint.save_contents)
        contents |= {f"critic's {name}": size for name, size in of_critic.items()}
    return contents


def _contents(model: Trained, saved: list[str]) -> dict[str, float]:
    weights, moments = model.weights * model.shards, model.moments * model.shards
    sizes = {"model": ("weights", weights), "optimizer": ("moments", moments), "hf_model": ("weights for transformers", weights)}
    return dict(sizes[name] for name in sizes if name in saved and sizes[name][1])
