"""Lets kafka-python take more from a socket at a time than the 4 KiB it asks for.

A broker answers with megabytes. In pieces of 4 KiB they cost a system call each, and twice a thread's turn.
"""

import socket
from typing import Any, Final

from kafka.net.inet import KafkaNetSocket

_READ_BYTES: Final = 256 * 1024


class _Socket(socket.socket):
    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(max(size, _READ_BYTES), flags)


class LongReads(KafkaNetSocket):  # type: ignore[misc]
    """Known to kafka-python, by its own register of proxies, as a proxy that is none."""

    SCHEMES = ("long-reads",)

    def socket(
        self,
        family: int = socket.AF_UNSPEC,
        sock_type: int = socket.SOCK_STREAM,
        proto: int = socket.IPPROTO_TCP,
    ) -> Any:
        return _Socket(family, sock_type, proto)


LONG_READS: Final = "long-reads://"
