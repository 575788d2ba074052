"""Questions and conversations in two published layouts, checked item by item.

    questions       {"examples": [{"uid", "query", "reference_answer", "meta_info": {"file_name", "reference_page", …}}]}
    trajectories    [{"messages": [{"role", "content"}, …], "images": [path, …]}]       of LLaMA-Factory

The answers of a trajectory must be actions, the last one an answer, and what the user says between them images or texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.vrag.corpus import PageError, within
from unify_posttrain.tasks.vrag.protocol import ANSWER, INVALID, read_action
from unify_posttrain.tasks.vrag.targets import IMAGE, shown_images
from unify_posttrain.untrusted.documents import STRICT, DocumentError, parse

MARK = "Question:"  # before the question, in the prompts of published trajectories
CONTENT, REASON = ("source_type", "content_type"), ("query_type", "reason_type")

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        uid: of the item.
        text: the question.
        answers: each of them right.
        file_name, pages: the document and its pages that matter; None and none if they are not known.
        content_type, reason_type: what is asked for and how; "" if that is not known.
        target: messages of a worked answer, the assistant's at both ends; empty: there is none.
        target_images: of the target, in their order: a path, or {"page_id", "rect"} as JSON.
    """

    uid: str
    text: str
    answers: tuple[str, ...]
    file_name: str | None = None
    pages: tuple[int, ...] = ()
    content_type: str = ""
    reason_type: str = ""
    target: tuple[Message, ...] = ()
    target_images: tuple[str, ...] = ()


def read_questions(path: Path, key: str) -> list[Question]:
    """The examples of a file of questions.

    Raises:
        ValueError: no such layout, or an example that is none; names the key, the file and the number of the example.
    """
    found = _load(path, key)
    examples = found.get("examples") if isinstance(found, Mapping) else None
    if not isinstance(examples, list) or not examples:
        raise ValueError(f'{key}={path}: must be {{"examples": [{{"uid", "query", "reference_answer", "meta_info"}}, …]}}')
    return [_question(example, f"{key}={path}, example {number}") for number, example in enumerate(examples, start=1)]


def _question(example: Any, where: str) -> Question:
    if not isinstance(example, Mapping):
        raise ValueError(f"{where}: must be an object, not {str(example)[:80]!r}")
    query, meta = example.get("query"), example.get("meta_info")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"{where}: query={str(query)[:80]!r} must be a text that says something")
    if not isinstance(meta, Mapping):
        raise ValueError(f"{where}: meta_info={str(meta)[:80]!r} must be an object with file_name and reference_page")
    file_name = meta.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        raise ValueError(f"{where}: meta_info.file_name={str(file_name)[:80]!r} must be the name of a document")
    pages = meta.get("reference_page")
    pages = pages if isinstance(pages, list) else [pages]
    if not pages or any(type(page) is not int or page < 0 for page in pages):
        raise ValueError(f"{where}: meta_info.reference_page={str(pages)[:80]} must be a list of numbers of pages")
    uid = example.get("uid")
    if not isinstance(uid, str | int) or isinstance(uid, bool) or uid == "":
        raise ValueError(f"{where}: uid={str(uid)[:80]!r} must be a text or a number")
    kinds = [next((str(meta[name]) for name in names if meta.get(name) is not None), "") for names in (CONTENT, REASON)]
    answers = _answers(example.get("reference_answer"), where)
    return Question(str(uid), query.strip(), answers, file_name, tuple(dict.fromkeys(pages)), *kinds)


def _answers(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    texts = [getattr(each, "text", None) or str(each) for each in values if isinstance(each, str | int | float)]
    if not texts or len(texts) != len(values) or any(isinstance(each, bool) for each in values) or not all(map(str.strip, texts)):
        raise ValueError(f"{where}: reference_answer={str(value)[:80]!r} must be a text or a number that says something, or a list")
    return tuple(text.strip() for text in texts)


def read_trajectories(path: Path, images: Path | None, crop_tag: str, key: str) -> list[Question]:
    """The questions of a file of conversations, with these as targets.

    Args:
        path: of the file.
        images: folder under which its images are.
        crop_tag: of the protocol.
        key: of the configuration.

    Raises:
        ValueError: no such layout, or a conversation that is none; names the key, the file and its number.
    """
    if images is None:
        raise ValueError(
            f"{key}={path} has images; set {key.rpartition('.')[0]}.trajectory_images to the folder under which they are"
        )
    found = _load(path, key)
    if not isinstance(found, list) or not found:
        raise ValueError(f'{key}={path}: must be a list [{{"messages": […], "images": […]}}, …]')
    return [
        _trajectory(item, f"{key}={path}, item {number}", number, images, crop_tag) for number, item in enumerate(found, start=1)
    ]


def _trajectory(item: Any, where: str, number: int, root: Path, crop_tag: str) -> Question:
    if not isinstance(item, Mapping) or not isinstance(item.get("messages"), list):
        raise ValueError(f"{where}: must be an object with messages and images, not {str(item)[:80]!r}")
    messages = [_message(message, where) for message in item["messages"]]
    if messages and messages[0]["role"] == "system":
        messages = messages[1:]  # how to go about it, which our own prompt says
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{where}: user and assistant must take turns, user first and assistant last, not {', '.join(roles) or 'none'}"
        )
    asked, target = messages[0]["content"], messages[1:]
    if IMAGE in asked:
        raise ValueError(f"{where}: the first message shows an image; images are what searches bring, so leave the item out")
    question = asked.rpartition(MARK)[2].strip()
    if not question:
        raise ValueError(f"{where}: the first message asks nothing")
    actions = [read_action(message["content"], crop_tag) for message in target[::2]]
    for place, action in enumerate(actions, start=1):
        if action.kind == INVALID or (action.kind == ANSWER) != (place == len(actions)):
            raise ValueError(
                f"{where}: answer {place} of {len(actions)} is {action.kind}, and all but the last must search or crop (by "
                f"environment.crop_tag={crop_tag}), the last must answer; leave the item out"
            )
    names = item.get("images") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: images={str(names)[:80]} must be a list of paths")
    try:
        shown = sum(shown_images(message["content"]) for message in target[1::2])
        paths = [str(within(root, name)) for name in names]
        absent = next((path for path in paths if not Path(path).is_file()), None)
    except (PageError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if absent is not None:
        raise ValueError(f"{where}: there is no file {absent}")
    if shown != len(paths):
        raise ValueError(f"{where}: {shown} marks {IMAGE} for {len(paths)} images; give one for each")
    return Question(f"trajectory-{number}", question, (actions[-1].text,), target=tuple(target), target_images=tuple(paths))


def _message(message: Any, where: str) -> Message:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    if role not in ("system", "user", "assistant") or not isinstance(content, str) or not content.strip():
        raise ValueError(
            f"{where}: a message must be {{role: system | user | assistant, content: text}}, not {str(message)[:80]!r}"
        )
    return {"role": role, "content": content}


def _load(path: Path, key: str) -> Any:
    try:
        return parse(path.expanduser().read_bytes(), STRICT)
    except OSError as error:
        raise ValueError(f"{key}={path} cannot be read ({error.strerror}); give a JSON file") from error
    except DocumentError as error:
        raise ValueError(f"{key}={path} cannot be read: {error}; give a JSON file") from error
