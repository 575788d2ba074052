"""Start-up checks of the model folders that a run reads: no code that nobody trusts, and weights that are whole and the model's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.untrusted.documents import read_object
from unify_posttrain.untrusted.loading import check_fits
from unify_posttrain.untrusted.remote_code import local_documents, refuse_code
from unify_posttrain.untrusted.weights import check_files, weight_files

ACTOR, CRITIC, REFERENCE = "actor_rollout_ref.model", "critic.model", "actor_rollout_ref.ref.model"
TRUST = f"{ACTOR}.trust_remote_code"


def check_code(config: DictConfig, needs_critic: bool) -> None:
    """Refuse folders that ask for code of their own, unless the configuration trusts them. Names on the hub are looked up in its
    cache; `startup.tokenizers` looks again when it has fetched the tokenizer.

    Raises:
        ValueError: names the file and its key, and the setting that would run the code.
    """
    for key, trust_key in _folders(config, needs_critic):
        path = OmegaConf.select(config, key, default=None)
        if path is None or (trust_key and OmegaConf.select(config, trust_key, default=False)):
            continue
        folder = local_documents(str(path), download=False)
        if folder is not None:
            refuse_code(folder, f"{key}={path}", trust_key)


def _folders(config: DictConfig, needs_critic: bool) -> Iterator[tuple[str, str | None]]:
    """(key of a folder, key that trusts its code). verl has no such key for reward models; nobody's code is run there."""
    yield from ((f"{ACTOR}.{name}", TRUST) for name in ("path", "tokenizer_path", "hf_config_path", "lora_adapter_path"))
    yield f"{REFERENCE}.path", TRUST  # where the reference is another model than the policy
    if needs_critic:
        yield from ((f"{CRITIC}.{name}", f"{CRITIC}.trust_remote_code") for name in ("path", "tokenizer_path"))
    if OmegaConf.select(config, "reward.reward_model.enable", default=False):
        yield "reward.reward_model.model_path", None
    yield "reward.custom_reward_function.reward_kwargs.model_path", None


def check_weights(config: DictConfig, needs_critic: bool) -> None:
    """Read the headers of the weights, and compare their names and shapes with the architecture. That all are numbers is seen when
    the workers have loaded them (`workers.finite`), since it means to read them.

    Raises:
        ValueError: names the file, or the first weights that are missing, unknown, or of another shape.
    """
    from transformers import AutoModelForTokenClassification

    _check(config, f"{ACTOR}.path", ACTOR, None)
    if OmegaConf.select(config, f"{REFERENCE}.path", default=None) is not None:
        _check(config, f"{REFERENCE}.path", ACTOR, None)
    if needs_critic:
        _check(config, f"{CRITIC}.path", CRITIC, AutoModelForTokenClassification)


def _check(config: DictConfig, key: str, node: str, model_class: Any) -> None:
    """The folder that `key` names, loaded as the settings of `node` say."""
    from transformers import AutoConfig
    from verl.utils.model import update_model_config

    settings, path = OmegaConf.select(config, node), str(OmegaConf.select(config, key))
    setting = f"{key}={path}"
    folder = _complete_folder(path)
    if folder is None:
        return
    if not weight_files(folder).files:
        if OmegaConf.select(config, "dry_run", default=False):
            return  # planned where the model is not
        raise ValueError(f"{setting}: the folder holds no weights; copy or download the whole model")
    shapes = check_files(folder, setting, bool(config.allow_pickle))
    if not shapes:
        return  # pickled
    trust = bool(settings.get("trust_remote_code", False))
    override = OmegaConf.to_container(settings.get("override_config") or OmegaConf.create(), resolve=True)
    try:
        described = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{setting}: transformers does not know the model: {' '.join(str(error).split())[:300]}") from error
    override = {key: value for key, value in override.items() if key != "attn_implementation"}  # type: ignore[union-attr]
    update_model_config(described, override_config_kwargs=override)
    body = model_class is not None  # a critic's head is made anew
    if body and type(described) not in model_class._model_mapping and not hasattr(described, "auto_map"):
        raise ValueError(
            f"{setting}: transformers has no critic of the architecture {described.model_type} (models that see have none); use an "
            "algorithm without critic, or a model of text for critic.model.path"
        )
    _check_parts(described, folder, setting)
    chosen = model_class or policy_class(described)
    check_fits(folder, shapes, chosen, setting, trust, body_only=body, config=described)


def _check_parts(described: Any, folder: Path, setting: str) -> None:
    """Of a model with parts transformers 4 writes some keys beside the part that reads text alone; transformers 5 takes what is not
    above the parts for absent, and would train an output head apart from the embedding, or one that nobody has trained."""
    document = read_object(folder / "config.json")
    part = document.get("text_config") or {}
    lost = {
        name: part[name]
        for name in ("architectures", "tie_word_embeddings")
        if part.get(name) and name not in document and not getattr(described, name, None)
    }
    if lost:
        raise ValueError(
            f"{setting}: its config.json was written by transformers 4, which puts into text_config what this version looks for "
            f"above it; add {json.dumps(lost)[1:-1]} beside text_config"
        )


def policy_class(described: Any) -> Any:
    """The class that verl's worker will load a configuration of transformers with."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from verl.utils.transformers_compat import get_auto_model_for_vision2seq

    for candidate in (get_auto_model_for_vision2seq(), AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(described) in candidate._model_mapping:
            return candidate
    return AutoModel


def _complete_folder(path: str) -> Path | None:
    """The folder of a model. A name on the hub counts once all its weights are in the cache: until then they are fetched later."""
    folder = local_documents(path, download=False)
    if folder is None or Path(path).expanduser().is_dir():
        return folder
    files = weight_files(folder).files
    return folder if files and all(file.is_file() for file in files) else None
