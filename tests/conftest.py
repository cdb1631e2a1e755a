from collections.abc import Iterator

import pytest
from loguru import logger

from support.namespace import Namespace, NamespaceError


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
