"""Rows that show pictures, before Ray: lengths as the model sees them, pictures that lie elsewhere, a processor that is absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import transformers

from tests.tiny_vision import picture
from unify_posttrain.backend.seams import BACKENDS, LEGACY
from unify_posttrain.config import compose_config
from unify_posttrain.startup.data_checks import DataReport, check_data
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.startup.model_checks import check_weights
from unify_posttrain.startup.tokenizers import load_processor
from unify_posttrain.tasks.shapes import rows as shapes
from unify_posttrain.untrusted.picture_paths import PictureError, placed_picture

SPLITS = {
    "easy": {"side": [2], "train": 4, "test": 4},
    "hard": {"side": [3], "train": 4, "test": 4},
    "ood": {"side": [4], "train": 0, "test": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write_splits(folder, {"seed": 0, "cell": 28, "hits": 3, "splits": SPLITS})
    return folder


@pytest.fixture
def compose(data: Path, seeing_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))

    def run(*overrides: str, folder: Path = data):
        return compose_config(
            [
                "task=shapes", "model=tiny_qwen2_5_vl", "hardware=cpu", "algorithm=hpt",
                f"data.train_files={folder}/train.parquet", f"data.val_files={folder}/test.parquet",
                f"actor_rollout_ref.model.path={seeing_folder}", "data.train_batch_size=4", "trainer.total_training_steps=2",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4", "data.filter_overlong_prompts_workers=1", *overrides,
            ]
        )  # fmt: skip

    return run


def test_lengths_count_the_tokens_of_pictures(compose: Callable) -> None:
    # Side 3: 9 tokens of the picture and 2 marks, 8 of the template, and a question of at least "How many red circles?", 21 bytes.
    report = check_data(
        compose("data.max_prompt_length=39", "data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2")
    )
    whole = check_data(compose())
    assert (whole.train_rows, whole.train_dropped, whole.pictures, whole.picture_tokens) == (8, 0, 1, 16)
    assert 0 < report.train_dropped < 8 and report.picture_tokens == 4  # a text of the same question would have passed
    with pytest.raises(ValueError, match=r"longer than data\.max_prompt_length=39"):
        check_data(compose("data.max_prompt_length=39", "data.filter_overlong_prompts=false"))


def test_the_dry_run_says_what_prompts_show_and_what_seeing_takes(compose: Callable) -> None:
    config = compose()
    report = DataReport(8, 0, 10, 0, pictures=1, picture_tokens=16)
    said = describe_run(config, report)
    assert "pictures     at most 1 per prompt and 16 tokens of them" in said and "vision tower is trained" in said
    assert "vision tower, of the pictures of a pass" in said
    frozen = describe_run(compose("actor_rollout_ref.actor.freeze_vision_tower=true"), report)
    assert "vision tower is frozen" in frozen and "of the pictures of a pass" not in frozen
    assert "pictures" not in describe_run(config, DataReport(8, 0, 10, 0))


def test_memory_is_checked_again_with_what_the_data_shows(compose: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("unify_posttrain.startup.data_checks.check_memory", lambda config, algorithm, seen: asked.append(seen))
    report = check_data(compose())
    assert asked == [report.seen_tokens] == [16]


def test_more_pictures_than_the_engine_keeps_memory_for(compose: Callable) -> None:
    with pytest.raises(ValueError, match=r"limit_images=0: a prompt of the data shows 1 pictures"):
        check_data(compose("+actor_rollout_ref.rollout.limit_images=0"))


def test_a_processor_that_cannot_be_made_is_said_before_ray(compose: Callable, seeing_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(seeing_folder, folder)
    for name in ("preprocessor_config.json", "processor_config.json"):  # newer transformers write one file of everything
        (folder / name).unlink(missing_ok=True)
    config = compose(f"actor_rollout_ref.model.path={folder}")
    with pytest.raises(ValueError, match=r"its processor cannot be made \(.*processor.*install the extra `vl`"):
        check_data(config)
    with pytest.raises(ValueError, match="its processor cannot be made"):
        load_processor(config, str(folder))


def test_vllm_must_see_the_pictures_that_are_trained_on(compose: Callable, seeing_folder: Path) -> None:
    engine = ("actor_rollout_ref.rollout.name=vllm", "hardware=cpu_vllm")
    assert load_processor(compose(*engine), str(seeing_folder)) is not None
    changed = compose(*engine, "+actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs.max_pixels=3136")
    with pytest.raises(ValueError, match=r"mm_processor_kwargs=\{'max_pixels': 3136\} would change pictures for the engine alone"):
        load_processor(changed, str(seeing_folder))


@pytest.mark.skipif(LEGACY not in BACKENDS, reason="transformers 5 describes every picture's size so, and vLLM 0.24 reads it")
def test_bounds_of_pictures_that_vllm_would_not_read(compose: Callable, seeing_folder: Path, tmp_path: Path) -> None:
    engine, folder = ("actor_rollout_ref.rollout.name=vllm", "hardware=cpu_vllm"), tmp_path / "by_size"
    shutil.copytree(seeing_folder, folder)
    described = json.loads((folder / "preprocessor_config.json").read_text())
    described |= {"min_pixels": None, "max_pixels": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r'add "min_pixels": 3136 and "max_pixels": 200704 to it'):
        load_processor(compose(*engine), str(folder))
    assert load_processor(compose(), str(folder)) is not None, "the transformers engine asks the processor itself"


def test_a_folder_that_transformers_4_wrote_in_a_way_that_5_does_not_read(
    compose: Callable, seeing_folder: Path, tmp_path: Path
) -> None:
    """The tiny model's folder is the same model for both."""
    folder = tmp_path / "older"
    shutil.copytree(seeing_folder, folder)
    described = json.loads((folder / "config.json").read_text())
    config = compose(f"actor_rollout_ref.model.path={folder}")
    check_weights(config, needs_critic=False)
    described["text_config"] |= {name: described.pop(name) for name in ("architectures", "tie_word_embeddings")}
    assert described["text_config"]["tie_word_embeddings"] is True
    (folder / "config.json").write_text(json.dumps(described))
    if transformers.__version__.startswith("4."):
        check_weights(config, needs_critic=False)
        return
    said = r'older: its config\.json .*add "architectures": \["Qwen2_5_VL.*"\], "tie_word_embeddings": true beside'
    with pytest.raises(ValueError, match=said):
        check_weights(config, needs_critic=False)


