"""A checkpoint of a run as a folder that transformers and vLLM load: weights, tokenizer, generation settings, model card."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain import __version__
from unify_posttrain.evaluation.checkpoints import HF, checkpoint, has_hf_weights, load_run_config
from unify_posttrain.evaluation.model_card import model_card
from unify_posttrain.runs import state
from unify_posttrain.untrusted.folders import refuse_links
from unify_posttrain.untrusted.remote_code import refuse_code

logger = logging.getLogger(__name__)

STAMP = "unify_export.json"  # written last: which checkpoint the folder was made from
FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")
NOT_EXPORTED = ("optim_", "extra_state_")  # verl's files of the optimizer, the schedule and random states


class OccupiedError(ValueError):
    """The output folder holds something else."""


def export(run: Path, step: int | str = "latest", output: Path | None = None, dtype: str = "auto", overwrite: bool = False) -> Path:
    """Export a checkpoint; a folder made from the same one with the same settings is kept.

    Args:
        run: folder of a run.
        step: of the checkpoint, or latest.
        output: new folder; None: RUN/export/step_N.
        dtype: of the weights: float32, bfloat16, float16, or auto: that of the run's rollout engine, so that the exported model
            generates as the one that was validated. Full weights in the checkpoint are copied as they are.
        overwrite: replace an output folder that holds another export.

    Returns:
        the output folder.

    Raises:
        ValueError: no such run, an incomplete checkpoint, a folder in the way, code that comes with the model, or weights that do
            not fit the model or are no numbers.
    """
    run = Path(run).expanduser()
    config = load_run_config(run)
    source = checkpoint(run, step)
    number = state.step_of(source)
    target = run / "export" / f"step_{number}" if output is None else Path(output).expanduser()
    dtype = _dtype(dtype, config)
    identity = {"format": FORMAT, "step": number, "dtype": dtype, "checkpoint": _identity(source)}
    if _made_from(target) == identity:
        logger.info("%s is up to date", target)
        return target
    _check_free(target, overwrite)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _write(run, config, source, number, dtype, temporary)
        state.write_json(temporary / STAMP, identity)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("wrote %s", target)
    return target


def cached_export(run: Path, step: int, dtype: str) -> Path:
    """The export of a checkpoint for evaluation: RUN/export/step_N if that is free or the same, else RUN/export/step_N-evaluated,
    so that an export which somebody made in another precision stays.

    Raises:
        ValueError: as :func:`export`.
    """
    own = Path(run).expanduser() / "export" / f"step_{step}-evaluated"
    if own.is_dir():
        return export(run, step, own, dtype, overwrite=True)
    try:
        return export(run, step, dtype=dtype)
    except OccupiedError:
        return export(run, step, own, dtype)


def _check_free(target: Path, overwrite: bool) -> None:
    """Only exports are ever replaced, so that a mistyped output deletes nothing."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / STAMP).is_file():
        raise OccupiedError(f"output={target} holds other files than an export; give another output=…")
    if not overwrite:
        raise OccupiedError(f"output={target} holds another export; give another output=…, or overwrite=true to replace it")


def _dtype(dtype: str, config: DictConfig) -> str:
    if dtype == "auto":
        dtype = str(OmegaConf.select(config, "actor_rollout_ref.rollout.dtype"))
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}; choose one of auto, {', '.join(DTYPES)}")
    return dtype


def _identity(source: Path) -> dict[str, str]:
    """Names of what is exported, with sizes and digests of both ends."""
    files = sorted(path for path in (source / "actor").rglob("*") if path.is_file() and not path.name.startswith(NOT_EXPORTED))
    return {str(path.relative_to(source)): state.fingerprint(path) for path in files}


def _made_from(target: Path) -> Any:
    try:
        return json.loads((target / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(run: Path, config: DictConfig, source: Path, step: int, dtype: str, folder: Path) -> None:
    # torch and verl, several seconds of imports, only when there is something to do
    from unify_posttrain.algorithms import ALGORITHMS
    from unify_posttrain.evaluation.merging import check_loads, merge_checkpoint

    refuse_code(source / HF, f"checkpoint {source}", trust_key=None)
    # A link would put the file that it leads to, of whatever kind, into a folder that is passed on.
    refuse_links(source / HF, (source / HF).rglob("*"), f"checkpoint {source}")
    if has_hf_weights(source):
        shutil.copytree(source / HF, folder, dirs_exist_ok=True)
    else:
        merge_checkpoint(source, folder, dtype, OmegaConf.select(config, "actor_rollout_ref.model.lora_alpha"))
    check_loads(folder, source)
    algorithm = ALGORITHMS.get(str(OmegaConf.select(config, "fusion.algorithm")))
    card = model_card(run, config, step, getattr(algorithm, "paper", None), __version__)
    (folder / "README.md").write_text(card, encoding="utf-8")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an export to the hub; returns its address. The token comes from the environment or from the hub's own login.

    Raises:
        ValueError: not a name on the hub, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, ignore_patterns=[STAMP])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"push_to_hub={name}: {error}; set HF_TOKEN to a token that may write there") from error
    return str(address)
