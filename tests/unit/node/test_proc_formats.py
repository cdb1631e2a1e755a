"""Texts as the kernel and iproute2 6.1 print them (6.18, x86-64)."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar.node.proc_formats import (
    Listener,
    Lock,
    held_locks,
    listeners,
    route,
    tracked,
    unrefreshed,
    virtual_servers,
)

RECORDED = Path(__file__).parents[1] / "recorded"

IPV4 = ip_address("10.96.0.2")
IPV6 = ip_address("fd00:10:96::2")


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_who_holds_locks_and_not_who_waits() -> None:
    assert list(held_locks(recorded("locks"))) == [
        Lock(27300, (0x00, 0x27), 2),
        Lock(812, (0x08, 0x01), 1573426),
        Lock(-1, (0x00, 0x1A), 77),
        Lock(0, (0x103, 0x02), 99),
    ]


def test_no_locks() -> None:
    assert list(held_locks("")) == []


def test_who_listens() -> None:
    assert list(listeners(recorded("tcp"))) == [
        Listener(ip_address("127.0.0.1"), 10248, 31337),
        Listener(IPV4, 443, 20417),
        Listener(ip_address("0.0.0.0"), 22, 623),
    ]
    assert list(listeners(recorded("tcp6"))) == [
        Listener(IPV6, 443, 21034),
        Listener(ip_address("::"), 443, 21035),
    ]


def test_the_virtual_servers_of_ipvs() -> None:
    assert virtual_servers(recorded("ip_vs")) == {(IPV4, 443), (IPV6, 443), (ip_address("10.96.0.1"), 443)}
    assert virtual_servers("IP Virtual Server version 1.2.1 (size=4096)\n") == frozenset()


@pytest.mark.parametrize("name", ["nf_conntrack", "conntrack-L"])
def test_tracked_connections_to_the_address_that_are_under_way(name: str) -> None:
    lines = recorded(name).splitlines()
    assert len(tracked(lines, IPV4, 443)) == 2
    assert len(tracked(lines, IPV6, 443)) == 1
    assert all(tracked(lines, IPV4, 443).values())
    assert not tracked(lines, IPV4, 80)
    assert not tracked(lines, ip_address("10.96.0.20"), 443)
    assert not tracked(lines, ip_address("10.244.0.7"), 41000)  # that is where it came from


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [
        (431999, 431998, 1),
        (431999, 431997, 1),  # a second is a whole one at most
        (431999, 431999, 0),
        (431000, 431999, 0),
        (431999, 119, 0),  # a packet closed it
        (1, 0, 1),
        (None, None, 0),  # a flow table has it, and there is traffic as long as it does
        (431999, None, 0),
    ],
)
def test_a_connection_whose_time_runs_down_has_no_traffic(before: int | None, after: int | None, number: int) -> None:
    assert unrefreshed({("10.244.0.7", "41000"): before}, {("10.244.0.7", "41000"): after}, 1.05) == number


def test_a_connection_that_is_new_or_gone_has_no_time_that_runs_down() -> None:
    assert unrefreshed({}, {("10.244.0.7", "41000"): 9}, 1.05) == 0
    assert unrefreshed({("10.244.0.7", "41000"): 9}, {}, 1.05) == 0


def test_routes() -> None:
    local = '[{"type":"local","dst":"10.96.0.2","dev":"lo","prefsrc":"10.96.0.2","flags":[],"uid":0,"cache":["local"]}]'
    assert route(local) == ("local", "dev lo")
    caught = '[{"dst":"10.96.0.2","gateway":"192.0.2.1","dev":"eth0","table":"100","prefsrc":"192.0.2.7","flags":[]}]'
    assert route(caught) == ("unicast", "via 192.0.2.1 dev eth0 table 100")


@pytest.mark.parametrize("text", ["", "[]", "[{}]", "{", "[1]", "null"])
def test_what_ip_does_not_print(text: str) -> None:
    with pytest.raises(ValueError, match="not the output of"):
        route(text)
