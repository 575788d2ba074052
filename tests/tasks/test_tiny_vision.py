"""The tiny model that sees: an ordinary Qwen2.5-VL folder, whose processor loads without network, and its pretraining."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

from tests.tiny_vision import SETTINGS
from unify_posttrain.shapes import Sight, model_shape
from unify_posttrain.tasks import pretraining, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_base_model(tmp_path_factory.mktemp("models") / "tiny_vl", SETTINGS)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(folder, use_fast=True)


def test_the_folder_is_an_ordinary_qwen2_5_vl(folder: Path, processor: Qwen2_5_VLProcessor) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration) and isinstance(processor, Qwen2_5_VLProcessor)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {getattr(each, "eos_token_id", None) for each in (model.generation_config, model.config, model.config.text_config)}
    assert ends - {None} == {tokenizer.eos_token_id}  # transformers 5 has it in one of the latter, 4 in the other
    assert model.config.image_token_id == processor.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert model.config.text_config.vocab_size == len(tokenizer) == 280
    shape = model_shape(str(folder))
    assert shape is not None and shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.sight == Sight(layers=2, hidden=16, intermediate=32, merge=2, patch=14)


def test_bytes_are_tokens_and_roles_are_one_token_each(processor: Qwen2_5_VLProcessor) -> None:
    tokenizer = processor.tokenizer
    text = "é ✓ How many?\x00"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    for role in ("system", "user", "assistant"):
        assert len(tokenizer(role)["input_ids"]) == 1


def test_the_frame_around_a_picture_has_the_size_of_qwens(processor: Qwen2_5_VLProcessor) -> None:
    """A later turn that shows a picture of n tokens is 11 + n ids, one with text 9 and its tokens, as with Qwen's tokenizer."""
    count = lambda text: len(processor.tokenizer(text)["input_ids"])  # noqa: E731
    frame = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert count(frame.format("<|vision_start|><|vision_end|>")) == 11 and count(frame.format("")) == 9


@pytest.mark.parametrize(("size", "tokens"), [((56, 56), 4), ((112, 84), 12), ((20, 20), 4), ((84, 2000), 3 * 71)])
def test_pictures_are_as_many_tokens_as_their_cells(processor: Qwen2_5_VLProcessor, size: tuple[int, int], tokens: int) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False)
    seen = processor(text=[text], images=[Image.new("RGB", size)], return_tensors="pt")
    assert (seen["input_ids"] == processor.image_token_id).sum() == tokens
    assert seen["pixel_values"].shape == (4 * tokens, 2 * 3 * 14 * 14)
    assert seen["input_ids"].shape[1] == tokens + 2 + 1 + 8


def test_training_rows_are_what_post_training_shows(processor: Qwen2_5_VLProcessor) -> None:
    examples = [
        ("How many red circles?", "x. 1\n.. 1\nanswer 1", Image.new("RGB", (56, 56))),
        ("Any?", "no", Image.new("RGB", (84, 56))),
    ]
    inputs, labels = pretraining.encode_pictures(processor, examples)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6]] and len(inputs["pixel_values"]) == 16 + 24
    for row, (_, solution, _) in enumerate(examples):
        trained = labels[row][labels[row] != pretraining.IGNORE_INDEX]
        assert processor.tokenizer.decode(trained) == f"{solution}<|im_end|>"


def test_pictures_have_positions_in_two_directions_in_pretraining_too(folder: Path, processor: Qwen2_5_VLProcessor) -> None:
    """As in post-training: a picture of two rows and three columns of cells. transformers 5 takes those of text if it is not told
    which tokens are of pictures."""
    model, picture, found = AutoModelForImageTextToText.from_pretrained(folder), Image.new("RGB", (84, 56)), []
    language = model.model.language_model
    language.register_forward_pre_hook(lambda _, args, given: found.append(given["position_ids"]), with_kwargs=True)
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "no"}]}
    drawn = (
        pretraining.encode_pictures(processor, [("?", "no", picture), ("Longer?", "no", picture)]),
        pretraining.encode_chats(processor, [([asked, said], [picture])]),
    )
    for inputs, _ in drawn:
        model(**inputs, use_cache=False)
        cells = inputs["input_ids"][0] == processor.image_token_id
        height, width = (each[cells].tolist() for each in found[-1][-2:, 0])
        assert [each - height[0] for each in height] == [0, 0, 0, 1, 1, 1]
        assert [each - width[0] for each in width] == [0, 1, 2, 0, 1, 2]


def test_pretraining_lowers_the_loss_and_moves_the_tower_that_sees(tmp_path: Path) -> None:
    settings, losses = copy.deepcopy(SETTINGS), []
    settings["pretraining"] |= {"steps": 12, "lr": 1e-2}
    trained = tiny_model.build_base_model(tmp_path / "a", settings, lambda step, steps, loss: losses.append(loss))
    settings["pretraining"]["steps"] = 1
    begun = tiny_model.build_base_model(tmp_path / "b", settings)
    assert losses[-1] < losses[0] - 1
    towers = [AutoModelForImageTextToText.from_pretrained(each).model.visual.state_dict() for each in (trained, begun)]
    assert all(not torch.equal(towers[0][name], towers[1][name]) for name in ("patch_embed.proj.weight", "merger.mlp.2.weight"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: (s.pop("vision"), s.pop("rope_theta")), "pretraining.task='shapes': pictures need node `vision`"),
        (lambda s: s["vision"].pop("patch"), r"missing \['vision.patch'\]"),
        (lambda s: s["pretraining"].update(cell=5), "pretraining.cell=5"),
        (lambda s: s.update(max_position_embeddings=30), "max_position_embeddings=30: the longest problem"),
    ],
    ids=["no vision", "half a vision", "cell", "context"],
)
def test_settings_that_make_no_model(tmp_path: Path, change, said: str) -> None:
    settings = copy.deepcopy(SETTINGS)
    change(settings)
    with pytest.raises(ValueError, match=said):
        tiny_model.build_base_model(tmp_path / "m", settings)
