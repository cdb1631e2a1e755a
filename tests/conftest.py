from collections.abc import Iterator

import pytest
from hypothesis import settings
from loguru import logger
from pytest_mock import MockerFixture

from support.namespace import Namespace, NamespaceError

settings.register_profile("here", database=None, deadline=None)  # no folder left behind, no timed test
settings.load_profile("here")


@pytest.fixture
def privileged(mocker: MockerFixture) -> None:
    """Let this process count as privileged: the commands are, or are not real; the tests may run without root.

    And look for no lock where this process is: the commands are in a namespace.
    """
    mocker.patch("sidecar.privileges.missing", return_value=())
    mocker.patch("sidecar.lockfile.problem", return_value=None)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """Collect what is logged: `LEVEL message` lines."""
    lines: list[str] = []
    logger.remove()
    logger.add(lambda line: lines.append(str(line).rstrip()), format="{level} {message}")
    yield lines
    logger.remove()


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Skip where this machine makes no network namespaces."""
    try:
        with Namespace():
            pass
    except (NamespaceError, OSError) as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture
def namespace(_namespaces: None) -> Iterator[Namespace]:
    with Namespace() as made:
        yield made
