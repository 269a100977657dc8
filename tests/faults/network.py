"""A TCP line between the product and a stand-in that can be cut at any moment, as a cable is."""

import socket
import struct
import threading
import time
from contextlib import suppress

PIECE_BYTES = 65536
# Closing then sends a reset: what the other side had not read is lost to it.
ABORT = struct.pack("ii", 1, 0)


class Line:
    """Listens at `port` and passes on to `target`; 64 KiB on their way there take `pace_s`, so that uploads last.

    `broken` counts what a cut broke: ends of open connections, and connections that were refused.
    """

    def __init__(self, target: int, pace_s: float) -> None:
        self._target, self._pace_s = target, pace_s
        self._is_up = True
        self.broken = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_busy(self) -> bool:
        """Whether a connection is open at this moment."""
        return bool(self._open)

    def cut(self) -> None:
        """Breaks every connection; new ones are broken too, until `mend`."""
        self._is_up = False
        for end in list(self._open):
            self.broken += 1
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_up = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # it was closed
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._target)) as far:
            if self._is_up:
                self._open |= {near, far}
                back = threading.Thread(target=_pass_on, args=(far, near, 0.0), daemon=True)
                back.start()
                _pass_on(near, far, self._pace_s)
                back.join()
                self._open -= {near, far}
            else:
                self.broken += 1
            if not self._is_up:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)


def _pass_on(source: socket.socket, sink: socket.socket, pace_s: float) -> None:
    with suppress(OSError):  # an end that was cut
        while piece := source.recv(PIECE_BYTES):
            sink.sendall(piece)
            time.sleep(pace_s * len(piece) / PIECE_BYTES)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
