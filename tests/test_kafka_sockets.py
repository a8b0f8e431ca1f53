"""kafka-python is given more of a broker's answer at a time than it asks for."""

import asyncio
import socket
import threading

from kafka.net.inet import KafkaNetSocket

from idlewatt.stream.kafka_sockets import LONG_READS


def test_a_read_brings_what_is_there() -> None:
    """By the sockets that kafka-python makes for this proxy, which is none: they connect straight to the broker."""
    sent = bytes(range(256)) * 200
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        proxy = KafkaNetSocket(LONG_READS)
        (address, *_) = proxy.dns_lookup(*server.getsockname())
        made = asyncio.run(proxy.connect(_Blocking(), address))
        thread.join()
        with made:
            made.setblocking(True)
            found, reads = b"", 0
            while some := made.recv(4096):
                found, reads = found + some, reads + 1
    assert found == sent
    assert reads < len(sent) / 4096 / 2


class _Blocking:
    """What a proxy asks of kafka-python's selector."""

    async def wait_write(self, made: socket.socket, timeout_at: float | None = None) -> None:
        del timeout_at
        made.settimeout(10)
