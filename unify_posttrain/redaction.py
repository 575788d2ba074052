"""Secrets in configurations, overrides, commands and texts, replaced before anything is written: by key and by shape.

A value goes if its key speaks of a secret (`is_secret`: `HF_TOKEN`, `ray_init.env.MY_KEY`, `db.passwd`), whatever it is;
wherever it stands if it looks like one (`SHAPES`: tokens of well-known services, URLs with a password, webhooks, `Bearer …`,
private keys), or if this process has been told of it (`remember`). Keys that merely contain such a word (`pad_token`,
`prompt_key`, `max_token_len`) are not touched. It is a second line: what nobody can recognise stays, so keys belong into the
environment. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

REDACTED = "<redacted>"
LEAST_REMEMBERED = 8  # characters; a shorter secret is too likely to be part of an honest word
LARGEST_COUNT = 10**6  # a number below a key like `n_token` counts tokens; a longer one is a token of digits

# --- keys ---------------------------------------------------------------------------------------------------------------------

WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
ANYWHERE = {
    "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "authorization",
    "webhook", "webhooks", "apikey", "apikeys", "authtoken", "accesstoken", "secretkey", "privatekey", "accesskey", "bearer",
}  # fmt: skip
AT_THE_END = {"pat", "pats", "cookie", "cookies", "pw", "dsn", "sas", "sig", "signature"}
OPENING = {
    "api", "access", "private", "secret", "auth", "encryption", "signing", "ssh", "session", "license", "account", "service",
    "master", "bearer", "refresh", "id", "hf", "hub", "huggingface", "wandb", "swanlab", "openai", "anthropic", "github",
    "gitlab", "aws", "azure",
}  # fmt: skip
# Words before `token` where it is a piece of text, not a pass.
OF_TEXT = {
    "pad", "padding", "eos", "bos", "eot", "unk", "sep", "cls", "mask", "image", "video", "audio", "vision", "start", "end", "stop",
    "begin", "special", "extra", "additional", "added", "think", "thinking", "tool", "per", "next", "last", "first", "new", "each",
    "by", "any", "a", "max", "min", "num", "n", "boi", "eoi", "text", "suffix", "prefix", "middle", "system", "user", "assistant",
    "placeholder", "newline", "response", "prompt", "input", "output", "draft", "sampled", "on", "off", "demo", "is", "split",
}  # fmt: skip
PATHS = ("file", "files", "path", "dir", "folder", "mode", "length", "len", "count", "id", "ids", "name", "names", "type", "column")


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether a key, dotted or not, says by its last part that its value is a secret.

    >>> [is_secret(key) for key in ("env.HF_TOKEN", "MY_KEY", "db.passwd", "pad_token", "data.prompt_key", "max_token_len")]
    [True, True, True, False, False, False]
    """
    last = re.split(r"[.@/\[\]]", key.strip().rstrip("]"))[-1].lstrip("-+~")
    found = WORDS.findall(last)
    words = [word.lower() for word in found]
    if not words:
        return False
    if any(word in ANYWHERE for word in words):
        return words[-1] not in PATHS or words[-1] == "id"
    pairs = set(pairwise(words))
    if {("access", "key"), ("secret", "key"), ("private", "key"), ("api", "key")} & pairs:
        return words[-1] not in PATHS or words[-1] == "id"
    before = words[-2] if len(words) > 1 else ""
    if words[-1] in ("key", "keys"):  # an environment variable's, or one that says what it opens; `prompt_key` names a column
        return before in OPENING or (bool(before) and found[-1].isupper())
    if words[-1] == "token":
        return before not in OF_TEXT
    if words[-1] == "tokens":
        return before in OPENING
    return words[-1] in AT_THE_END or (words[-1] == "pass" and found[-1].isupper())


# --- values -------------------------------------------------------------------------------------------------------------------

