"""A base model of half a million weights, built on the spot: character tokenizer, Qwen2 architecture, own pretraining.

It stands in for a downloaded base model wherever a run has to finish on a laptop: an ordinary Hugging Face folder that
``AutoTokenizer`` and ``AutoModelForCausalLM`` open without remote code. Simplified on purpose: pretraining is plain
next-token prediction on worked sums (`unify_posttrain.tasks.arithmetic`), drawn afresh in every step; the draw does not
know the test file, so short problems of the easy split may occur in it.

A share of the solutions of some digit counts (``pretraining.careless``) forgets the carries. Real base models can often
do what they rarely do, and post-training brings it out in a few dozen steps; a net of this size that has not learned
long sums at all needs thousands. So these runs show that a method works, not that it teaches skills from nothing.

    python -c "from pathlib import Path; import yaml; from unify_posttrain.tasks.tiny_model import build_base_model; \
        build_base_model(Path('outputs/models/mine'), yaml.safe_load(open('mine.yaml')))"

with the keys of ``prepare.model`` in ``conf/model/tiny_qwen2.yaml``, which also says how long it takes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from unify_posttrain.tasks.arithmetic import operand_range, plain, question, worked_solution

logger = logging.getLogger(__name__)

MARKER = "base_model.json"
MARKER_FORMAT = 1  # raise it when the weights for equal settings change: old folders are then rebuilt
IGNORE_INDEX = -100

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unk|>"
ROLES = ("system", "user", "assistant", "tool")
CHARACTERS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))

# One token opens a message and one closes it, so the longest prompt stays as short as the problem allows.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in " + str(list(ROLES)) + " -%}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use one of " + ", ".join(ROLES) + "') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ (message['content'] or '') ~ '" + END + "' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_SHAPE_KEYS = ("layers", "hidden_size", "heads", "kv_heads", "intermediate_size", "max_position_embeddings")
_PRETRAINING_KEYS = (
    "steps",
    "batch_size",
    "lr",
    "betas",
    "weight_decay",
    "warmup_ratio",
    "grad_clip",
    "digits",
    "careless",
)
_IGNORED_KEYS = frozenset({"name", "folder"})  # say where and what, not which weights


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline, and the special tokens; other characters become <|unk|>."""
    special = [PAD, END, UNKNOWN, *(f"<|{role}|>" for role in ROLES)]
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=special[3:],
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],  # the default adds token_type_ids, which generate() refuses
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,  # the clean-up would eat spaces before punctuation
    )


def _by_digits(node: Mapping[str, float]) -> dict[int, float]:
    """A setting per digit count; JSON made its keys strings."""
    return {int(digits): share for digits, share in node.items()}


