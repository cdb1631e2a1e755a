"""The house: imports go one way only, the pure rooms stay pure, and each library has one user."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sidecar"

#: From the ground up; rooms on one floor do not meet.
NAMES = ["errors text", "state", "firewall", "settings", "log", "node", "daemon doctor", "commands"]
FLOORS = [set(names.split()) for names in NAMES]

#: What has no I/O, no clock and no log; and the modules of the standard library that have none either.
PURE = [
    *PACKAGE.glob("state/*.py"),
    *PACKAGE.glob("firewall/*.py"),
    *(PACKAGE / "node" / name for name in ("netlink.py", "nft_expressions.py", "listings.py", "seen.py")),
]
HARMLESS = {
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "fnmatch",
    "functools",
    "ipaddress",
    "itertools",
    "json",
    "re",
    "shlex",
    "struct",
    "typing",
}

#: Who alone may import what.
USERS = {
    "sh": "node/command",
    "pydantic": "settings/sources",
    "pydantic_core": "settings/sources",
    "pydantic_settings": "settings/sources",
    "dotenv": "settings/sources",
    "prometheus_client": "daemon/metrics",
    "subprocess": "nobody",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    floor = next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))
    above = {name for rooms in FLOORS[floor:] for name in rooms} - {room}
    found = {name.split(".")[1] for name in imports(path) if name.startswith("sidecar.")}
    assert not found & above
    libraries = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"sidecar"}
    place = str(path.relative_to(PACKAGE).with_suffix(""))
    assert {USERS.get(library, place) for library in libraries | ({"subprocess"} & {*imports(path)})} <= {place}


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_rooms_stay_pure(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} <= HARMLESS | {"sidecar"}