_FREE = r"(?<![A-Za-z0-9])"  # not inside of another word
SHAPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", REDACTED),
        (r"(?i:https?://hooks\.slack(?:-gov)?\.com/)[^\s'\"<>]+", REDACTED),
        (r"(?i:https?://(?:[\w-]+\.)?discord(?:app)?\.com/api/(?:v\d+/)?webhooks/)[^\s'\"<>]+", REDACTED),
        (r"(?i:https?://[\w.-]*(?:webhook\.office|logic\.azure|chat\.googleapis|open\.feishu|oapi\.dingtalk|qyapi\.weixin)\.\w+/)"
         r"[^\s'\"<>]+", REDACTED),
        (r"(?i:(https?://api\.telegram\.org/))bot[^\s'\"<>/]+", rf"\1{REDACTED}"),
        (r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#:@'\"<>]*:[^\s/?#'\"<>]+@", rf"\1{REDACTED}@"),  # scheme://user:password@
        (r"((?i:https?)://)[^\s/?#:@'\"<>]+@", rf"\1{REDACTED}@"),  # https://token@
        (r"(?i:(\bauthorization[\"']?\s*[:=]\s*[\"']?))(?!<redacted>)(?:[A-Za-z]+\s+)?[^\s'\",]+", rf"\1{REDACTED}"),
        (r"(?i:\b(bearer)\s+)[A-Za-z0-9._~+/=-]{6,}", rf"\1 {REDACTED}"),
        (_FREE + r"eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*){0,3}", REDACTED),  # JWT
        (_FREE + r"hf_(?:[A-Za-z0-9]{14,}|(?=[A-Za-z0-9]*[0-9A-Z])[A-Za-z0-9]{8,})", REDACTED),
        (_FREE + r"(?:api_org_|api_)[A-Za-z]{30,}", REDACTED),
        (_FREE + r"(?:sk|rk|pk)[-_](?:(?:live|test|proj|ant|or|svcacct|admin)[-_])*(?:(?=[\w-]{0,99}\d)[\w-]{8,}|[\w-]{20,})",
         REDACTED),
        (_FREE + r"gh[pousr]_[A-Za-z0-9]{8,}", REDACTED),
        (_FREE + r"github_pat_\w{8,}", REDACTED),
        (_FREE + r"gl(?:pat|ptt|dt|rt|cbt|soat)-[\w-]{8,}", REDACTED),
        (_FREE + r"(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{12,}", REDACTED),
        (_FREE + r"AIza[\w-]{20,}", REDACTED),
        (_FREE + r"ya29\.[\w-]{8,}", REDACTED),
        (_FREE + r"xox[a-z](?:\.xox[a-z])?-[\w-]{6,}", REDACTED),
        (_FREE + r"xapp-\d-[\w-]{6,}", REDACTED),
        (_FREE + r"(?:npm|dckr_pat|dop_v1|nvapi|gsk|r8|pypi|glsa|wandb_v1|shpat|tskey|SG)[-_.](?=[\w.-]{0,99}\d)[\w.-]{20,}",
         REDACTED),
        (r"(?i:(\bwandb\W{1,3}(?:login|api\W?key)\W{1,3}))[0-9a-f]{40}\b", rf"\1{REDACTED}"),
    )
)  # fmt: skip
_OPTION = re.compile(r"(?<!\S)(?P<name>--?[A-Za-z][\w-]*)(?P<gap>\s+)(?P<value>\"[^\"]*\"|'[^']*'|[^\s\"'-]\S*)")
_NAMED = re.compile(r"(?<![\w.@/-])(?P<name>[A-Za-z_][\w.@/-]{0,200})(?P<gap>[\"']?\s?[:=]\s?)")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"'&]+")
_OVERRIDE = re.compile(r"(?P<name>[+~]{0,2}[A-Za-z_][\w.@/:-]*)=(?P<value>.*)", re.DOTALL)
_PLACEHOLDER = re.compile(r"…|\.\.\.|\*+|\$[A-Z_][A-Z0-9_]*|\$\(.*|<[a-z _-]*>|\$\{[\w.:]+\}")  # of a manual, a shell, or ours
_INTERPOLATION = re.compile(r"\$\{[\w.:]+\}")  # names where the value comes from, and holds none of it

_remembered: set[str] = set()


def remember(node: Any) -> None:
    """Replace from now on, wherever they occur, the secrets that a configuration or an environment holds by their keys."""
    for value in _secrets(node):
        honest = value.isalpha() or value.startswith(("/", "~", ".", "$", "<"))  # a word or a place: it would go from every text
        if len(value) >= LEAST_REMEMBERED and not honest:
            _remembered.add(value)


def forget() -> None:
    """Remember nothing more (for tests and for programs that handle several runs)."""
    _remembered.clear()


def redacted(node: Any, key: str = "") -> Any:
    """A copy of plain data (mappings, lists, texts, numbers) without its secrets.

    Args:
        node: what is written; an object of another class stays as it is.
        key: under which it stands; all of what stands below a secret's key goes.
    """
    if isinstance(node, Mapping):
        return {_key(name): redacted(value, _inherited(key, name, node)) for name, value in node.items()}
    if isinstance(node, list | tuple):
        items = [redacted(item, name) for item, name in zip(node, _names(node, key), strict=True)]
        return items if isinstance(node, list) else tuple(items)
    if isinstance(node, bytes):
        return redacted(node.decode("utf-8", errors="replace"), key)
    if key and is_secret(key):
        return _hidden(node, key)
    return redact_text(node) if isinstance(node, str) else node


