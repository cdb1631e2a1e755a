"""DESIGN: imports go down only. Here is which file stands on which floor; a new one must be put on one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sidecar"

FLOORS = {
    0: {"__init__", "errors", "model", "desired", "plan", "shadow", "parse", "releases", "netlink", "durations"}
    | {"oneline", "pflag", "flags", "values", "klog", "options", "verbosity", "survey"}
    | {"findings", "procparse", "certificate", "traverse"},
    1: {"command", "privileges", "iproute", "iptables", "backends", "lockfile", "claims", "events", "legacy_probe"}
    | {"wakeup", "apart", "procfs", "probe", "kernel", "instances", "vitals"},
    2: {"reconcile", "daemon", "looks", "check_node", "check_network", "check_others", "check_use", "diagnose"},
    3: {
        "settings",
        "logs",
        "health",
        "metrics",
        "logfiles",
        "run",
        "inspection",
        "clean",
        "doctor",
        "render",
        "render_status",
        "loading",
        "answers",
    }
    | {"cli", "__main__"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}

#: Who alone may import what.
RESERVED = {
    "sh": "command",
    "pydantic": "settings",
    "pydantic_core": "settings",
    "pydantic_settings": "settings",
    "dotenv": "settings",
    "prometheus_client": "metrics",
}


def imports(path: Path) -> set[str]:
    """Return the names of all imported modules; our own without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                found |= {alias.name.removeprefix("sidecar.") for alias in names}
            case ast.ImportFrom(module="sidecar", names=names):
                found |= {alias.name if alias.name in FLOOR else "__init__" for alias in names}
            case ast.ImportFrom(module=str(module)):
                found.add(module.removeprefix("sidecar."))
    return found


def test_every_file_is_on_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_go_down_only(module: str) -> None:
    own = imports(PACKAGE / f"{module}.py") & set(FLOOR)
    assert {name for name in own if FLOOR[name] > FLOOR[module]} == set()


@pytest.mark.parametrize("module", sorted(FLOORS[0]))
def test_the_ground_floor_needs_the_standard_library_only_and_does_no_io(module: str) -> None:
    pure = {"collections", "dataclasses", "datetime", "decimal", "difflib", "enum", "fnmatch", "ipaddress", "json"}
    pure |= {"re", "shlex", "struct", "typing"}
    others = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py") - set(FLOOR)}
    assert others <= pure


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_one_file_runs_commands_and_one_reads_settings(module: str) -> None:
    for name in imports(PACKAGE / f"{module}.py"):
        assert RESERVED.get(name.split(".")[0], module) == module
