"""Usage: client.py ask ADDRESS NAME CERTIFICATES
       client.py load ADDRESS NAME CERTIFICATES RATE

A client of the API server NAME, through ADDRESS:443. `ask` makes one request and prints who answered, and whose
certificate it was, whatever name that is. `load` makes RATE new TLS connections a second, with a request on each,
however slow the answers are, and 20 requests a second on one connection that it keeps; on SIGTERM it waits for
what is under way, and prints as JSON what came of it.
"""

import asyncio
import itertools
import json
import signal
import socket
import ssl
import sys
from collections import Counter

PORT = 443

#: Seconds after which one request has failed, and one under load: that TCP repeats a lost first packet after 1 s makes
#: an answer late, and is no failure to a client.
TIMEOUT = 1.0
TIMEOUT_UNDER_LOAD = 2.0

#: Seconds after which an answer is late: such a packet was lost.
LATE = 0.9

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: apiserver\r\n\r\n"


def ask(address: str, name: str, certificates: str) -> str:
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


class Load:
    def __init__(self, address: str, name: str, certificates: str) -> None:
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
            async with asyncio.timeout(TIMEOUT_UNDER_LOAD):
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


match sys.argv[1:]:
    case ["ask", address, name, certificates]:
        try:
            print(ask(address, name, certificates))
        except OSError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    case ["load", address, name, certificates, rate]:
        asyncio.run(Load(address, name, certificates).run(float(rate)))
    case _:
        sys.exit(__doc__)
