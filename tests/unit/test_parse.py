"""Parsing, on outputs recorded from the real programs (tests/unit/recorded, named by program and release)."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar import parse
from sidecar.desired import desired
from sidecar.model import Address
from support.namespace import IPV4, IPV6

RECORDED = Path(__file__).parent / "recorded"
CHAINS = [("filter", "INPUT"), ("filter", "OUTPUT"), ("raw", "OUTPUT"), ("raw", "PREROUTING")]
RULES = desired([IPV4], interface="lo", port=443, setup_iptables=True).rules


def test_links_and_addresses_of_a_real_node() -> None:
    links, addresses = parse.links_and_addresses((RECORDED / "ip-6.1.0.json").read_text())
    assert links == {"lo", "v0", "v1"}
    assert {address for address in addresses if address.ip in (IPV4, IPV6)} == {
        Address(IPV4, 32, "lo"),
        Address(IPV6, 128, "v0"),
    }
    assert Address(ip_address("192.168.7.1"), 24, "v0") in addresses
    assert not [address for address in addresses if address.ip == ip_address("10.1.0.0")]  # it has a peer


def test_an_interface_goes_by_each_of_its_names() -> None:
    text = '[{"ifname": "eth0", "altnames": ["enp0s3"], "addr_info": [{"local": "10.96.0.2", "prefixlen": 32}]}]'
    links, addresses = parse.links_and_addresses(text)
    assert links == {"eth0", "enp0s3"}
    assert addresses == {Address(IPV4, 32, "eth0"), Address(IPV4, 32, "enp0s3")}


@pytest.mark.parametrize("text", ["", "[", "null", "7", '[{"ifname": "lo"}]', '[{"addr_info": []}]', '["lo"]'])
def test_what_ip_never_prints_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the output of"):
        parse.links_and_addresses(text)


@pytest.mark.parametrize("recorded", ["iptables-nft-1.8.9.txt", "iptables-legacy-1.8.9.txt"])
def test_copies_are_found_by_table_and_chain(recorded: str) -> None:
    positions = parse.rule_positions((RECORDED / recorded).read_text(), CHAINS, RULES)
    assert [positions[rule] for rule in RULES] == [[1, 2], [], [1], [4], []]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-P INPUT ACCEPT\n",
        "-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P PREROUTING ACCEPT\n-P OUTPUT ACCEPT\n",
        "-A INPUT -j DROP\n-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P OUTPUT ACCEPT\n-P PREROUTING ACCEPT\n",
        "Segmentation fault\n",
    ],
)
def test_a_listing_that_is_not_what_was_asked_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not the output|asked for"):
        parse.rule_positions(text, CHAINS, RULES)


def test_the_same_line_in_another_table_does_not_count() -> None:
    accept = RULES[4]
    text = f"-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P OUTPUT ACCEPT\n{accept.line}\n-P PREROUTING ACCEPT\n"
    assert parse.rule_positions(text, CHAINS, [accept]) == {accept: []}


def test_a_warning_in_between_is_passed_over() -> None:
    text = (RECORDED / "iptables-nft-1.8.9.txt").read_text()
    warned = f"# Warning: iptables-legacy tables present, use iptables-legacy to see them\n{text}"
    assert parse.rule_positions(warned, CHAINS, RULES) == parse.rule_positions(text, CHAINS, RULES)
