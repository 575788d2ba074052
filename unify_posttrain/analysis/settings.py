"""Read and check the configuration of `python -m unify_posttrain.analyze`; every mistake names key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.analysis.advantages import CREDITS
from unify_posttrain.analysis.forgetting import SELECTS
from unify_posttrain.analysis.forgetting_report import Forgetting
from unify_posttrain.analysis.sweeps import starts
from unify_posttrain.analysis.weights.conduct import Comparison
from unify_posttrain.analysis.weights.measures import Precision
from unify_posttrain.analysis.weights.pairs import Selection, parse_layers
from unify_posttrain.analysis.weights.recovery import Recovery
from unify_posttrain.analysis.weights.restore import ALIGNED, MODES
from unify_posttrain.measures.statistics import Bootstrap

WHATS = ("recovery", "angles", "spectrum", "advantages", "forgetting")
PRECISIONS = ("float32", "float64")
LABEL = re.compile(r"[^\w.-]+")


def chosen_what(config: DictConfig) -> str:
    """The key `what`.

    Raises:
        ValueError: unset or unknown.
    """
    if config.what is None:
        raise ValueError(
            f"what is not set; choose one of {', '.join(WHATS)}, e.g. python -m unify_posttrain.analyze angles base=… tuned=…"
        )
    return _one_of("what", config.what, WHATS)


def recovery(config: DictConfig) -> Recovery:
    """Settings of `recovery`.

    Raises:
        ValueError: a value that cannot be used.
    """
    tuned = _plain(config.tuned)
    if tuned is not None and not isinstance(tuned, str):
        raise ValueError(f"tuned={tuned}: recovery restores one model; give one folder, and run the command once for each")
    modes = tuple(dict.fromkeys(_one_of("mode", each, MODES) for each in _list(config.mode)))
    if not modes:
        raise ValueError(f"mode=[] restores nothing; choose among {', '.join(MODES)}")
    tail = _share("tail", _plain(config.tail))
    if tail and ALIGNED in modes:
        raise ValueError(f"tail={tail}: mode=aligned restores the top alone; set tail=0, or mode= without aligned")
    tops = tuple(dict.fromkeys((type(top), top) for top in (_share("top", each) for each in _list(config.top))))
    if not tail and not any(top for _, top in tops):
        raise ValueError(
            f"top={_plain(config.top)}, tail={tail} restore nothing; give a number or a share above 0, e.g. top=[0.1,1.0]"
        )
    return Recovery(
        base=_folder("base", config.base),
        tuned=_folder("tuned", tuned),
        selection=_selection(config),
        modes=modes,
        tops=tuple(top for _, top in tops),
        tail=tail,
        gap=_positive("cut_gap", config.cut_gap),
        seed=_whole("seed", config.seed, 0),
        dtype=_dtype(config),
        device=_device(config),
        shard_mb=_whole("shard_mb", config.shard_mb, 1),
        output=Path(str(config.output)),
        overwrite=bool(config.overwrite),
    )


def comparison(config: DictConfig) -> Comparison:
    """Settings of `angles` and `spectrum`.

    Raises:
        ValueError: a value that cannot be used.
    """
    subspaces = tuple(_share("subspaces", each) for each in _list(config.subspaces))
    if not all(subspaces) or not subspaces:
        raise ValueError(f"subspaces={_plain(config.subspaces)}: give numbers or shares above 0, e.g. subspaces=[0.1,64]")
    how = Precision(
        subspaces=subspaces,
        gap=_positive("rank_gap", config.rank_gap),
        per_rank=_whole("per_rank", config.per_rank, 0),
        bins=_whole("bins", config.bins, 1),
        random_tolerance=_positive("random_tolerance", config.random_tolerance),
        seed=_whole("seed", config.seed, 0),
        dtype=_dtype(config),
        device=_device(config),
    )
    return Comparison(
        what=str(config.what),
        base=_folder("base", config.base),
        tuned=_labelled(_plain(config.tuned)),
        selection=_selection(config),
        how=how,
        factor=_factor(config.factor),
        output=Path(str(config.output)),
        overwrite=bool(config.overwrite),
    )


def credit_of(config: DictConfig, run: Path) -> str:
    """The key `credit`, else that of the run's environment, else trajectory.

    Raises:
        ValueError: something else.
    """
    value = config.credit
    if value is None and (run / "config.yaml").is_file():
        value = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "environment.credit", default=None)
    return _one_of("credit", value or CREDITS[0], CREDITS)


def forgetting(config: DictConfig) -> Forgetting:
    """Settings of `forgetting`.

    Raises:
        ValueError: a value that cannot be used.
    """
    sft, rl = _plain(config.sft), _plain(config.rl)
    if not sft:
        raise ValueError(
            f"sft={sft}: give the evaluation of a fine-tuning run, e.g. sft=gp-sft of python -m unify_posttrain.evaluate"
        )
    if isinstance(sft, list):
        rls = [None] * len(sft) if rl is None else rl
        if (
            not isinstance(rls, list)
            or len(rls) != len(sft)
            or not all(each is None or isinstance(each, list | Mapping) for each in rls)
        ):
            raise ValueError(
                f"rl={rl}: sft= lists {len(sft)} seeds; give as many lists or {{step: name}}, e.g. rl=[[a-100],[b-100]]"
            )
    else:
        sft, rls = [sft], [rl]
    return Forgetting(
        seeds=tuple((str(name), starts(each)) for name, each in zip(sft, rls, strict=True)),
        evaluations=Path(str(config.evaluations)),
        id=None if config.id is None else str(config.id),
        ood=None if config.ood is None else str(config.ood),
        select=_one_of("select", config.select, SELECTS),
        end=None if config.end is None else _whole("end", config.end, 0),
        how=Bootstrap(
            confidence=float(config.statistics.confidence),
            resamples=_whole("statistics.resamples", config.statistics.resamples, 1),
            seed=_whole("seed", config.seed, 0),
        ),
        output=Path(str(config.output)),
        overwrite=bool(config.overwrite),
        published=tuple(_plain(config.published)),
    )


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _list(node: Any) -> list[Any]:
    value = _plain(node)
    return list(value) if isinstance(value, list) else [value]


def _one_of(key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{key}={value} is unknown; choose one of {', '.join(known)}")
    return str(value)


def _whole(key: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}={value} must be a whole number of at least {least}")
    return value


def _positive(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{key}={value} must be a number between 0 and 1")
    return float(value)


def _factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise ValueError(f"factor={value} must be a number of at least 1, e.g. 1.25")
    return float(value)


def _share(key: str, value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value <= 1):
        raise ValueError(f"{key}={value}: give a whole number of indices, or a share from 0.0 to 1.0 (1.0: all, 1: one)")
    return value


def _folder(key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}={value}: give the folder of a model, e.g. {key}=outputs/runs/sft/export/step_100")
    return Path(value).expanduser()


def _labelled(value: Any) -> dict[str, Path]:
    """label -> folder; labels of folders are their last parts, numbered where two are the same."""
    if isinstance(value, Mapping):
        return {LABEL.sub("_", str(label)): _folder("tuned", folder) for label, folder in value.items()}
    found: dict[str, Path] = {}
    for each in value if isinstance(value, list) and value else [value]:
        folder = _folder("tuned", each)
        label = name = LABEL.sub("_", folder.name)
        number = 2
        while label in found:
            label, number = f"{name}-{number}", number + 1
        found[label] = folder
    return found


def _selection(config: DictConfig) -> Selection:
    try:
        re.compile(str(config.modules))
    except re.error as error:
        raise ValueError(
            f"modules={config.modules} is no regular expression: {error}; quote it for the shell and for Hydra"
        ) from error
    return Selection(str(config.modules), parse_layers(_plain(config.layers)))


def _dtype(config: DictConfig) -> Any:
    import torch

    return getattr(torch, _one_of("precision", config.precision, PRECISIONS))


def _device(config: DictConfig) -> Any:
    import torch

    name = str(config.device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device={name} is unknown; choose one of auto, cpu, cuda")
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= torch.cuda.device_count():
        raise ValueError(f"device={name} is not there ({torch.cuda.device_count()} are visible); set device=auto or device=cpu")
    return torch.device(name)
