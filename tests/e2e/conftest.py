import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Put a shell script in the place of a command; return the environment in which it is found first."""

    def fake(name: str, script: str) -> dict[str, str]:
        real = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
        path.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return fake
