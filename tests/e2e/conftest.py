from collections.abc import Callable, Iterator

import pytest

from support.namespace import Namespace
from support.program import PROGRAM, Sidecar


@pytest.fixture
def start(namespace: Namespace) -> Iterator[Callable[..., Sidecar]]:
    """Start the program with these flags; whatever still runs at the end of the test is killed."""
    started: list[Sidecar] = []

    def start(*flags: str, prefix: tuple[str, ...] = (), **env: str) -> Sidecar:
        sidecar = Sidecar(namespace.start(*prefix, str(PROGRAM), *flags, env=env))
        started.append(sidecar)
        return sidecar

    yield start
    for sidecar in started:
        if sidecar.process.poll() is None:
            sidecar.process.kill()
            sidecar.process.communicate()
