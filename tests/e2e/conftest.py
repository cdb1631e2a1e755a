import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import program, proxy
from support.namespace import Namespace
from support.program import Sidecar, Start


@pytest.fixture
def started() -> Iterator[list[Sidecar]]:
    """What still runs at the end of the test is killed."""
    started: list[Sidecar] = []
    yield started
    for sidecar in started:
        sidecar.kill()


@pytest.fixture
def start(namespace: Namespace, started: list[Sidecar]) -> Start:
    """Start the program with these flags and variables, in a forked child (support/forked.py)."""

    def start(*flags: str, **env: str) -> Sidecar:
        started.append(Sidecar(program.fork(namespace, *flags, env=env)))
        return started[-1]

    return start


@pytest.fixture
def execute(namespace: Namespace, started: list[Sidecar]) -> Start:
    """Start the program as it is installed, behind a prefix if there is one: where the process is the subject."""

    def execute(*flags: str, prefix: tuple[str, ...] = (), **env: str) -> Sidecar:
        started.append(Sidecar(program.execute(namespace, *flags, prefix=prefix, env=env)))
        return started[-1]

    return execute


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl here to make a certificate with")
    return proxy.make_certificate(tmp_path_factory.mktemp("tls") / "pem")
