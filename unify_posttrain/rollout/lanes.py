"""Decoding in several processes, one thread each. For models on the CPU.

A token's operations are small. Two threads that share each of them spend half of their time meeting; two processes with half of the
rows each meet once per batch. The processes are forks of this one and see its weights, those too that it is given later. They are
started when a batch is first large enough for them, and end with the thread that started them.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unify_posttrain.mortal import die_with_parent
from unify_posttrain.rollout.decoding import Decoded, Finished, decode, in_order
from unify_posttrain.rollout.pictures import Inputs, picture_keys
from unify_posttrain.rollout.sampling import SamplingParams

ROWS = 32  # of a process, at least: each reads all weights for every token


class Lanes:
    """Decodes with a model: large batches in several processes, small ones in this one with all of its threads.

    Args:
        model: on its device, in eval mode. Its weights may be changed in place between batches.
        processes: of a large batch, this one included; as many as this one has threads. On a GPU there is one.

    Raises:
        ValueError: less than one process.
    """

    def __init__(self, model: PreTrainedModel, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"lanes={processes}: decoding takes at least one process; set 1 or more")
        self.model = model
        self._most = processes if model.device.type == "cpu" else 1
        self._others: list[_Lane] = []
        self._busy: dict[Any, tuple[_Lane, Tensor]] = {}  # by connection: who decodes which rows
        self._shared = False

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        eos_ids: Sequence[int],
        pad_id: int,
        portion: int,
        pictures: Sequence[Inputs] | None = None,
    ) -> Iterator[Finished]:
        """As :func:`unify_posttrain.rollout.decoding.decode`. To be called by one thread, always the same.

        Raises:
            RuntimeError: a process has ended, or decoding failed in it; the text says how.
        """
        shares = self._shares(prompts, pictures)
        portion = -(-portion // len(shares))
        jobs = [
            (
                [prompts[row] for row in share],
                [params[row] for row in share],
                eos_ids,
                pad_id,
                portion,
                None if pictures is None else [pictures[row] for row in share],
            )
            for share in shares
        ]
        self._start(len(shares) - 1)
        for lane, job, share in zip(self._others, jobs[1:], shares[1:], strict=False):
            lane.send(job)
            self._busy[lane.connection] = lane, torch.tensor(share)
        own, rows = decode(self.model, *jobs[0]), torch.tensor(shares[0])
        while (part := _next(own, alone=len(shares) == 1)) is not None:
            yield _moved(part, rows)
            yield from self._received(seconds=0)
        while self._busy:
            yield from self._received(seconds=None)

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        eos_ids: Sequence[int],
        pad_id: int,
        pictures: Sequence[Inputs] | None = None,
    ) -> list[Decoded]:
        """One response per prompt, in the order of the prompts; see :meth:`decode`."""
        return in_order(self.decode(prompts, params, eos_ids, pad_id, len(prompts), pictures), len(prompts))

    def _shares(self, prompts: Sequence[Sequence[int]], pictures: Sequence[Inputs] | None) -> list[list[int]]:
        """Which rows each process decodes. Rows that share a prompt stay together, as it is prefilled once for them."""
        lanes = self._most
        if lanes == 1 or len(prompts) < lanes * ROWS:
            return [list(range(len(prompts)))]
        shown = picture_keys(pictures or [{}] * len(prompts))
        known: dict[tuple[tuple[int, ...], bytes], int] = {}
        groups = [known.setdefault((tuple(prompt), key), len(known)) for prompt, key in zip(prompts, shown, strict=True)]
        by = groups if len(known) >= lanes else range(len(prompts))
        return [[row for row, group in enumerate(by) if group % lanes == lane] for lane in range(lanes)]

    def _received(self, seconds: float | None) -> Iterator[Finished]:
        """What other processes have sent; waits for as many seconds, None: until there is something."""
        for connection in wait(list(self._busy), seconds) if self._busy else ():
            lane, rows = self._busy[connection]
            part = lane.receive()
            if isinstance(part, Finished):
                yield _moved(part, rows)
                continue
            del self._busy[connection]
            if part is not None:
                raise RuntimeError(f"decoding failed in a process of the engine: {part}")

    def _start(self, others: int) -> None:
        """Have so many processes beside this one, with nothing left to do of a batch that was given up."""
        for lane, _ in self._busy.values():
            while isinstance(lane.receive(), Finished):
                continue
        self._busy = {}
        if len(self._others) < others and not self._shared:
            _share_weights(self.model)
            self._shared = True
        while len(self._others) < others:
            self._others.append(_Lane(self.model))

    def close(self) -> None:
        """End the processes; a later batch starts others."""
        for lane in self._others:
            lane.close()
        self._others, self._busy = [], {}


class _Lane:
    """A process beside this one: batches go in, portions of rows come back."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.connection, theirs = Pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            _live(model, theirs, parent)
        theirs.close()
        self._ended = False

    def send(self, job: tuple[Any, ...]) -> None:
        try:
            self.connection.send_bytes(pickle.dumps(job))
        except OSError as error:
            raise RuntimeError(self.epitaph()) from error

    def receive(self) -> Finished | str | None:
        """A portion; None after the last one; a text if decoding failed."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise RuntimeError(self.epitaph()) from error

    def epitaph(self) -> str:
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else has taken note of its end
            return f"a process of the engine (lane {self.pid}) has ended while it was decoding"
        finally:
            self._ended = True
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"a process of the engine (lane {self.pid}) has ended while it was decoding: {how}; with SIGKILL, look at memory"

    def close(self) -> None:
        self.connection.close()
        if not self._ended:  # else its number may be somebody else's by now
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _next(parts: Iterator[Finished], alone: bool) -> Finished | None:
    """The next portion, by all threads if nobody else computes."""
    threads = torch.get_num_threads()
    if not alone:
        torch.set_num_threads(1)
    try:
        return next(parts, None)
    finally:
        torch.set_num_threads(threads)


def _moved(part: Finished, rows: Tensor) -> Finished:
    return Finished(rows[part.rows], part.lengths, part.token_ids, part.log_probs)


def _share_weights(model: PreTrainedModel) -> None:
    """Move the weights into memory that forks see as well, when they are written to later. Not through files of /dev/shm, which is
    small in containers."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel():
            memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
            tensor.data = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor.data)


def _live(model: PreTrainedModel, connection: Connection, parent: int) -> NoReturn:
    """A lane's life. Of what it was forked from it uses the model alone."""
    try:
        die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        kept = connection.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        torch.set_num_threads(1)
        gc.freeze()  # searching what it was forked from for garbage would copy all of it
        while True:
            job, last = pickle.loads(connection.recv_bytes()), None
            try:
                for part in decode(model, *job):
                    connection.send_bytes(pickle.dumps(part))
            except Exception as error:  # whatever it is, who waits for the batch must hear of it
                last = f"{type(error).__name__}: {error}"
            connection.send_bytes(pickle.dumps(last))
    except (EOFError, OSError):
        os._exit(0)  # nobody asks any more
    finally:
        os._exit(1)
