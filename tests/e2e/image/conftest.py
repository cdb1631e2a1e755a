import os
from collections.abc import Iterator

import pytest

from support.namespace import Namespace
from support.podman import Podman


@pytest.fixture(scope="session")
def image() -> str:
    """Return the name of the image, which scripts/test-image has built."""
    name = os.environ.get("TEST_IMAGE")
    if not name:
        pytest.skip("no image: scripts/test-image builds one and runs these tests")
    return name


@pytest.fixture
def podman(image: str, namespace: Namespace) -> Iterator[Podman]:  # noqa: ARG001 - it skips where there is none
    made = Podman(namespace)
    yield made
    made.clean()