def _check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy without ``name`` and ``folder``; ValueError (key, value, remedy) if a key is missing or unknown."""
    checked = {key: value for key, value in plain(settings).items() if key not in _IGNORED_KEYS}
    for prefix, node, known in (
        ("", checked, {*_SHAPE_KEYS, "seed", "pretraining"}),
        ("pretraining.", checked.get("pretraining", {}), set(_PRETRAINING_KEYS)),
    ):
        if set(node) != known:
            missing, unknown = sorted(known - set(node)), sorted(set(node) - known)
            raise ValueError(
                f"tiny model settings: missing {[prefix + k for k in missing]}, unknown "
                f"{[prefix + k for k in unknown]}; give exactly the keys of conf/model/tiny_qwen2.yaml"
            )
    if checked["hidden_size"] % checked["heads"] or checked["heads"] % checked["kv_heads"]:
        raise ValueError(
            f"hidden_size={checked['hidden_size']}, heads={checked['heads']}, "
            f"kv_heads={checked['kv_heads']}: each must be a multiple of the next"
        )
    training = checked["pretraining"]
    for key in ("steps", "batch_size"):
        if training[key] < 1:
            raise ValueError(f"pretraining.{key}={training[key]}: give an integer >= 1")
    shares, careless = _by_digits(training["digits"]), _by_digits(training["careless"])
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"pretraining.digits={shares}: give {{digit count: share}} with shares >= 0, one above 0")
    if not set(careless) <= set(shares) or any(not 0 <= share <= 1 for share in careless.values()):
        raise ValueError(
            f"pretraining.careless={careless}: give {{digit count: share of careless solutions, 0 to 1}} "
            "for digit counts that are in pretraining.digits"
        )
    for digits in shares:
        operand_range(digits)  # ValueError for digits < 1
    length = 2 * max(shares) + 5 + len(worked_solution(10 ** max(shares) - 1, 0)) + 1
    if length > checked["max_position_embeddings"]:
        raise ValueError(
            f"max_position_embeddings={checked['max_position_embeddings']}: problems of "
            f"{max(shares)} digits need {length}; raise it or drop the digit count"
        )
    return checked


def _new_model(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings["hidden_size"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["kv_heads"],
        intermediate_size=settings["intermediate_size"],
        max_position_embeddings=settings["max_position_embeddings"],
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def encode_examples(
    tokenizer: PreTrainedTokenizerFast, problems: Sequence[tuple[int, int]], careless: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of the worked solutions of ``problems``, padded on the right to T; B problems.

    A row is chat template, generation prompt, worked solution, eos: what post-training shows and samples.

    Returns:
        ids [B, T] int64 and labels [B, T] int64, the latter ``IGNORE_INDEX`` on prompt and padding.
    """
    chats = [[{"role": "user", "content": question(a, b)}] for a, b in problems]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True)
    solutions = [
        worked_solution(a, b, careless=slip) + tokenizer.eos_token for (a, b), slip in zip(problems, careless, strict=True)
    ]
    targets = tokenizer(solutions, add_special_tokens=False)["input_ids"]
    width = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True))
    ids = torch.full((len(problems), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor(prompt + target)
        labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
    return ids, labels


def _pretrain(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    progress: Callable[[int, int, float], None] | None,
) -> None:
    """Next-token prediction on fresh problems; linear warm-up, then a cosine to zero. Changes ``model`` in place."""
    training, steps = settings["pretraining"], settings["pretraining"]["steps"]
    generator = random.Random(settings["seed"])
    shares = _by_digits(training["digits"])
    careless = _by_digits(training["careless"])
    warmup = training["warmup_ratio"] * steps
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training["lr"], betas=tuple(training["betas"]), weight_decay=training["weight_decay"]
    )
    model.train()
    for step in range(1, steps + 1):
        rate = min(1.0, step / warmup) if step <= warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = training["lr"] * rate
        digits = generator.choices(list(shares), weights=list(shares.values()), k=training["batch_size"])
        problems = [(generator.choice(operand_range(d)), generator.choice(operand_range(d))) for d in digits]
        slips = [generator.random() < careless.get(d, 0.0) for d in digits]
        ids, labels = encode_examples(tokenizer, problems, slips)
        # Right padding under a causal mask: no trained token sees it, so no attention mask is needed.
        logits = model(input_ids=ids, use_cache=False).logits  # [B, T, V]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["grad_clip"])
        optimizer.step()
        if progress is not None:
            progress(step, steps, loss.item())
    model.eval()


def _is_built(folder: Path, settings: Mapping[str, Any]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    files = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return marker == {"format": MARKER_FORMAT, "settings": settings} and all((folder / f).is_file() for f in files)


def _move_into_place(built: Path, folder: Path) -> None:
    """Give ``built`` the name ``folder``; an older build steps aside first and is then deleted."""
    if not folder.exists():
        os.replace(built, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old)  # an empty directory may be replaced
    os.replace(built, folder)
    shutil.rmtree(old)


def build_base_model(folder: Path, settings: Mapping[str, Any], progress: Callable[[int, int, float], None] | None = None) -> Path:
    """Build, pretrain and save the tiny base model; nothing to do if ``folder`` holds one with equal ``settings``.

    Equal settings give equal weights on one machine with one number of threads; the caller's random state is kept.

    Args:
        folder: appears, complete, when the build has ended.
        settings: the keys of ``prepare.model`` in ``conf/model/tiny_qwen2.yaml``; ``name`` and ``folder`` are ignored.
        progress: called after each step with (step, steps, loss in nats per trained token).

    Returns:
        ``folder``.

    Raises:
        ValueError: missing or unknown settings, or numbers that make no model.
        FileExistsError: ``folder`` holds something that this function did not build.
    """
    settings, folder = _check(settings), Path(folder)
    if _is_built(folder, settings):
        logger.info("base model in %s is up to date", folder)
        return folder
    if folder.exists() and not (folder / MARKER).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(
            f"model folder {folder} exists without {MARKER}, so it is not a tiny model to rebuild; "
            "remove it or choose another actor_rollout_ref.model.path"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            tokenizer = build_tokenizer(settings["max_position_embeddings"])
            model = _new_model(settings, tokenizer)
            logger.info("pretraining %d weights for %d steps", model.num_parameters(), settings["pretraining"]["steps"])
            _pretrain(model, tokenizer, settings, progress)
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        marker = {"format": MARKER_FORMAT, "settings": settings}
        (temporary / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide a shared model from other users
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already after a success
    logger.info("base model written to %s", folder)
    return folder
