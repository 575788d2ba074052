"""verl's receiver of weights for a process whose tensors are the sender's memory itself.

verl tells the sender that a bucket has arrived before it loads what is in it. On a GPU it has copied the tensors by then. On CPU it
has not: they lie in the memory that both processes share, and the sender would write the next bucket into it while they are read.
"""

from __future__ import annotations

from typing import Any


class LateReply:
    """A socket that answers a request only when the next one is read, or when it is closed: after the work in between."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._reply = socket, None

    def send(self, reply: bytes) -> None:
        self._reply = reply

    def recv_pyobj(self) -> Any:
        self._answer()
        return self._socket.recv_pyobj()

    def close(self) -> None:
        self._answer()
        self._socket.close()

    def _answer(self) -> None:
        if self._reply is not None:
            self._socket.send(self._reply)
            self._reply = None


def replying_late(receiver: type) -> type:
    """verl's `BucketedWeightReceiver`, with such a socket."""

    class LateReceiver(receiver):
        def _init_socket(self) -> None:
            super()._init_socket()
            self.socket = LateReply(self.socket)

    return LateReceiver
