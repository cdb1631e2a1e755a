"""A client of an API server, through an address: one request, or many a second; in a forked child (forked.py)."""

import asyncio
import itertools
import json
import signal
import socket
import ssl
import sys
from collections import Counter

PORT = 443

#: Seconds after which a single request has failed.
TIMEOUT = 1.0

#: Seconds after which an answer is late: such a packet was lost.
LATE = 0.9

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: apiserver\r\n\r\n"


def ask(address: str, name: str, certificates: str) -> None:
    """Make one request; print who answered, and whose certificate it was, whatever name that is; or the error."""
    try:
        print(_ask(address, name, certificates))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")


def _ask(address: str, name: str, certificates: str) -> str:
    context = ssl.create_default_context(cafile=certificates)
    context.check_hostname = False  # it is told, not judged
    with (
        socket.create_connection((address, PORT), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        connection.sendall(REQUEST)
        who = connection.recv(65536).decode().rpartition("\r\n")[2]
        certificate = connection.getpeercert()
        assert certificate
        return f"{who} answered, with the certificate of {certificate['subjectAltName'][0][1]}"


class _Load:
    def __init__(self, address: str, name: str, certificates: str, patience: float) -> None:
        self._patience = patience
        self._where = (address, PORT)
        self._name = name
        self._context = ssl.create_default_context(cafile=certificates)
        #: When each one succeeded, and how long it took: seconds.
        self._successes: list[tuple[float, float]] = []
        self._errors: Counter[str] = Counter()
        self._broken = 0

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._where, ssl=self._context, server_hostname=self._name)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        who = (await reader.readexactly(len(self._name))).decode()
        if who != self._name:
            raise ConnectionError(f"answered by {who}")

    async def _one(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await self._connect()
                try:
                    await self._exchange(reader, writer)
                finally:
                    writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            self._errors[f"{type(error).__name__}: {error}"] += 1
        else:
            self._successes.append((loop.time(), loop.time() - begun))

    async def _keep(self) -> None:
        """Use one connection for as long as it lasts, and then another one."""
        while True:
            try:
                reader, writer = await self._connect()
                while True:
                    await self._exchange(reader, writer)
                    await asyncio.sleep(0.05)
            except (OSError, asyncio.IncompleteReadError):
                self._broken += 1
                await asyncio.sleep(0.05)

    async def run(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
        await self._one()
        if self._errors:
            sys.exit(f"the first request failed: {self._errors}")
        self._successes.clear()
        kept = asyncio.create_task(self._keep())
        print("started", flush=True)
        begun, tasks = loop.time(), []
        while not stopped.is_set():
            tasks.append(asyncio.create_task(self._one()))
            await asyncio.sleep(max(0, begun + len(tasks) / rate - loop.time()))
        await asyncio.gather(*tasks)
        kept.cancel()
        ends = sorted(end for end, _ in self._successes)
        print(
            json.dumps(
                {
                    "requests": len(tasks),
                    "failed": sum(self._errors.values()),
                    "late": sum(took > LATE for _, took in self._successes),
                    "gap": max(after - before for before, after in itertools.pairwise(ends)),
                    "broken": self._broken,
                    "errors": self._errors,
                }
            )
        )


def load(address: str, name: str, certificates: str, rate: float, patience: float) -> None:
    """Make so many new TLS connections a second, with a request on each, however slow the answers are.

    And 20 requests a second on one connection that is kept. On SIGTERM wait for what is under way, and print as JSON
    what came of it. A request that takes more than `patience` seconds has failed.
    """
    asyncio.run(_Load(address, name, certificates, patience).run(rate))
