"""What `plan` and `cleanup` say. For `status` see test_status.py."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.commands import cleanup
from sidecar.commands import plan as rendered
from sidecar.commands.cleanup import DRY_RUN_SCHEMA, Cleaned
from sidecar.commands.plan import SCHEMA, Plan
from sidecar.settings.options import Origin
from sidecar.state.actions import (
    Action,
    AddAddress,
    AddRule,
    CreateLink,
    DeleteLink,
    MoveToFront,
    RemoveAddress,
    RemoveRule,
    RemoveSurplus,
    SetLinkUp,
)
from sidecar.state.desired import desired
from sidecar.state.model import Address
from support.namespace import IPV4, IPV6

SCHEMAS = Path(__file__).parents[3] / "docs" / "schema"

GOAL = desired([IPV4], interface="lo", port=443, setup_iptables=True)
RULE = GOAL.rules[0]

STEPS = (
    (CreateLink("dummy0", "dummy"), ("echo link", "echo 'and a  mark'")),
    (AddAddress(GOAL.addresses[0], "host"), ("echo address",)),
)
TODO = Plan(STEPS, (), 1, SCHEMA, "in sync: nothing to do")
NOTHING = replace(TODO, steps=(), exit_code=0)


def valid(text: str) -> dict[str, Any]:
    """Return an answer in JSON that its schema has been held against."""
    assert "\n" not in text
    value: dict[str, Any] = json.loads(text.encode())
    jsonschema.validate(value, json.loads((SCHEMAS / f"{value['schema'].replace('/', '.')}.json").read_text()))
    return value


def said_by_a_shell(text: str) -> list[str]:
    return subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_plan_is_its_commands_and_else_comments() -> None:
    forged = "x\necho forged"
    plan = replace(TODO, origin=Origin(detail=forged), warnings=(forged,), kept=(forged,), failures=(forged,))
    assert rendered.plan_text(plan).splitlines() == [
        "# settings x\\necho forged",
        "# warning: x\\necho forged",
        "echo link",
        "echo 'and a  mark'",
        "echo address",
        "# kept, because an instance running on this node needs it: x\\necho forged",
        "# error: x\\necho forged",
    ]
    assert said_by_a_shell(rendered.plan_text(plan)) == ["link", "and a  mark", "address"]


def test_a_plan_without_anything_to_do_says_so_unless_something_is_left_open() -> None:
    assert rendered.plan_text(NOTHING) == "# in sync: nothing to do"
    assert rendered.plan_text(replace(NOTHING, warnings=("w",))) == "# warning: w\n# in sync: nothing to do"
    assert rendered.plan_text(replace(NOTHING, failures=("f",))) == "# error: f"
    assert "nothing to do" not in rendered.plan_text(replace(NOTHING, kept=("k",)))


def test_a_plan_as_json() -> None:
    assert valid(
        rendered.plan_json(
            replace(TODO, origin=Origin("sidecar", 7, "of pid 7"), warnings=("w",), kept=("k",), failures=("f",))
        )
    ) == {
        "schema": "plan/v2",
        "exit": 1,
        "settings_of": {"kind": "sidecar", "pid": 7, "detail": "of pid 7"},
        "steps": [
            {"action": "create interface dummy0 (dummy)", "commands": list(STEPS[0][1]), "interface": "dummy0"},
            {"action": "add 10.96.0.2/32 to lo", "commands": ["echo address"]} | GOAL.addresses[0].facts,
        ],
        "kept": ["k"],
        "warnings": ["w"],
        "failures": ["f"],
    }


ACTIONS: tuple[Action, ...] = (
    *(CreateLink("dummy0", "dummy"), SetLinkUp("lo"), DeleteLink("dummy0")),
    *(AddAddress(GOAL.addresses[0], "host"), RemoveAddress(Address(IPV6, 128, "eth0"))),
    *(AddRule(RULE, insert=True), MoveToFront(RULE, "-A INPUT -j DROP"), RemoveSurplus(RULE, 2), RemoveRule(RULE, 1)),
)


@pytest.mark.parametrize("schema", [SCHEMA, DRY_RUN_SCHEMA])
def test_every_action_is_in_the_schemas(schema: str) -> None:
    plan = replace(TODO, schema=schema, steps=tuple((each, ("true",)) for each in ACTIONS))
    assert [each["action"] for each in valid(rendered.plan_json(plan))["steps"]] == [each.todo for each in ACTIONS]


# What a cleanup did

CLEAN = Cleaned(("r",), ("a",), (), (), (), ("w",), 0)
LEFT = replace(CLEAN, left=("l",), failures=("f",), exit_code=1)
KEPT = replace(CLEAN, kept=("k",), exit_code=1)
FORGED = replace(CLEAN, removed=("x\nclean \x1b[2J",), absent=(), warnings=())


@pytest.mark.parametrize(
    ("done", "first", "others"),
    [
        (CLEAN, "clean: nothing is left on this node", "removed    r|not there  a|warning: w"),
        (
            LEFT,
            "not clean: some objects could not be removed",
            "left       l|removed    r|not there  a|warning: w|error: f",
        ),
        (
            KEPT,
            "not clean: an instance running on this node needs it; stop that instance first",
            "in use     k|removed    r|not there  a|warning: w",
        ),
        (
            replace(LEFT, kept=("k",), removed=(), absent=()),
            "not clean: some objects could not be removed",
            "left       l|in use     k|warning: w|error: f",
        ),
        (FORGED, "clean: nothing is left on this node", r"removed    x\nclean \x1b[2J"),
    ],
)
def test_what_a_cleanup_did(done: Cleaned, first: str, others: str) -> None:
    assert cleanup.cleaned_text(done).split("\n") == [first, *others.split("|")]


def test_what_a_cleanup_did_fits_the_terminal() -> None:
    done = replace(CLEAN, removed=("word " * 40,), warnings=("word " * 40,))
    assert max(map(len, cleanup.cleaned_text(done, 60).splitlines())) <= 60


def test_a_cleanup_as_json() -> None:
    lists = {"removed": ["r"], "absent": ["a"], "kept": ["k"], "left": ["l"], "failures": ["f"], "warnings": ["w"]}
    done = Cleaned(("r",), ("a",), ("k",), ("l",), ("f",), ("w",), 3)
    assert valid(cleanup.cleaned_json(done)) == {"schema": "cleanup/v1", "exit": 3} | lists
