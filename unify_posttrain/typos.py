"""One line for a mistake on a command line: what is wrong, what is nearest to it, what to do.

Pure text work on what Hydra and our own checks say; nothing here imports torch or composes a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException, OverrideParseException

LIKENESS = 0.6  # of two keys, 0 to 1: below this a suggestion would puzzle more than it helps (difflib's own default)
STRICT = "fusion"  # the node that takes no new keys
CLOSE_BEHIND = 0.1  # keys that are nearly as like as the best one are named too

NO_SUCH_KEY = re.compile(r"Could not (?:override|delete from config\.|delete) '(?P<key>[^']+)'")
EXISTS = re.compile(r"Could not append to config\. An item is already at '(?P<key>[^']+)'")
SEVERAL = re.compile(r"Ambiguous value for argument '(?P<key>[^=']+)=(?P<values>.*)'")
UNMERGED = re.compile(r"Error merging override (?P<override>.*)")
CHOICES = re.compile(r"(?:=|: )'?(?P<value>[^\s';:=]+)'?(?: is [^;:]+)?[;:] choose (?:one of|from|among) (?P<known>[^;]+)$")


class ConfigurationError(ConfigCompositionException, ValueError):
    """A configuration that cannot be composed; the message is one line that names key, nearest key and remedy."""


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a nested mapping, inner nodes included: `trainer`, `trainer.logger`, …; lists are values."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{name}.")


def nearest(key: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The known keys most like `key`, best first: half by their last part, half by the whole.

    >>> nearest("trainer.switch_gat", ["trainer.switch_gate", "trainer.save_freq", "data.seed"])
    ['trainer.switch_gate']
    >>> nearest("optim.lr", ["actor.optim.lr", "actor.grad_clip"])
    ['actor.optim.lr']
    """
    whole, last = SequenceMatcher(b=key), SequenceMatcher(b=key.rpartition(".")[2])
    scores = {}
    for candidate in known:
        whole.set_seq1(candidate)
        last.set_seq1(candidate.rpartition(".")[2])
        if candidate.endswith(f".{key}"):  # all that is missing is where it stands
            scores[candidate] = 1.0
        elif last.real_quick_ratio() + whole.real_quick_ratio() >= 2 * LIKENESS:
            scores[candidate] = (last.ratio() + whole.ratio()) / 2
    best = max(scores.values(), default=0.0)
    close = [each for each, score in scores.items() if score >= max(LIKENESS, best - CLOSE_BEHIND)]
    return sorted(close, key=lambda each: (-scores[each], len(each)))[:count]


def did_you_mean(near: Sequence[str]) -> str:
    """`; did you mean a or b?`, or nothing."""
    return f"; did you mean {' or '.join(near)}?" if near else ""


def with_hint(message: str) -> str:
    """A message that ends in the known values (`KEY='v' is unknown; choose one of a, b`), with the nearest one named as well.

    >>> with_hint("trainer.unify_strategy='swich' is unknown; choose one of switch, soft, no")
    "trainer.unify_strategy='swich' is unknown; choose one of switch, soft, no; did you mean switch?"
    """
    found = CHOICES.search(message)
    if not found or "did you mean" in message:
        return message
    return message + did_you_mean(get_close_matches(found["value"], found["known"].split(", "), n=1))


Known = Mapping[str, Sequence[str]]  # dotted key -> choices of `algorithm` that it belongs to; empty: it exists whatever the choice


def explain_error(error: CompactHydraException, overrides: Sequence[str], known: Callable[[], Known]) -> str:
    """What Hydra says about a command line, in one line and with the nearest keys.

    Args:
        error: what composing or parsing raised.
        overrides: the command line, to repeat the mistaken argument as it was written.
        known: the dotted keys that exist, and those of other algorithms; called only if a key does not exist.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if found := NO_SUCH_KEY.search(text):
        return _unknown_key(found["key"], overrides, known())
    if found := EXISTS.search(text):
        return f"{found['key']} exists already, + is for new keys; write it without +, or with ++ to set it in any case"
    if found := SEVERAL.search(text):
        key, values = found["key"], found["values"].split("' 1. To use")[0]
        return f"{key}={values} gives several values: add -m to run one job for each, or write '{key}=[{values}]' if it is a list"
    if found := UNMERGED.search(text):
        why = str(error.__cause__ or "its value does not fit").splitlines()[0]
        return f"{found['override']} cannot be set: {why}"
    return text


def check_additions(overrides: Sequence[str], declared: Sequence[str], node: str = STRICT) -> None:
    """Refuse a new key below a node that takes none, before anything is imported that would refuse it.

    Args:
        overrides: a command line; `+key=value` and `++key=value` are looked at.
        declared: the dotted keys of the node's file, `node.` included; below one whose value is null or a list anything may follow.
        node: the one that takes no new keys.

    Raises:
        ValueError: names the key and the nearest declared ones.
    """
    inner = {key.rpartition(".")[0] for key in declared}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        if not override.startswith("+") or not key.startswith(f"{node}.") or key in declared:
            continue
        parents = [parent for parent in declared if key.startswith(f"{parent}.") and parent not in inner]
        if not parents:
            raise ValueError(f"{key} is unknown, and {node} takes no new keys{did_you_mean(nearest(key, declared))}")


def _unknown_key(key: str, overrides: Sequence[str], known: Known) -> str:
    if owners := known.get(key):
        return f"{key} does not exist here: only algorithm={' or '.join(owners)} reads it"
    owned = {each: f"{each} (algorithm={' or '.join(known[each])})" if known[each] else each for each in known}
    near = did_you_mean([owned[each] for each in nearest(key, [each for each in known if each != key])])
    written = next((each for each in overrides if each.lstrip("+~").partition("=")[0] == key), f"{key}=…")
    if written.startswith("~"):
        return f"{written}: there is no {key} to delete{near or '; see --cfg job'}"
    strict = key.startswith(f"{STRICT}.")
    return f"{key} does not exist{near or '; --cfg job prints all that do'}" + (
        "" if strict else f" (+{written} adds a new key on purpose)"
    )


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if not group or not error.options:
        return " ".join(str(error).split())
    known = sorted(error.options)
    hint = did_you_mean(get_close_matches(choice, known, n=1))
    return f"{group}={choice} is unknown; choose one of {', '.join(known)}{hint}"


def _unreadable(error: OverrideParseException) -> str:
    if "=" not in error.override and not error.override.startswith("~"):
        return f"{error.override!r} has no value; write {error.override}=VALUE"
    why = str(error).splitlines()[0]
    return f"cannot read {error.override!r} ({why}); a value with brackets, spaces or commas needs quotes: 'key=[a,b]'"
