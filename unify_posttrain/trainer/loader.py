"""The training loader, able to hand out batches in the middle of a step (dynamic sampling) without losing its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class TrainLoader:
    """verl's StatefulDataLoader behind the same interface, with `extra` and a count of the batches it has handed out."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batches = 0
        self._iterator: Iterator[dict] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        self._iterator = iter(self.loader)
        while True:
            try:
                batch = next(self._iterator)  # not `for`: `extra` takes from the same iterator, or renews it
            except StopIteration:
                return
            self.batches += 1
            yield batch

    def extra(self) -> dict:
        """The next batch, of the next epoch if this one is used up."""
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.loader)
            batch = next(self._iterator)
        self.batches += 1
        return batch

    def restore(self, batches: int) -> None:
        """After `load_state_dict`: the count, and an epoch that was used up is let go, so that the next pass is the next epoch.

        Raises:
            RuntimeError: the loader is not where the count says.
        """
        self.batches = batches
        if batches and batches % len(self) == 0 and next(iter(self.loader), None) is not None:
            raise RuntimeError(f"the data loader is not where batch {batches} left it: the checkpoint's data.pt does not fit")

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state)

    @property
    def sampler(self) -> Any:
        return self.loader.sampler

    @property
    def dataset(self) -> Any:
        return self.loader.dataset
