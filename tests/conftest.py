import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from loguru import logger
from pytest_mock import MockerFixture

from sidecar.node.programs import path_of
from sidecar.state.model import Family
from support.namespace import Namespace, NamespaceError
from support.program import Fake

#: Examples of each property, by default and with --thorough.
_EXAMPLES: Final = 5
_MANY_EXAMPLES: Final = 100

_NODE = Path(__file__).parent / "node"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also what takes long: every moment, every subset, …")


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis leave no folder behind, and time no test."""
    examples = _MANY_EXAMPLES if config.getoption("--thorough") else _EXAMPLES
    settings.register_profile("here", database=None, deadline=None, max_examples=examples)
    settings.load_profile("here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for; let an ordinary user run all that works on the kernel."""
    is_thorough = config.getoption("--thorough")
    for item in items:
        if item.path.is_relative_to(_NODE) and (is_thorough or not _is_for_root(item)):
            item.add_marker("any_user")
    if not is_thorough:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_for_root(item: pytest.Item) -> bool:
    """Whether an ordinary user can do without it: it is long, or tries a backend with its other family."""
    given = set(re.findall(r"nft|legacy|IPv[46]", item.name))
    return bool(item.get_closest_marker("long")) or given in ({"nft", "IPv6"}, {"legacy", "IPv4"})


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether a test is to try everything, or a choice."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return 4 if request.param == 4 else 6


@pytest.fixture
def privileged(mocker: MockerFixture) -> None:
    """Let this process count as privileged: the commands are, or are not real; the tests may run without root.

    And look for no lock where this process is: the commands are in a namespace.
    """
    mocker.patch("sidecar.node.capabilities.missing", return_value=())
    mocker.patch("sidecar.node.xtables_lock.problem", return_value=None)


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


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Put a shell script in the place of a command; return the environment in which it is found first.

    In the script, $real is the command itself and $here the folder of the test.
    """

    def fake(name: str, script: str) -> dict[str, str]:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nreal={path_of(name)}\nhere={tmp_path}\n{script}\n")
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return fake
