"""Where a run reads and writes: what of it may lie elsewhere than on this machine's disks."""

from __future__ import annotations

import shutil

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.paths import FILES, MODELS, WRITTEN, check_local, is_remote

HDFS = "hdfs"  # the one address that verl fetches from, by the program of this name


def check_places(config: DictConfig) -> None:
    """Refuse addresses that nothing here can read or write, and settings of verl under which trained weights would be lost.

    Raises:
        ValueError: names key, value and remedy.
    """
    for key in WRITTEN:
        check_local(key, OmegaConf.select(config, key, default=None))
    for key in (*MODELS, *FILES):
        value = OmegaConf.select(config, key, default=None)
        for each in value if OmegaConf.is_list(value) else [value]:
            _check_read(key, each)
    hdfs = OmegaConf.select(config, "trainer.default_hdfs_dir", default=None)
    if hdfs is not None:
        raise ValueError(
            f"trainer.default_hdfs_dir={hdfs}: verl cannot resume from there, and what this package saves beside verl's files "
            "would not get there; set it to null and copy the checkpoints of trainer.default_local_dir"
        )
    if OmegaConf.select(config, "trainer.del_local_ckpt_after_load", default=False):
        raise ValueError(
            "trainer.del_local_ckpt_after_load=true deletes a checkpoint before there is a newer one: a run that ends in between "
            "has none; set it to false, trainer.max_actor_ckpt_to_keep=1 keeps one"
        )


def _check_read(key: str, value: object) -> None:
    if not is_remote(value):
        return
    scheme = str(value).partition("://")[0]
    if scheme != HDFS:
        raise ValueError(f"{key}={value}: verl reads folders and hdfs://, not {scheme}://; download it, and give the folder")
    if shutil.which(HDFS) is None:
        raise ValueError(
            f"{key}={value}: verl fetches it by the program `hdfs`, which is not on the PATH; install it, or download it"
        )
