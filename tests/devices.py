"""What a process of the tests may see of the machine's GPUs: nothing, unless it is one of tests/gpu."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

RANKS = 8  # more than any test on CPU starts
# An index that no GPU has, where CUDA stops reading. Not the empty string: the tests declare their ranks to Ray as GPUs
# (conf/hardware/cpu.yaml), and Ray refuses to start with more of them than this variable names. It hands the names out to its
# workers, which therefore see no GPU either.
NO_GPU = ",".join(["-1"] * RANKS)


def hide_gpus(environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide the GPUs from this process and all that it starts; to be called before anything asks CUDA for its devices.

    With a GPU in sight the actor would move batches to it while the tests build their models on the CPU.
    """
    environment["CUDA_VISIBLE_DEVICES"] = NO_GPU