def test_a_missing_picture_names_its_row(compose: Callable, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    row = pq.read_table(folder / "train.parquet").to_pylist()[2]
    (folder / row["images"][0]["image"]).unlink()
    with pytest.raises(ValueError, match=r"train\.parquet, row 2: the picture images/\w+\.png does not exist in "):
        check_data(compose(folder=folder))
    (folder / row["images"][0]["image"]).write_text("no picture")
    with pytest.raises(
        ValueError, match=r"train\.parquet, row 2: its images or videos cannot be processed \(UnidentifiedImageError"
    ):
        check_data(compose(folder=folder))


def test_pictures_may_lie_in_a_folder_of_their_own(compose: Callable, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(data / name, folder)
    with pytest.raises(ValueError, match=r"does not exist in .*rows; move it there, or set data\.image_root"):
        check_data(compose(folder=folder))
    assert check_data(compose(f"data.image_root={data}", folder=folder)).pictures == 1


# --- what a row may name -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "images").mkdir(parents=True)
    picture(56, 56).save(folder / "images" / "a.png")
    picture(56, 56).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.mark.parametrize("name", ["images/a.png", "./images/../images/a.png", "ABSOLUTE", "FILE"])
def test_pictures_under_the_root_are_placed(root: Path, name: str) -> None:
    there = root / "images" / "a.png"
    given = {"ABSOLUTE": str(there), "FILE": there.as_uri()}.get(name, name)
    for picture_of_row in (given, {"image": given, "bytes": None}, {"path": given, "bytes": None}):
        assert placed_picture(picture_of_row, root, "row 0") == {"image": str(there.resolve())}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret.png", "is outside of"),
        ("link.png", "is outside of"),
        ("/etc/hostname", "is outside of"),
        ("file:///etc/hostname", "is outside of"),
        ("http://127.0.0.1:1/a.png", "is an address, which a run does not open"),
        ("s3://bucket/a.png", "is an address"),
        ("file://elsewhere/a.png", "is on another machine"),
        ("images/b.png", "does not exist in"),
        ("", "does not exist in"),
    ],
)
def test_pictures_that_a_run_does_not_open(root: Path, name: str, said: str) -> None:
    with pytest.raises(PictureError, match=rf"^row 4: the picture .*{said}"):
        placed_picture({"image": name}, root, "row 4")


def test_what_is_no_picture(root: Path) -> None:
    with pytest.raises(PictureError, match=r"row 4: a picture must be \{image: path\} or \{bytes: …\}, not \"\{'image': 3\}\""):
        placed_picture({"image": 3}, root, "row 4")
    assert placed_picture({"bytes": b"abc", "path": "/home/them/a.png"}, root, "row 4") == {"bytes": b"abc"}
    inline = {"image": "data:image/png;base64,AAAA"}
    assert placed_picture(inline, root, "row 4") == inline


def test_a_model_that_sees_has_no_critic(compose: Callable) -> None:
    with pytest.raises(
        ValueError, match=r"critic\.model\.path=.*no critic of the architecture qwen2_5_vl .*use an algorithm without"
    ):
        check_weights(compose("algorithm=ppo"), needs_critic=True)
