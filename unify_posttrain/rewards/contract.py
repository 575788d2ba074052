"""What a reward function may return, and how its answer is read: into numbers and texts that JSON can say, or into a fault by name.

    a number                      the score (bool, int, float, a scalar of numpy or torch)
    a mapping with `score`        the score, and fields: further numbers and texts, which may differ from row to row
    None, NaN, inf                no score: the row is masked, not scored 0

Anything else breaks the contract. A field that is None, NaN or infinite is a missing value. Lists, tuples, mappings and arrays
in a field become their JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCORE, ACCURACY = "score", "acc"
GOLD, FAULT, UNSCORED = "gold_ok", "grader_fault", "unscored"
ALLOWED = "a number, or a mapping with `score` (a number; None or NaN where there is none)"
NUMBERS = (ACCURACY, GOLD, FAULT)  # fields that something computes with
MASKS = {GOLD: 1.0, FAULT: 0.0, UNSCORED: 0.0}  # fields with a meaning of their own, and what their absence means
# Names that the batch, verl's dumps and metrics, or this package use for something else.
RESERVED = frozenset(
    name
    for names in (
        # tensors of a batch
        "attention_mask advantages batch_entropy entropys input_ids old_log_probs position_ids prefix_mask prompts ref_log_prob",
        "response_mask responses returns rm_scores rollout_log_probs routed_experts scores solved target_probs",
        "token_level_rewards token_level_scores uniforms unsolved values",
        # columns of a batch
        "__num_turns__ ability agent_name data_source extra_info extras fusion_kind hint index interaction_kwargs",
        "max_global_steps min_global_steps multi_modal_data multi_modal_inputs prompt raw_prompt raw_prompt_ids request_id",
        "response_prefix_length reward_extra_info reward_model reward_outcome reward_scores row_id seed target target_lst",
        "tool_extra_fields tool_rewards tools_kwargs turn_outcomes turn_scores uid unscored",
        # fields of what is dumped
        "advantage demonstration demonstration_images gts input output pictures reward row_kind segments shown_images step",
    )
    for name in names.split()
)
_PLAIN = frozenset((float, int, bool, str))
_INTEGERS = 2**63  # beyond it numpy would make objects of a column


class ContractError(ValueError):
    """A result that the contract does not know; names the function, the type and what is allowed."""


class ReservedFieldError(ContractError):
    """A field whose name is taken. It would overwrite data of the run, so no row can be scored like this."""


@dataclass(frozen=True)
class Scored:
    """What became of one call.

    Attributes:
        score: finite; 0 after a fault and where the function gave none.
        fields: of a mapping that the function returned: numbers and texts, `score` among them; None is a missing value.
        fault: None, or timeout, crash, memory, error: the function did not return a result.
        unscored: the function returned, but no finite score: the row is masked.
        refused: a mistake of the function that concerns every row, e.g. a field whose name is taken: the run ends.
        detail: of a fault, of a missing score or of a refusal, for people.
    """

    score: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None
    unscored: bool = False
    refused: bool = False
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without what is as it is most often: it is written and read for every row."""
        return {name: value for name, value in vars(self).items() if value or name == SCORE}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Scored:
        """Inverse of `to_dict`."""
        return cls(**plain)

    @classmethod
    def failed(cls, fault: str, detail: str, refused: bool = False) -> Scored:
        """A call without a result."""
        return cls(0.0, fault=fault, refused=refused, detail=detail)


@dataclass(frozen=True)
class Contract:
    """Reads results.

    Attributes:
        where: the function, for messages.
        field_characters: a longer text in a field is cut.
        taken: names that no field may have, beside RESERVED: columns of the data.
    """

    where: str
    field_characters: int
    taken: frozenset[str] = frozenset()

    def read(self, result: Any) -> Scored:
        """The result as numbers and texts.

        Raises:
            ContractError: neither a number nor a mapping with `score`, or a field that cannot be said.
            ReservedFieldError: a field's name is taken.
        """
        if isinstance(result, Mapping):
            if SCORE not in result:
                raise ContractError(f"{self.where} returned a mapping without `score` ({self._names(result)}); {self._remedy}")
            fields = {self._name(name): self._field(name, value) for name, value in result.items() if name != SCORE}
            score = self._score(result[SCORE], f"`score` of {self.where}")
            own: dict[str, Any] = {SCORE: score, **fields}
        else:
            score = self._score(result, self.where)
            own = {}
        if score is None:
            shown = result[SCORE] if isinstance(result, Mapping) else result
            return Scored(0.0, own, unscored=True, detail=f"{self.where} gave no score: {str(shown)[:40]}")
        return Scored(score, own)

    @property
    def _remedy(self) -> str:
        return f"it must return {ALLOWED}"

    @staticmethod
    def _names(result: Mapping[Any, Any]) -> str:
        return ", ".join(shown(str(name), 40) for name in list(result)[:8]) or "empty"

    def _score(self, value: Any, what: str) -> float | None:
        value = scalar(value)
        if value is None:
            return None
        if not isinstance(value, bool | int | float):
            raise ContractError(f"{what} returned {type(value).__name__} ({shown(value, 60)}); {self._remedy}")
        return _finite(value)

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ContractError(f"{self.where} returned a field named {shown(name, 60)}; names are printable text")
        if name in RESERVED or name in self.taken:
            raise ReservedFieldError(
                f"{self.where} returned a field {name!r}, a name that the batch has for something else; rename it, e.g. "
                f"reward_{name}"
            )
        return name

    def _field(self, name: Any, value: Any) -> Any:
        try:
            plain = sayable(value, self.field_characters)
        except (TypeError, RecursionError) as error:
            kind = type(value).__name__
            raise ContractError(
                f"{self.where}: field {name!r} holds {kind}, which JSON cannot say ({type(error).__name__}); return a number, a "
                "text, or lists and mappings of them"
            ) from None
        if name in NUMBERS and isinstance(plain, str):
            raise ContractError(f"{self.where}: field {name!r} holds {shown(plain, 40)}; it must be a number (1 or 0)")
        return plain


def scalar(value: Any) -> Any:
    """A scalar of numpy or torch, or an array with one element and no dimension, as Python's own; anything else as it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    item, shape = getattr(value, "item", None), getattr(value, "shape", None)
    if callable(item) and shape is not None and tuple(shape) == ():
        return value.item()
    return value


def sayable(value: Any, characters: int) -> Any:
    """A number, a text of at most `characters`, or None for a missing value.

    Raises:
        TypeError: JSON cannot say it.
        RecursionError: nested too deep.
    """
    value = scalar(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        number = _finite(value)
        return number if number is None or isinstance(value, float) or abs(value) >= _INTEGERS else int(value)
    text = value if isinstance(value, str) else json.dumps(_nested(value), ensure_ascii=False)
    # A lone half of a surrogate pair cannot be written to any file.
    text = text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"


def _nested(value: Any) -> Any:
    value = scalar(value)
    if isinstance(value, Mapping):
        return {_key(key): _nested(each) for key, each in value.items()}
    if isinstance(value, np.ndarray) or (hasattr(value, "tolist") and hasattr(value, "shape")):
        return _nested(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_nested(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be said in JSON")


def _key(key: Any) -> str:
    if isinstance(key, str | bool | int | float):
        return str(key)
    raise TypeError(f"a key of type {type(key).__name__} cannot be said in JSON")


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return number if math.isfinite(number) else None


def shown(value: Any, characters: int) -> str:
    """Any object as one printable line, for messages."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # an object's own repr may do anything
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = "".join(each if each.isprintable() else " " for each in text[: 4 * characters])
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
