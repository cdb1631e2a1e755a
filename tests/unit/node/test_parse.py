"""Parsing, on outputs recorded from the real programs (tests/unit/recorded, named by program and release)."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar.node.iproute import parse_links
from sidecar.node.listings import parse_listings
from sidecar.state.desired import desired
from sidecar.state.model import AddressState, LinkAddress
from support.namespace import IPV4, IPV6

RECORDED = Path(__file__).parents[1] / "recorded"
CHAINS = [("filter", "INPUT"), ("filter", "OUTPUT"), ("raw", "OUTPUT"), ("raw", "PREROUTING")]
RULES = desired([IPV4], interface="lo", port=443, setup_iptables=True).rules


def test_links_and_addresses_of_a_real_node() -> None:
    links = {link.name: link for link in parse_links((RECORDED / "ip-6.1.0.json").read_text())}
    assert {name: (link.kind, link.alias, link.is_up) for name, link in links.items()} == {
        "lo": ("", "", True),
        "ifb9": ("ifb", "apiserver-proxy-sidecar", True),
        "v1": ("veth", "", False),
        "v0": ("veth", "", True),
    }
    assert LinkAddress(IPV4, 32, "host") in links["lo"].addresses
    assert LinkAddress(IPV6, 128, "global") in links["v0"].addresses
    assert LinkAddress(ip_address("fd00::3"), 64, "global", AddressState.TENTATIVE) in links["v0"].addresses
    assert not [found for link in links.values() for found in link.addresses if found.ip == ip_address("10.1.0.0")]


def test_an_interface_goes_by_each_of_its_names() -> None:
    (link,) = parse_links('[{"ifname": "eth0", "altnames": ["enp0s3"], "flags": [], "addr_info": []}]')
    assert link.goes_by("eth0")
    assert link.goes_by("enp0s3")
    assert not link.goes_by("eth1")


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ("", AddressState.USABLE),
        (', "nodad": true', AddressState.USABLE),
        (', "tentative": true', AddressState.TENTATIVE),
        (', "tentative": true, "optimistic": true', AddressState.USABLE),
        (', "tentative": true, "dadfailed": true', AddressState.DUPLICATE),
    ],
)
def test_whether_an_address_can_be_used(flags: str, state: AddressState) -> None:
    info = f'{{"local": "fd00::3", "prefixlen": 128, "scope": "global"{flags}}}'
    (link,) = parse_links(f'[{{"ifname": "lo", "flags": [], "addr_info": [{info}]}}]')
    assert link.addresses[0].state is state


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "null", "7", '[{"ifname": "lo"}]', '[{"addr_info": []}]', '["lo"]',
        '[{"ifname": "lo", "flags": [], "addr_info": [], "linkinfo": 7}]',
    ],
)  # fmt: skip
def test_what_ip_never_prints_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the output of"):
        parse_links(text)


@pytest.mark.parametrize("recorded", ["iptables-nft-1.8.9.txt", "iptables-legacy-1.8.9.txt"])
def test_rules_are_found_by_table_and_chain(recorded: str) -> None:
    listings = parse_listings((RECORDED / recorded).read_text(), CHAINS)
    numbers = [[n for n, line in enumerate(listings[rule.place], 1) if line == rule.line] for rule in RULES]
    assert numbers == [[1, 2], [], [1], [4], []]


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
        parse_listings(text, CHAINS)


def test_the_same_line_in_another_table_does_not_count() -> None:
    line = RULES[4].line
    text = f"-P INPUT ACCEPT\n-P OUTPUT ACCEPT\n-P OUTPUT ACCEPT\n{line}\n-P PREROUTING ACCEPT\n"
    listings = parse_listings(text, CHAINS)
    assert listings["filter", "OUTPUT"] == ()
    assert listings["raw", "OUTPUT"] == (line,)


def test_a_policy_that_drops_comes_last() -> None:
    listings = parse_listings("-P INPUT DROP\n-A INPUT -j LOG\n-N OURS\n", [("filter", "INPUT"), ("filter", "OURS")])
    assert listings == {("filter", "INPUT"): ("-A INPUT -j LOG", "-P INPUT DROP"), ("filter", "OURS"): ()}


def test_a_warning_in_between_is_passed_over() -> None:
    text = (RECORDED / "iptables-nft-1.8.9.txt").read_text()
    warned = f"# Warning: iptables-legacy tables present, use iptables-legacy to see them\n{text}"
    assert parse_listings(warned, CHAINS) == parse_listings(text, CHAINS)
