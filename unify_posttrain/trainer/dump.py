"""What `trainer.rollout_data_dir` receives beside verl's own fields: enough to show which tokens were trained, and how hard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from verl import DataProto
from verl.trainer.ppo.reward import extract_reward

from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.feedback import QWEN_VISION
from unify_posttrain.experience.pictures import Reference, picture_references
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.objective import token_class
from unify_posttrain.rollout.environment_loop import SHOWN, TURN_OUTCOMES, TURN_SCORES
from unify_posttrain.trainer.mixed_batch import kind_names
from unify_posttrain.trainer.prompts import Prompts
from unify_posttrain.trainer.rewards import KEYS

DROPPED = "dropped"  # row_kind of rollouts that the gate replaced by a demonstration
UNTRAINED, TOKEN_KINDS = "untrained", ("on", "demo", "hint")  # the classes of `unify_posttrain.objective.streams`
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what tokenizers make of a character of which bytes are missing
MOST_BYTES = 4  # of a character in UTF-8, so the most tokens that it can be split into
PICTURES = "pictures"  # on the first row of a group: what its prompt shows
DEMONSTRATION_IMAGES = "demonstration_images"  # beside `demonstration`: where its images come from
SAMPLED = "on"  # the kind of tokens that the policy wrote

_PAD = QWEN_VISION[1]
_PADS = re.compile(f"(?:{re.escape(_PAD)})+")


class Segment(NamedTuple):
    """Consecutive response tokens of one kind and one advantage."""

    kind: str
    advantage: float
    ids: list[int]


class RolloutDump:
    """Adds to verl's dump of a step what the report needs; does nothing without a folder.

    Args:
        folder: `trainer.rollout_data_dir`.
        tokenizer: of the run.
    """

    def __init__(self, folder: str | None, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def dropped(self, rollouts: DataProto | None, plan: BatchPlan) -> DataProto | None:
        """The rollouts that no row is made of, to be kept until the step is dumped; None if there are none."""
        if rollouts is None or not self.folder:
            return None
        given_up = {group.uid for group in plan if not group.kept}
        index = [row for row, uid in enumerate(rollouts.non_tensor_batch["uid"]) if uid in given_up]
        return rollouts.select_idxs(np.array(index)) if index else None

    def fields(self, batch: DataProto, prompts: Prompts, reward_fields: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Columns of verl's dump beside its own: the reward's fields and those of :func:`row_fields`."""
        # verl writes JSON, which knows no numpy numbers: a reward field of float32, int64 or bool would end the run
        fields = {key: [_said(value) for value in np.asarray(values).tolist()] for key, values in reward_fields.items()}
        if self.folder:
            row_ids = prompts.row_ids  # mixed rows no longer know their prompt, and padding belongs to none
            fields |= row_fields(batch, self.tokenizer, prompts.demonstrations)
            fields["row_id"] = [row_ids.get(uid) for uid in fields["uid"]]
            shown = prompt_pictures(prompts)
            if shown:
                fields[PICTURES] = _on_first(fields["uid"], shown)
        return fields

    def append_dropped(self, dropped: DataProto | None, prompts: Prompts, step: int) -> None:
        """Add the dropped rollouts to the file that verl has written."""
        if dropped is None:
            return
        row_ids, shown = prompts.row_ids, prompt_pictures(prompts)
        with open(Path(self.folder) / f"{step}.jsonl", "a", encoding="utf-8") as file:
            for entry in dropped_rows(dropped, self.tokenizer):
                known = {"step": step, "row_id": row_ids.get(entry["uid"])}
                if entry["uid"] in shown:
                    known[PICTURES] = shown.pop(entry["uid"])
                file.write(json.dumps({**entry, **known}, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _said(value: Any) -> Any:
    """NaN stands for a missing value in a column of numbers, which JSON has no word for."""
    return None if isinstance(value, float) and value != value else value


def prompt_pictures(prompts: Prompts) -> dict[str, list[Reference]]:
    """What each prompt shows, by uid; prompts of text alone are left out."""
    columns = prompts.rows.non_tensor_batch
    found = {
        str(uid): [dict(each) for each in picture_references(messages)]
        for uid, messages in zip(columns["uid"], columns.get("raw_prompt", ()), strict=False)
    }
    return {uid: shown for uid, shown in found.items() if shown}


def _on_first(uids: list[str], values: Mapping[str, Any]) -> list[Any]:
    """The value of each group on its first row, None on the others."""
    first = {uid: row for row, uid in reversed(list(enumerate(uids)))}
    return [values.get(uid) if first[uid] == row else None for row, uid in enumerate(uids)]


def dropped_rows(rollouts: DataProto, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Lines of the dump for rollouts that are not trained: verl's fields and those of :func:`row_fields` that they have.

    Their mask says what the policy wrote (`on`) and what it was given; no advantage was computed for any of it.
    """
    columns, tensors = rollouts.non_tensor_batch, rollouts.batch
    width = tensors["responses"].shape[-1]
    prompts = tokenizer.batch_decode(tensors["prompts"], skip_special_tokens=True)
    scores = extract_reward(rollouts)[0].sum(dim=-1).tolist()
    for row, (prompt, score) in enumerate(zip(prompts, scores, strict=True)):
        present = tensors["attention_mask"][row, -width:].bool()
        ids, mask = tensors["responses"][row][present].numpy(), tensors["response_mask"][row][present].numpy()
        parts = [Segment(SAMPLED if mask[start] else UNTRAINED, 0.0, ids[start:end].tolist()) for start, end in _runs(mask)]
        ids = ids.tolist()
        yield {
            "input": prompt,
            "output": tokenizer.decode(ids, skip_special_tokens=True),
            "gts": columns["reward_model"][row].get("ground_truth") if "reward_model" in columns else None,
            "score": score,
            "uid": str(columns["uid"][row]),
            "row_kind": DROPPED,
            "segments": _shown(parts, tokenizer)[0],
            "advantage": None,
            **{name: _said(_plain(columns[name][row])) for name in rollouts.meta_info.get(KEYS, ()) if name in columns},
            **{name: values[row] for name, values in _of_turns(rollouts).items()},
        }


def row_fields(batch: DataProto, tokenizer: Any, demonstrations: Mapping[str, Demonstration]) -> dict[str, list[Any]]:
    """Columns for the dump of a trained batch, one value per row, all of them plain JSON.

    Args:
        batch: after the update; `prefix_mask` and the row weights are read if it was mixed.
        tokenizer: of the run.
        demonstrations: usable demonstrations by uid.

    Returns:
        uid: group of the row.
        row_kind: rollout, demonstration or padding (mixed batches only).
        segments: [kind, text] of consecutive response tokens; kind on (sampled), demo (of a demonstration), hint (given, not
            trained by reinforcement) or untrained. Special tokens are shown. Empty for padding.
        advantage: a number if it is the same for all trained tokens, null if there are none, else one number per segment.
        turn_scores, turn_outcomes: reward and verdict of each turn, in a batch with episodes; null for a demonstration.
        shown_images: where each image between the answers comes from, in their order, in a batch with some. A segment has one pad
            for each, whatever the number of its tokens.
        NAME_weight: the coefficient of the row's group in the term NAME, from the batch plan (terms that are weighted by row).
        demonstration: on the first row of a group that has a demonstration which is not trained: its text, else null; and
            demonstration_images, as shown_images, if it has some.
    """
    columns, names = batch.non_tensor_batch, kind_names(batch)
    uids = [str(uid) for uid in columns["uid"]]
    fields: dict[str, list[Any]] = {"uid": uids}
    if names is not None:
        fields["row_kind"] = names
    shown = [
        ([], None) if names is not None and names[row] == "padding" else _shown(segments, tokenizer)
        for row, segments in enumerate(_segments(batch))
    ]
    fields["segments"], fields["advantage"] = ([pair[part] for pair in shown] for part in (0, 1))
    fields.update(_of_turns(batch))
    fields.update({name: batch.batch[name].tolist() for name in sorted(batch.batch.keys()) if name.endswith("_weight")})
    trained = {uid for uid, name in zip(uids, names or (), strict=False) if name == "demonstration"}
    beside = {uid: each for uid, each in demonstrations.items() if uid not in trained}
    there = beside.keys() & set(uids)  # of the others no row is left
    texts = {uid: tokenizer.decode(beside[uid].response_ids, skip_special_tokens=False) for uid in there}
    fields["demonstration"] = _on_first(uids, {uid: _one_pad(text) for uid, text in texts.items()})
    if any(each.origins for each in demonstrations.values()):
        fields[DEMONSTRATION_IMAGES] = _on_first(uids, {uid: list(each.origins) for uid, each in beside.items() if each.origins})
        of_rollouts = fields.get(SHOWN, [None] * len(uids))
        fields[SHOWN] = [
            list(demonstrations[uid].origins) if name == "demonstration" and uid in demonstrations else shown_images
            for uid, name, shown_images in zip(uids, names or [None] * len(uids), of_rollouts, strict=True)
        ]
    return fields


def _of_turns(batch: DataProto) -> dict[str, list[Any]]:
    columns = batch.non_tensor_batch
    return {name: list(columns[name]) for name in (TURN_SCORES, TURN_OUTCOMES, SHOWN) if any(columns.get(name, ()))}


def _runs(*streams: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the spans in which none of the streams changes."""
    width = len(streams[0])
    if not width:
        return []
    cuts = (np.flatnonzero(np.any([np.diff(stream) != 0 for stream in streams], axis=0)) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, width], strict=True))


def _one_pad(text: str) -> str:
    """A text in which every image has one pad, as in a chat template's."""
    return _PADS.sub(_PAD, text)


def _segments(batch: DataProto) -> Iterator[list[Segment]]:
    """The segments of each row."""
    tensors = batch.batch
    responses, advantages = tensors["responses"].numpy(), tensors["advantages"].float().numpy()
    attended = tensors["attention_mask"][:, -responses.shape[-1] :].bool().numpy()
    classes = np.zeros(responses.shape, dtype=np.int8)
    for code, kind in enumerate(TOKEN_KINDS, start=1):
        classes[token_class(tensors, kind).numpy()] = code
    for ids, values, kinds, present in zip(responses, advantages, classes, attended, strict=True):
        ids, values, kinds = ids[present], values[present], kinds[present]
        yield [
            Segment((UNTRAINED, *TOKEN_KINDS)[kinds[start]], float(values[start]), ids[start:end].tolist())
            for start, end in _runs(values, kinds)
        ]


def _shown(segments: list[Segment], tokenizer: Any) -> tuple[list[list[str]], float | list[float] | None]:
    """(segments, advantage) of one row as they are written; a character that is split over segments goes to the later one."""
    texts = tokenizer.batch_decode([segment.ids for segment in segments], skip_special_tokens=False)
    shown: list[list[str]] = []
    advantages: list[float] = []
    carried: list[int] = []
    for number, (segment, text) in enumerate(zip(segments, texts, strict=True), start=1):
        ids = carried + segment.ids
        carried = _unfinished(ids, tokenizer) if number < len(segments) and text.endswith(UNKNOWN) else []
        if len(ids) != len(segment.ids) or carried:
            ids = ids[: len(ids) - len(carried)]
            text = tokenizer.decode(ids, skip_special_tokens=False)
        if ids:
            shown.append([segment.kind, _one_pad(text)])
            advantages.append(segment.advantage)
    trained = {segment.advantage for segment in segments if segment.kind in ("on", "demo")}
    return shown, advantages if len(trained) > 1 else next(iter(trained), None)


def _unfinished(ids: list[int], tokenizer: Any) -> list[int]:
    """The last tokens of a text that ends within a character, without which it ends with a whole one."""
    for count in range(1, min(MOST_BYTES, len(ids) + 1)):
        if not tokenizer.decode(ids[:-count], skip_special_tokens=False).endswith(UNKNOWN):
            return ids[-count:]
    return []
