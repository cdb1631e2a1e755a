"""Parsing, on outputs recorded from the real programs (tests/unit/recorded, named by program and release)."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar.node.iproute import parse_links
from sidecar.node.listings import parse_listings
from sidecar.state.desired import desired
from sidecar.state.model import AddressState, LinkAddress
from support.namespace import IPV4, IPV6
from support.separators import OF_LINES

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
        "", "[", "[]", "null", "7", '[{"addr_info": []}]', '["lo"]', '[{"ifname": 7, "flags": [], "addr_info": []}]',
    ],
)  # fmt: skip
def test_what_ip_never_prints_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the output of"):
        parse_links(text)


LO = '{"ifindex":1,"ifname":"lo","flags":["UP"],"addr_info":[{"local":"10.96.0.2","prefixlen":32,"scope":"host"}]}'
LAST = '{"ifindex":9,"ifname":"last0","flags":["UP"],"addr_info":[]}'


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        ('"ifname":"odd0","flags":["UP"],"addr_info":7', "odd0"),
        ('"ifname":"odd0","flags":["UP"],"addr_info":null', "odd0"),
        ('"ifname":"odd0","flags":["UP"]', "odd0"),
        ('"ifname":"odd0","flags":"UP","addr_info":[]', "odd0"),
        ('"ifname":"odd0","addr_info":[]', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":[{"local":"nonsense","prefixlen":32,"scope":"host"}]', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":[{"local":"10.0.0.1","scope":"host"}]', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":["nonsense"]', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":[],"linkinfo":7', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":[],"ifalias":["a"]', "odd0"),
        ('"ifname":"odd0","flags":[],"addr_info":[],"altnames":"a"', "odd0"),
        ('"ifname":"odd0","flags":[],"linkinfo":{"info_kind":"new",remote any},"addr_info":[]', "odd0"),
        ('"ifname":"odd0","flags":[],"value":nan,"addr_info":[]', "odd0"),
        ('"ifname":7,"flags":[],"addr_info":[]', ""),
        ('"flags":[],"addr_info":[]', ""),
        ('"ifname":"odd\n0",,"addr_info":[]', "odd\n0"),
        ("nonsense", ""),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_link_that_cannot_be_read_leaves_the_others_as_they_are(odd: str, name: str, place: int) -> None:
    shown = [LO, LAST]
    shown.insert(place, f'{{"ifindex":5,{odd}}}')
    links = {link.name: link for link in parse_links(f"[{','.join(shown)}]\n")}
    assert links["lo"].addresses == (LinkAddress(IPV4, 32, "host"),)
    assert (links["lo"].problem, links["last0"].problem) == ("", "")
    assert links[name].problem


@pytest.mark.parametrize(
    "fine",
    [
        '"ifname":"a\x01\n\x7f\u2028b","flags":[],"ifalias":"\x02\t{\\"ifindex\\":1,","addr_info":[]',
        '"ifname":"t6","link_type":"tunnel6","address":"2001:db8:1:2::1","flags":[],"addr_info":[]',
        '"ifname":"g6","link_type":"gre6","address":"2001:db8:1:2::1","flags":[],"addr_info":[]',
        '"ifname":"ib0","link_type":"infiniband","address":"80:00:02:08:fe:80","flags":[],"addr_info":[]',
        '"ifname":"e0","link_type":"ether","address":"2001:db8:1:2::1","flags":[],"addr_info":[]',
        '"ifname":"m0","flags":[],"addr_info":[{"family":"mctp","local":"8"},{}]',
    ],
)
def test_what_is_unusual_is_read_all_the_same(fine: str) -> None:
    links = parse_links(f'[{LO},{{"ifindex":5,{fine}}}]')
    assert [link.problem for link in links] == ["", ""]
    assert links[1].addresses == ()


@pytest.mark.parametrize("before", ["a wrapper says hello\n", "[1] 4711\n"])
def test_what_a_wrapper_says_first_hides_no_link(before: str) -> None:
    links = {link.name: link for link in parse_links(f"{before}[{LO},{LAST}]\n")}
    assert links["lo"] == parse_links(f"[{LO}]")[0]
    assert (links["last0"].problem, links[""].problem != "") == ("", True)


@pytest.mark.parametrize(
    "odd", ["[" * 100_000, f'"prefixlen":{"9" * 5000}', '"addr_info":[{"local":"::1","prefixlen":1e999}]']
)
def test_a_value_that_python_cannot_hold_hides_no_other_link(odd: str) -> None:
    links = parse_links(f'[{LO},{{"ifindex":5,"ifname":"odd0","flags":[],{odd}}}]')
    assert links[0].addresses == (LinkAddress(IPV4, 32, "host"),)
    assert links[1].problem


@pytest.mark.parametrize("end", range(len(LO) + 2, len(f"[{LO},{LAST}")))
def test_of_a_list_that_ends_early_the_rest_is_unknown(end: int) -> None:
    links = parse_links(f"[{LO},{LAST}]"[:end])
    assert links[0].addresses == (LinkAddress(IPV4, 32, "host"),) or links[0].problem
    assert any(link.problem and not link.name for link in links)


def test_a_link_that_others_are_stacked_on_though_they_cannot_be_read() -> None:
    odd = '{"ifindex":5,"ifname":"mv0","link":"lo",,"addr_info":[]}'
    links = {link.name: link.has_dependents for link in parse_links(f"[{LO},{odd},{LAST}]")}
    assert links == {"lo": True, "mv0": False, "last0": False}


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


#: What str.splitlines splits at, and what else could be taken for the end of a text.
SEPARATORS = (
    *OF_LINES,
    '\\"',
    "\\'",
    "\\\\",
    "\udcff",
)


@pytest.mark.parametrize("option", ["-m comment --comment", "-j LOG --log-prefix", "-j NFLOG --nflog-prefix"])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_text_in_quotes_is_one_line_whatever_it_holds(option: str, separator: str) -> None:
    forged = f'-A INPUT {option} "x{separator}{RULES[3].line}{separator}# "'
    text = f"-P INPUT ACCEPT\n{forged}\n{forged} -j DROP\n-A INPUT -j RETURN\n-P OUTPUT ACCEPT\n"
    assert parse_listings(text, [("filter", "INPUT"), ("filter", "OUTPUT")]) == {
        ("filter", "INPUT"): (forged, f"{forged} -j DROP", "-A INPUT -j RETURN"),
        ("filter", "OUTPUT"): (),
    }


@pytest.mark.parametrize("option", ["-i", "! -i", "-o", "-j", "-g"])
def test_a_quote_in_a_name_is_part_of_the_name(option: str) -> None:
    lines = (f'-A INPUT {option} "x', '-A INPUT -m comment --comment " y\n" -j DROP', f'-A INPUT {option} x"')
    assert parse_listings("\n".join(("-P INPUT ACCEPT", *lines, "")), CHAINS[:1]) == {CHAINS[0]: lines}


def test_a_chain_whose_name_ends_like_white_space_is_not_another_target() -> None:
    line = f"{RULES[3].line}\u2028"
    assert parse_listings(f"-P INPUT ACCEPT\n{line}\n", CHAINS[:1]) == {CHAINS[0]: (line,)}


@pytest.mark.parametrize("end", [RULES[3].line, "-A INPUT -d 10.9", "-A INPUT -j DROP\n-P OUT"])
def test_a_listing_that_is_cut_off_is_refused(end: str) -> None:
    with pytest.raises(ValueError, match="cut off"):
        parse_listings(f"-P INPUT ACCEPT\n{end}", CHAINS[:1])
