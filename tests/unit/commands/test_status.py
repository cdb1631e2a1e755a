"""What `status` says. For `plan` and `cleanup` see test_plan.py."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.commands import status as rendered
from sidecar.commands.status import Status, summary
from sidecar.settings.options import Origin
from sidecar.state.desired import desired
from sidecar.state.inventory import Item, State
from sidecar.state.model import BackendInUse
from support.namespace import IPV4

SCHEMAS = Path(__file__).parents[3] / "docs" / "schema"

GOAL = desired([IPV4], interface="lo", port=443, setup_iptables=True)
RULE = GOAL.rules[0]
INTERFACE = Item("interface", "lo", State.PRESENT, facts={"interface": "lo"})
ADDRESS = Item("address", "10.96.0.2/32 on lo", State.PRESENT, facts=GOAL.addresses[0].facts)
RULES = tuple(Item("rule", str(rule), State.PRESENT, facts=rule.facts) for rule in GOAL.rules)

IN_SYNC = Status(
    items=(INTERFACE, ADDRESS, *RULES),
    in_sync=True,
    exit_code=0,
    backends=(BackendInUse(4, "iptables-nft", "1.8.9", is_legacy=False, reason="kubelet's chains are there"),),
    settings=("--ip-address=10.96.0.2", "--setup-iptables=true"),
    origin=Origin(),
    time=datetime(2026, 11, 26, 19, 5, 7, tzinfo=timezone(timedelta(hours=2))),
    warnings=(),
    failures=(),
)
DETAILS = {State.COPIES: "3 copies", State.ELSEWHERE: "it is on eth0", State.NO_EFFECT: "behind `-A INPUT -j DROP`"}


def having(*states: State, in_sync: bool = False) -> Status:
    """Return a status in which the first rules are in these states."""
    states += (State.PRESENT,) * (len(RULES) - len(states))
    found = (
        replace(rule, state=state, detail=DETAILS.get(state, "")) for rule, state in zip(RULES, states, strict=True)
    )
    return replace(IN_SYNC, items=(INTERFACE, ADDRESS, *found), in_sync=in_sync, exit_code=int(not in_sync))


def rows(status: Status, *, is_coloured: bool = False) -> list[str]:
    """Return the lines of the table."""
    return rendered.status_text(status, is_coloured=is_coloured).split("\n\n")[2].split("\n")


def valid(text: str) -> dict[str, Any]:
    """Return an answer in JSON that its schema has been held against."""
    assert "\n" not in text
    value: dict[str, Any] = json.loads(text.encode())
    jsonschema.validate(value, json.loads((SCHEMAS / f"{value['schema'].replace('/', '.')}.json").read_text()))
    return value


# The first line of status


def test_in_sync_it_says_what_is_held() -> None:
    assert summary(IN_SYNC) == "in sync: 10.96.0.2/32 on lo, 5 rules"
    other = replace(ADDRESS, name="fd00:10:96::2/128 on lo")
    assert summary(replace(IN_SYNC, items=(INTERFACE, ADDRESS, other))) == (
        "in sync: 10.96.0.2/32 on lo, fd00:10:96::2/128 on lo"
    )


def test_in_sync_it_does_not_hide_what_helps_nobody() -> None:
    held = "in sync: 10.96.0.2/32 on lo, 5 rules"
    assert summary(having(State.NO_EFFECT, in_sync=True)) == f"{held}; but 1 without effect"
    down = replace(INTERFACE, state=State.DOWN)
    assert summary(replace(IN_SYNC, items=(down, *having(State.NO_EFFECT).items[1:]))) == (
        f"{held}; but 1 down, 1 without effect"
    )


@pytest.mark.parametrize(
    ("states", "said", "first"),
    [
        ([State.MISSING], "1 missing, of 7; first missing", 0),
        ([State.COPIES, State.COPIES], "2 with copies, of 7; first 3 copies", 0),
        ([State.UNKNOWN, State.NO_EFFECT], "1 without effect, 1 unknown, of 7; first no effect", 1),
        ([State.DOWN, State.UNUSABLE, State.MISSING], "1 missing, 1 unusable, 1 down, of 7; first missing", 2),
        ([State.UNUSABLE, State.ELSEWHERE], "1 on another interface, 1 unusable, of 7; first elsewhere", 1),
        ([State.COPIES, State.MISSING, State.MISSING], "2 missing, 1 with copies, of 7; first missing", 1),
    ],
)
def test_what_is_worst_is_told_first(states: list[State], said: str, first: int) -> None:
    assert summary(having(*states)) == f"{said}: {RULES[first].name}"


def test_if_all_that_was_seen_is_right_the_failures_say_why_it_is_not_in_sync() -> None:
    failed = replace(IN_SYNC, in_sync=False, exit_code=3, failures=("could not look", "no time left"))
    assert summary(failed) == "not in sync: could not look; no time left"


def test_why_something_could_not_be_looked_at_is_told_first() -> None:
    blind = replace(having(State.UNKNOWN, State.MISSING), cause="ip does not answer")
    assert summary(blind) == "ip does not answer; 1 missing, 1 unknown, of 7"
    assert summary(replace(IN_SYNC, in_sync=False, exit_code=1, cause="ip does not answer")) == "ip does not answer"


# The text of status


def test_the_whole_text() -> None:
    status = replace(having(State.MISSING, State.COPIES, State.NO_EFFECT), warnings=("lo is odd",), failures=("no",))
    assert rendered.status_text(status, is_coloured=False).splitlines() == [
        "1 missing, 1 with copies, 1 without effect, of 7; first missing: -t raw -A PREROUTING -d",
        "  10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
        "",
        "settings   --ip-address=10.96.0.2 --setup-iptables=true",
        "IPv4 rules iptables-nft 1.8.9: kubelet's chains are there",
        "",
        "present    interface lo",
        "present    10.96.0.2/32 on lo",
        "missing    -t raw -A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
        "3 copies   -t raw -A OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
        "no effect  -t raw -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK (behind `-A INPUT",
        "           -j DROP`)",
        "present    -t filter -A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT",
        "present    -t filter -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT",
        "",
        "warning: lo is odd",
        "error: no",
    ]


def test_whose_settings_they_are() -> None:
    text = rendered.status_text(
        replace(IN_SYNC, origin=Origin("sidecar", 7, "of pid 7 (this program), running here")), is_coloured=False
    )
    assert "--setup-iptables=true (of pid 7 (this program), running here)" in " ".join(text.split())
    assert "()" not in rendered.status_text(IN_SYNC, is_coloured=False)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_no_line_is_longer_than_the_terminal_is_wide_and_nothing_is_lost(columns: int) -> None:
    words = [f"word-{number}" for number in range(40)]
    long = " ".join(words)
    status = replace(
        IN_SYNC,
        items=(INTERFACE, replace(ADDRESS, detail=long)),
        in_sync=False,
        backends=(BackendInUse(6, "ip6tables-nft", "1.8.9", is_legacy=False, reason=long),),
        settings=tuple(words),
        warnings=(long,),
        failures=(long,),
    )
    lines = rendered.status_text(status, is_coloured=False, columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert "\n".join(lines).split().count("word-20") == 6  # told also as the reason in the first line
    after = {lines[at][: lines[at].index("word")] for at in range(1, len(lines)) if lines[at].startswith(" ")}
    assert after == {"  ", " " * 11}


RED, GREEN, YELLOW, MAGENTA = "31", "32", "33", "35"
COLOURS = dict.fromkeys(State, RED) | {State.PRESENT: GREEN, State.NO_EFFECT: YELLOW, State.UNKNOWN: MAGENTA}


@pytest.mark.parametrize("state", State)
def test_colour_is_for_the_state_only_and_takes_nothing_away(state: State) -> None:
    plain, coloured = rows(having(state)), rows(having(state), is_coloured=True)
    start, end = f"\x1b[{COLOURS[state]}m", "\x1b[0m"
    assert coloured[2] == f"{start}{plain[2][:11]}{end}{plain[2][11:]}"
    assert "\x1b" not in rendered.status_text(having(state), is_coloured=False)


def test_nothing_from_outside_forges_a_line_or_moves_the_cursor() -> None:
    forged = "x\npresent \x1b[2J\udcff"
    status = replace(
        IN_SYNC,
        items=(replace(INTERFACE, name=forged), replace(ADDRESS, detail=forged, state=State.MISSING)),
        in_sync=False,
        settings=(forged,),
        warnings=(forged,),
        failures=(forged,),
    )
    text = rendered.status_text(status, is_coloured=False)
    assert "\x1b" not in text
    assert text.encode().count(b"x\\npresent \\x1b[2J\\udcff") == 5
    assert len(rows(status)) == 2


def test_a_later_look_that_finds_the_same_is_not_a_change() -> None:
    assert replace(IN_SYNC, time=IN_SYNC.time + timedelta(seconds=2)) == IN_SYNC


# The JSON of status


def test_status_as_json() -> None:
    copies = replace(RULES[0], state=State.COPIES, detail="3 copies", facts=RULE.facts | {"copies": 3})
    status = replace(having(State.COPIES), items=(INTERFACE, ADDRESS, copies), origin=Origin("other", 7, "of pid 7"))
    assert valid(rendered.status_json(replace(status, warnings=("w",), failures=("f", "é\n\udcff")))) == {
        "schema": "status/v2",
        "time": "2026-11-26T19:05:07+02:00",
        "exit": 1,
        "in_sync": False,
        "summary": f"1 with copies, of 3; first 3 copies: {RULE}",
        "settings": ["--ip-address=10.96.0.2", "--setup-iptables=true"],
        "settings_of": {"kind": "other", "pid": 7, "detail": "of pid 7"},
        "backends": [
            {"family": 4, "command": "iptables-nft", "version": "1.8.9", "reason": "kubelet's chains are there"}
        ],
        "items": [
            {"kind": "interface", "name": "lo", "state": "present", "detail": "", "interface": "lo"},
            {"kind": "address", "name": "10.96.0.2/32 on lo", "state": "present", "detail": ""}
            | {"address": "10.96.0.2/32", "interface": "lo"},
            {"kind": "rule", "name": str(RULE), "state": "copies", "detail": "3 copies"}
            | {"rule": str(RULE), "family": 4, "copies": 3},
        ],
        "warnings": ["w"],
        "failures": ["f", "é\n\udcff"],
    }


@pytest.mark.parametrize("state", State)
def test_every_state_is_in_the_schema(state: State) -> None:
    assert valid(rendered.status_json(having(state)))["items"][2]["state"] == state.value
