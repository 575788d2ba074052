"""Single turns of a model that sees, on the direct way of `manager`: what their prompts show is made once per prompt.

verl's agent loops run the processor twice per rollout, and the engine runs it a third time. Here the driver runs it once for all
rollouts of a prompt. What it makes is sent to the engine, stands in the rows for the update, and says where their tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from verl.utils.dataset.rl_dataset import RLHFDataset, get_dataset_class

from unify_posttrain.chat import Messages
from unify_posttrain.rollout.pictures import PictureReader, Seen, banned_bias
from unify_posttrain.rollout.rows import PaddedRows

ENGINES = ("hf",)  # whose servers take what a processor makes of pictures; vLLM's take pictures, and run their own processor
PARTS = ("text", "image")  # of messages, that a `PictureReader` knows
OPENERS = ("process_vision_info", "process_multi_modal_info")  # of dataset classes, as verl 0.7 and 0.9 call what opens pictures


class Sight:
    """What the direct way of a model that sees has beside that of a model of text.

    Args:
        processor: of the model, from verl's `hf_processor`.
        config: of the run.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.reader = PictureReader(processor, dict(config.data.get("apply_chat_template_kwargs") or {}))
        self.sampling = {"logit_bias": banned_bias(processor.tokenizer)}
        dataset = get_dataset_class(config.data)
        # A dataset class may open the pictures of its messages in a way of its own, which agent loops ask it for.
        opens = [[getattr(getattr(each, name, None), "__func__", None) for name in OPENERS] for each in (dataset, RLHFDataset)]
        self.direct = config.actor_rollout_ref.rollout.name in ENGINES and opens[0] == opens[1]

    def takes(self, messages: Sequence[Messages]) -> bool:
        """Whether the engine takes what is made here, and prompts (B,) show nothing but pictures."""
        return self.direct and all(
            part.get("type") in PARTS
            for each in _distinct(messages)
            for message in each
            if not isinstance(message["content"], str | None)
            for part in message["content"]
        )

    def read(self, messages: Sequence[Messages]) -> list[Seen]:
        """What the model gets of prompts (B,). Rows of a prompt hold the same messages, and share what is made of them."""
        known = {id(each): self.reader.read(list(each)) for each in _distinct(messages)}
        return [known[id(each)] for each in messages]


class SeeingRows(PaddedRows):
    """verl's columns of B rows of a model that sees, with positions of four rows, which no worker can make of a mask alone.

    Args:
        sight: that read the prompts.
        seen: (B,) what it made of them; the rows of a prompt share it.
        prefixes, trained, prompt_length, response_length, pad_id: see `PaddedRows`.

    Rows that share a prompt share the array of its token ids and what is made of its pictures, which then travel once.
    """

    def __init__(
        self,
        sight: Sight,
        seen: Sequence[Seen],
        prefixes: Sequence[Sequence[int]],
        trained: Sequence[bool],
        prompt_length: int,
        response_length: int,
        pad_id: int,
    ) -> None:
        prompts = _distinct(seen)
        place = {id(prompt): number for number, prompt in enumerate(prompts)}
        of_row = [place[id(each)] for each in seen]
        arrays = [np.array(prompt.ids, dtype=np.int32) for prompt in prompts]
        self.shown, self.sampling, self._of_row = [each.inputs for each in seen], sight.sampling, torch.tensor(of_row)
        first = torch.from_numpy(np.unique(of_row, return_index=True)[1])  # a row of each prompt
        super().__init__([arrays[number] for number in of_row], prefixes, trained, prompt_length, response_length, pad_id)
        # With a column of padding behind them, for what stands in those of responses: versions of transformers differ in it.
        masks, ids = pad(self.attention_mask[first, :prompt_length].long(), (0, 1)), pad(self.prompts[first].long(), (0, 1))
        self._positions = sight.reader.positions(ids, masks, [prompt.inputs for prompt in prompts])  # (U, 4, P + 1)
        # A response counts on from the largest position of its prompt, in time, height and width alike.
        ends = self._positions.masked_fill(masks.unsqueeze(1) == 0, 0).amax(dim=-1)
        self._ends = torch.cat([ends[:, :1], ends[:, 1:].amax(dim=-1, keepdim=True).expand(-1, 3)], dim=1)  # (U, 4)

    def positions(self, rows: Tensor) -> Tensor:
        """(N, 4, P+T) of `rows` (N,), as verl gives them to the model: of text, then time, height and width."""
        attended = self.attention_mask[rows, self.prompts.shape[1] :].long().unsqueeze(1)
        prompt = self._of_row[rows]
        before, padding = self._positions[prompt, :, :-1], self._positions[prompt, :, -1:]
        response = torch.where(attended.bool(), self._ends[prompt].unsqueeze(-1) + attended.cumsum(dim=-1), padding)
        return torch.cat([before, response], dim=-1)

    def tensors(self, log_probs: bool) -> dict[str, Tensor]:
        return {**super().tensors(log_probs), "position_ids": self.positions(torch.arange(len(self.shown)))}

    def to_score(self, rows: Tensor) -> dict[str, Tensor]:
        found = super().to_score(rows)
        columns = found["attention_mask"].shape[1]
        first = self.prompts.shape[1] - (columns - found["responses"].shape[1])
        return {**found, "position_ids": self.positions(rows)[..., first : first + columns]}


def _distinct(objects: Sequence[Any]) -> list[Any]:
    """Each of several objects once, in their order. They live as long as the sequence: no two of them have an id in common."""
    return list({id(each): each for each in objects}.values())
