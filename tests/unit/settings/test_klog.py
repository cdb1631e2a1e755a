import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sidecar.settings import klog
from sidecar.settings.klog import Entry, Place, Severity, Vmodule

ENTRY = Entry(
    severity=Severity.INFO,
    verbosity=4,
    time=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    pid=42,
    path="/usr/lib/sidecar/daemon.py",
    line=90,
    message="added 10.96.0.2/32 to lo",
    facts={"address": "10.96.0.2/32", "seconds": 0.5},
)


@pytest.mark.parametrize("severity", Severity)
def test_the_header(severity: Severity) -> None:
    line = klog.as_text(replace(ENTRY, severity=severity))
    assert line == f"{severity.name[0]}0102 03:04:05.000678      42 daemon.py:90] added 10.96.0.2/32 to lo\n"


def test_the_header_has_room_for_seven_digits_and_more() -> None:
    assert " 1234567 daemon" in klog.as_text(replace(ENTRY, pid=1234567))
    assert ".000678 12345678 daemon" in klog.as_text(replace(ENTRY, pid=12345678))


def test_the_header_with_the_directory_or_none_at_all() -> None:
    assert " sidecar/daemon.py:90] " in klog.as_text(ENTRY, add_dir_header=True)
    assert klog.as_text(ENTRY, skip_headers=True) == "added 10.96.0.2/32 to lo\n"


def test_no_line_can_be_forged() -> None:
    entry = replace(ENTRY, message="said: first\nE1122 00:00:00.000000 1 x.py:1] second \x1b[31m \r \u2028 ü\x00\udc80")
    line = klog.as_text(entry)
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "ü" in line
    assert klog.as_json(entry).count("\n") == 1
    assert json.loads(klog.as_json(entry))["msg"] == entry.message.replace("\udc80", "\\udc80")
    entry = replace(ENTRY, facts={"settings": {"interface": "\udc80"}})
    assert json.loads(klog.as_json(entry))["settings"] == {"interface": "\\udc80"}


def test_an_object_has_the_names_of_kubernetes_and_the_facts() -> None:
    assert json.loads(klog.as_json(replace(ENTRY, severity=Severity.WARNING, stack="  here\n"))) == {
        "ts": 1767323045000.678,
        "severity": "WARNING",
        "v": 4,
        "caller": "sidecar/daemon.py:90",
        "msg": "added 10.96.0.2/32 to lo",
        "address": "10.96.0.2/32",
        "seconds": 0.5,
        "stacktrace": "  here\n",
    }


def test_a_fact_does_not_take_the_place_of_what_every_object_has() -> None:
    assert json.loads(klog.as_json(replace(ENTRY, facts={"msg": "another"})))["msg"] == ENTRY.message


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", ()),
        ("daemon=2", (("daemon", 2),)),
        ("daemon=2,ip*=6", (("daemon", 2), ("ip*", 6))),
        (",daemon=2,,", (("daemon", 2),)),
        ("daemon=0", ()),
        ("daemon=+3", (("daemon", 3),)),
    ],
)
def test_vmodule(text: str, levels: tuple[tuple[str, int], ...]) -> None:
    assert klog.parse_vmodule(text).levels == levels


@pytest.mark.parametrize(
    ("text", "file", "level"),
    [
        ("daemon=2", "daemon.py", 2),
        ("daemon.py=2", "daemon.py", 0),
        ("daemon=2", "daemons.py", 0),
        ("daemon=2", "Daemon.py", 0),
        ("d*=2", "daemon.py", 2),
        ("?aemon=2", "daemon.py", 2),
        ("[a-d]aemon=2", "daemon.py", 2),
        ("[^x]aemon=2", "daemon.py", 2),
        ("[^d]aemon=2", "daemon.py", 0),
        ("[=2", "daemon.py", 0),
        ("d*=2,daemon=4", "daemon.py", 2),
        ("run=1,d*=2", "daemon.py", 2),
    ],
)
def test_the_first_pattern_that_matches_counts(text: str, file: str, level: int) -> None:
    assert klog.parse_vmodule(text).level(file) == level


def test_what_was_read_is_shown_as_it_was_written() -> None:
    assert str(klog.parse_vmodule("daemon=2,ip*=6")) == "daemon=2,ip*=6"
    assert str(Vmodule()) == ""
    assert str(klog.parse_place("daemon.py:90")) == "daemon.py:90"
    assert str(Place()) == ":0"


@pytest.mark.parametrize("text", ["", ":0"])
def test_no_place(text: str) -> None:
    assert klog.parse_place(text) == Place()


@pytest.mark.parametrize(
    ("text", "severity"), [("0", 0), ("3", 3), ("INFO", 0), ("warning", 1), ("Error", 2), ("FATAL", 3)]
)
def test_a_severity_has_a_number_and_a_name(text: str, severity: int) -> None:
    assert klog.parse_severity(text) == severity


@pytest.mark.parametrize(("text", "level"), [("0", 0), ("-1", -1), ("+2", 2), ("2147483647", 2147483647)])
def test_a_level_is_any_number_of_32_bits(text: str, level: int) -> None:
    assert klog.parse_level(text) == level