def redact_text(text: str) -> str:
    """A text without the secrets that it holds: an override, a command line, JSON, a message.

    >>> redact_text("+env.HF_TOKEN=abc"), redact_text("https://me:pw@host/x"), redact_text("pad_token=<|pad|>")
    ('+env.HF_TOKEN=<redacted>', 'https://<redacted>@host/x', 'pad_token=<|pad|>')
    """
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    if text.lstrip()[:1] in ("{", "[") and (inner := _of_json(text)) is not None:
        return inner
    override = _OVERRIDE.fullmatch(text)
    if override and is_secret(override["name"]) and override["value"] and not _INTERPOLATION.fullmatch(override["value"]):
        return f"{override['name']}={REDACTED}"
    for pattern, replacement in SHAPES:
        text = pattern.sub(replacement, text)
    return _OPTION.sub(_of_option, _of_assignments(text))


def redacted_overrides(overrides: Sequence[str]) -> list[str]:
    """A command line without its secrets, argument by argument; values in brackets are read as Hydra reads them.

    >>> redacted_overrides(["algorithm=hpt", "+env={MY_PASSWORD:a b,A:1}"])
    ['algorithm=hpt', '+env={"MY_PASSWORD": "<redacted>", "A": 1}']
    """
    return [str(each) for each in redacted([_of_override(each) for each in overrides])]


def _of_override(override: str) -> str:
    name, _, value = override.partition("=")
    if value[:1] not in ("{", "["):
        return override
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        node = OverridesParser.create().parse_override(override).value()
    except HydraException:  # no override; its text is looked at all the same
        return override
    safe = redacted(node, name)
    return override if safe == node else f"{name}={json.dumps(safe, ensure_ascii=False, default=str)}"


def _of_assignments(text: str) -> str:
    """`name=value` and `name: value` in any surroundings; what follows another name is looked at in its turn."""
    parts, start = [], 0
    for found in _NAMED.finditer(text):
        if found.start() < start or not is_secret(found["name"]):
            continue
        if found["name"].lower() == "token" and found["gap"] in (": ", " : "):  # "unexpected token: }" assigns nothing
            continue
        value = _VALUE.match(text, found.end())
        if value is not None:
            parts += [text[start : found.end()], _in_quotes(value[0])]
            start = value.end()
    return "".join([*parts, text[start:]])


def _of_option(found: re.Match[str]) -> str:
    return f"{found['name']}{found['gap']}{_in_quotes(found['value'])}" if is_secret(found["name"]) else found[0]


def _in_quotes(value: str) -> str:
    """What stands in a value's place, with its quotes."""
    bare = value.strip("\"'")
    if not bare or _PLACEHOLDER.fullmatch(bare) or bare.startswith(REDACTED):
        return value
    return value.replace(bare, REDACTED) if value[0] in "\"'" else REDACTED


def _of_json(text: str) -> str | None:
    """JSON without its secrets; None if it is none, or has none."""
    try:
        node = json.loads(text)
        safe = redacted(node)
    except (ValueError, RecursionError):
        return None
    return None if safe == node else json.dumps(safe, ensure_ascii=False)


def _hidden(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value if not value or _INTERPOLATION.fullmatch(value) else REDACTED
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    counts = "token" in key.lower() and abs(value) < LARGEST_COUNT
    return value if counts else REDACTED


def _key(name: Any) -> Any:
    return redact_text(name) if isinstance(name, str) else name


def _inherited(above: str, name: Any, node: Mapping[Any, Any]) -> str:
    """The key that decides: the one above if it is secret, a neighbour of {"name": "HF_TOKEN", "value": …}, else its own."""
    if above and is_secret(above):
        return above
    if name == "value":
        named = next((node[each] for each in ("name", "key") if isinstance(node.get(each), str)), "")
        if named and is_secret(named):
            return str(named)
    return str(name)


def _names(items: list[Any] | tuple[Any, ...], key: str) -> Iterator[str]:
    """The key of every item: the list's, or what stands before it as an option's name (`--token`, abc) or in a pair."""
    for position, _ in enumerate(items):
        before = items[position - 1] if position else None
        yield before if _announces(before, len(items)) else key


def _announces(item: Any, length: int) -> bool:
    """Whether an item of a list is the key of the next one."""
    name = isinstance(item, str) and "=" not in item and " " not in item
    return name and (item.startswith("-") or length == 2) and is_secret(item)


def _secrets(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _secrets(value, _inherited(key, name, node))
    elif isinstance(node, list | tuple):
        for item, name in zip(node, _names(node, key), strict=True):
            yield from _secrets(item, name)
    elif isinstance(node, str) and key and is_secret(key):
        yield node
