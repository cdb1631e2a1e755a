"""Messages as the kernel sends them, built by its headers: linux/netlink.h, rtnetlink.h, nf_tables.h."""

import signal
import struct
from collections.abc import Iterator
from itertools import islice
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.node.netlink import Watch, messages
from sidecar.state.desired import desired
from support.namespace import IPV4, IPV6

NEWLINK, DELLINK, NEWADDR, DELADDR = 16, 17, 20, 21
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST = 1, 2, 3, 4
IFLA_IFNAME, IFLA_MTU, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 3, 4, 52, 53
DEPRECATED = 0x20 | 0x80  # IFA_F_DEPRECATED, IFA_F_PERMANENT
IFF_UP, IFF_BROADCAST, IFF_RUNNING = 0x1, 0x2, 0x40
NLA_F_NESTED, NLA_F_NET_BYTEORDER = 0x8000, 0x4000

NFTABLES, CONNTRACK = 10, 1
NEWRULE, DELTABLE, DELCHAIN, DELRULE, DELSET = 6, 2, 5, 8, 11
TABLE, RULE_CHAIN, CHAIN_NAME, RULE_HANDLE = 1, 2, 3, 3
INET, ARP, BRIDGE = 1, 3, 7  # what nftables has besides IPv4 (2) and IPv6 (10)

WATCH = Watch.of(desired([IPV4, IPV6], interface="dummy0", port=443, setup_iptables=True))
WITHOUT_RULES = Watch.of(desired([IPV4], interface="dummy0", port=443))

OURS, OTHER = IPV4.packed, (IPV4 + 1).packed


def aligned(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def message(kind: int, payload: bytes) -> bytes:
    return aligned(struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload)


def attribute(kind: int, value: bytes) -> bytes:
    return aligned(struct.pack("=HH", 4 + len(value), kind) + value)


def address(kind: int, *attributes: tuple[int, bytes], family: int = 2, flags: int = 0) -> bytes:
    header = struct.pack("=BBBBI", family, 32, flags, 0, 1)  # struct ifaddrmsg
    return message(kind, header + b"".join(attribute(*each) for each in attributes))


def link(kind: int, flags: int, name: bytes, *others: bytes, index: int = 1) -> bytes:
    header = struct.pack("=BxHiII", 0, 1, index, flags, 0xFFFFFFFF)  # struct ifinfomsg
    names = b"".join(attribute(IFLA_ALT_IFNAME, other + b"\0") for other in others)
    properties = attribute(IFLA_PROP_LIST | NLA_F_NESTED, names) if others else b""
    mtu = attribute(IFLA_MTU, struct.pack("=I", 1500))
    return message(kind, header + attribute(IFLA_IFNAME, name + b"\0") + mtu + properties)


def nft(kind: int, family: int, *attributes: tuple[int, bytes], subsystem: int = NFTABLES) -> bytes:
    header = struct.pack("=BBH", family, 0, 0)  # struct nfgenmsg
    return message(subsystem << 8 | kind, header + b"".join(attribute(*each) for each in attributes))


def rule(table: bytes, chain: bytes, family: int = 2, kind: int = DELRULE) -> bytes:
    return nft(kind, family, (TABLE, table + b"\0"), (RULE_CHAIN, chain + b"\0"), (RULE_HANDLE, b"\0" * 8))


@pytest.fixture
def _in_time() -> Iterator[None]:
    """Let a test fail that would never end."""

    def give_up(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Addresses


#: What is told, and whether it concerns us.
ADDRESSES = {
    "IPv4": (address(DELADDR, (IFA_ADDRESS, OURS), (IFA_LOCAL, OURS)), True),
    "IPv6, which has no IFA_LOCAL without a peer": (address(DELADDR, (IFA_ADDRESS, IPV6.packed)), True),
    "behind a label": (address(DELADDR, (IFA_LABEL, b"dummy0\0"), (IFA_LOCAL, OURS)), True),
    "with a flag in the type": (address(DELADDR, (IFA_LOCAL | NLA_F_NET_BYTEORDER, OURS)), True),
    "with the other flag": (address(DELADDR, (IFA_LOCAL | NLA_F_NESTED, OURS)), True),
    "added": (address(NEWADDR, (IFA_ADDRESS, OURS), (IFA_LOCAL, OURS)), False),
    "IPv6 added, deprecated": (address(NEWADDR, (IFA_ADDRESS, IPV6.packed), family=10, flags=DEPRECATED), False),
    "IPv6 made preferred": (address(NEWADDR, (IFA_ADDRESS, IPV6.packed), family=10), True),
    "another IPv6 added": (address(NEWADDR, (IFA_ADDRESS, (IPV6 + 1).packed), family=10), False),
    "another IPv4": (address(DELADDR, (IFA_ADDRESS, OTHER), (IFA_LOCAL, OTHER)), False),
    "another IPv6": (address(DELADDR, (IFA_ADDRESS, (IPV6 + 1).packed)), False),
    "ours as the broadcast": (address(DELADDR, (IFA_LOCAL, OTHER), (IFA_BROADCAST, OURS)), False),
    "no address": (address(DELADDR), False),
}


@pytest.mark.parametrize(("data", "concerns"), ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_of_ours_that_is_taken_away_or_becomes_a_source(data: bytes, concerns: bool) -> None:  # noqa: FBT001 - a parameter
    assert WATCH.concerns_links(data) is concerns


def test_of_two_ends_the_local_one_counts() -> None:
    assert WATCH.concerns_links(address(DELADDR, (IFA_ADDRESS, OTHER), (IFA_LOCAL, OURS)))
    assert not WATCH.concerns_links(address(DELADDR, (IFA_ADDRESS, OURS), (IFA_LOCAL, OTHER)))


# The interface


@pytest.mark.parametrize(
    ("kind", "flags", "names", "concerns"),
    [
        (NEWLINK, IFF_BROADCAST, [b"dummy0"], True),
        (NEWLINK, IFF_BROADCAST | IFF_RUNNING, [b"dummy0"], True),
        (NEWLINK, IFF_UP, [b"dummy0"], False),
        (NEWLINK, IFF_UP | IFF_BROADCAST | IFF_RUNNING, [b"dummy0"], False),
        (DELLINK, IFF_BROADCAST, [b"dummy0"], True),
        (DELLINK, IFF_UP, [b"dummy0"], True),
        (NEWLINK, 0, [b"dummy1"], False),
        (NEWLINK, 0, [b"dummy01"], False),
        (DELLINK, 0, [b"dummy01"], False),
        (DELLINK, 0, [b"eth0", b"a", b"dummy0"], True),
        (NEWLINK, 0, [b"eth0", b"dummy0", b"b"], True),
        (NEWLINK, IFF_UP, [b"eth0", b"dummy0"], False),
        (DELLINK, 0, [b"eth0", b"dummy00"], False),
    ],
)
def test_our_interface_goes_away_or_down(kind: int, flags: int, names: list[bytes], concerns: bool) -> None:  # noqa: FBT001 - a parameter
    assert WATCH.concerns_links(link(kind, flags, *names)) is concerns


@pytest.mark.parametrize(
    ("names", "index", "known", "concerns"),
    [
        ([b"dummy0"], 7, 7, False),
        ([b"new0"], 7, 7, True),
        ([b"new0", b"dummy0"], 7, 7, False),
        ([b"new0"], 8, 7, False),
        ([b"dummy0"], 8, 7, True),
        ([b"new0", b"dummy0"], 8, 7, True),
        ([b"dummy0"], 7, 0, True),
        ([b"new0"], 7, 0, False),
        ([b"xdummy0"], 8, 7, False),  # it ends with the name
        ([b"new0", b"xdummy0"], 8, 0, False),
    ],
)
def test_our_interface_gets_another_name_or_another_gets_its_name(
    names: list[bytes],
    index: int,
    known: int,
    concerns: bool,  # noqa: FBT001 - a parameter
) -> None:
    assert WATCH.concerns_links(link(NEWLINK, IFF_UP, *names, index=index), known) is concerns


def test_an_interface_with_a_name_that_is_no_utf_8() -> None:
    watch = Watch.of(desired([IPV4], interface="d\udcff", port=443))
    assert watch.concerns_links(link(DELLINK, 0, b"d\xff"))
    assert not watch.concerns_links(link(DELLINK, 0, b"d\xfe"))


# Rules


#: As above.
RULES = {
    "IPv4": (rule(b"raw", b"PREROUTING"), True),
    "IPv6": (rule(b"filter", b"INPUT", family=10), True),
    "a chain that is ours in another table": (rule(b"filter", b"PREROUTING"), False),
    "a table that is not ours": (rule(b"nat", b"OUTPUT"), False),
    "added": (rule(b"raw", b"PREROUTING", kind=NEWRULE), False),
    "no rule but a set": (rule(b"raw", b"PREROUTING", kind=DELSET), False),
    "inet": (rule(b"raw", b"PREROUTING", family=INET), False),
    "arp": (rule(b"raw", b"PREROUTING", family=ARP), False),
    "bridge": (rule(b"raw", b"PREROUTING", family=BRIDGE), False),
    "no chain: all of the table": (nft(DELRULE, 2, (TABLE, b"raw\0")), True),
    "no table": (nft(DELRULE, 2, (RULE_CHAIN, b"OUTPUT\0")), False),
    "flags": (nft(DELRULE, 2, (TABLE | NLA_F_NESTED, b"raw\0"), (RULE_CHAIN | NLA_F_NESTED, b"OUTPUT\0")), True),
    "a chain": (nft(DELCHAIN, 2, (TABLE, b"filter\0"), (CHAIN_NAME, b"OUTPUT\0")), True),
    "a chain of others": (nft(DELCHAIN, 2, (TABLE, b"filter\0"), (CHAIN_NAME, b"FORWARD\0")), False),
    "a chain's handle": (nft(DELCHAIN, 2, (TABLE, b"raw\0"), (2, b"OUTPUT\0"), (CHAIN_NAME, b"X\0")), False),
    "a table": (nft(DELTABLE, 10, (TABLE, b"raw\0")), True),
    "a table of others": (nft(DELTABLE, 10, (TABLE, b"mangle\0")), False),
    "a table without a name": (nft(DELTABLE, 2), False),
    "another subsystem": (nft(DELRULE, 2, (TABLE, b"raw\0"), subsystem=CONNTRACK), False),
}


@pytest.mark.parametrize(("data", "concerns"), RULES.values(), ids=RULES)
def test_rules_that_are_taken_out_of_a_chain_of_ours(data: bytes, concerns: bool) -> None:  # noqa: FBT001 - a parameter
    assert WATCH.concerns_rules(data) is concerns


def test_only_a_family_that_has_an_address_concerns() -> None:
    watch = Watch.of(desired([IPV4], interface="lo", port=443, setup_iptables=True))
    assert watch.concerns_rules(rule(b"raw", b"OUTPUT", family=2))
    assert not watch.concerns_rules(rule(b"raw", b"OUTPUT", family=10))


def test_without_rules_of_ours_none_concern() -> None:
    assert not WITHOUT_RULES.concerns_rules(rule(b"raw", b"OUTPUT") + nft(DELTABLE, 2, (TABLE, b"filter\0")))


# Datagrams


def test_one_of_several_messages_is_enough_wherever_it_is() -> None:
    others = [address(DELADDR, (IFA_LOCAL, OTHER)), link(NEWLINK, IFF_UP, b"dummy0"), address(NEWADDR)]
    assert not WATCH.concerns_links(b"".join(others))
    for place in range(len(others) + 1):
        mixed = [*others[:place], address(DELADDR, (IFA_LOCAL, OURS)), *others[place:]]
        assert WATCH.concerns_links(b"".join(mixed))
    assert WATCH.concerns_rules(rule(b"nat", b"OUTPUT") + rule(b"raw", b"OUTPUT") + rule(b"nat", b"OUTPUT"))


@pytest.mark.parametrize("odd", [1, 2, 3, 4])
def test_messages_and_attributes_begin_at_multiples_of_four(odd: int) -> None:
    # The length that a message, or an attribute, says is without what fills it up.
    filler = message(NEWADDR, b"x" * (8 + odd))
    assert WATCH.concerns_links(filler + address(DELADDR, (IFA_LOCAL, OURS)))
    assert WATCH.concerns_links(address(DELADDR, (IFA_LABEL, b"x" * odd), (IFA_LOCAL, OURS)))
    assert list(messages(filler + filler)) == [(NEWADDR, 0, b"x" * (8 + odd))] * 2


def test_nothing_and_half_a_header_tell_nothing() -> None:
    whole = address(DELADDR, (IFA_LOCAL, OURS))
    for end in range(16):
        assert list(messages(whole[:end])) == []
        assert list(messages(whole + whole[:end])) == list(messages(whole))


def test_an_address_or_a_name_that_is_cut_off_is_not_ours() -> None:
    for whole in (address(DELADDR, (IFA_LABEL, b"dummy1\0"), (IFA_LOCAL, OURS)), link(DELLINK, 0, b"dummy0")):
        needed = max(whole.rfind(OURS) + 4, whole.rfind(b"dummy0\0") + 7)
        found = [WATCH.concerns_links(whole[:end]) for end in range(len(whole) + 1)]
        assert found == [end >= needed for end in range(len(whole) + 1)]


@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_that_is_shorter_than_its_header_ends_the_datagram(length: int) -> None:
    broken = struct.pack("=IHHII", length, DELADDR, 0, 0, 0)
    assert list(islice(messages(broken + address(DELADDR, (IFA_LOCAL, OURS))), 10)) == []


@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("length", [0, 1, 3])
def test_an_attribute_that_is_shorter_than_its_header_ends_the_message(length: int) -> None:
    broken = message(DELADDR, b"\0" * 8 + struct.pack("=HH", length, IFA_LABEL) + attribute(IFA_LOCAL, OURS))
    assert not WATCH.concerns_links(broken)
    assert WATCH.concerns_links(broken + address(DELADDR, (IFA_LOCAL, OURS)))


def test_lengths_beyond_the_end_take_what_there_is() -> None:
    whole = address(DELADDR, (IFA_LOCAL, OURS))
    too_long = struct.pack("=I", 0xFFFFFFF0) + whole[4:]
    assert WATCH.concerns_links(too_long)
    assert list(messages(too_long)) == list(messages(whole))
    attribute_too_long = message(DELADDR, b"\0" * 8 + struct.pack("=HH", 0xFFFF, IFA_LOCAL) + OTHER)
    assert not WATCH.concerns_links(attribute_too_long)


@pytest.mark.parametrize("kind", [NEWLINK, DELLINK, NEWADDR, DELADDR, *(NFTABLES << 8 | each for each in range(40))])
def test_a_message_without_its_own_header_tells_nothing(kind: int) -> None:
    for length in range(16):
        short = message(kind, b"\0" * length)
        assert not WATCH.concerns_links(short)
        assert not WATCH.concerns_rules(short)
        assert WATCH.concerns_links(short + address(DELADDR, (IFA_LOCAL, OURS)))
        assert WATCH.concerns_rules(short + rule(b"raw", b"OUTPUT"))


def test_what_the_kernel_says_about_the_talk_itself() -> None:
    noop, error, done, overrun = (message(kind, b"\0" * 4) for kind in (1, 2, 3, 4))
    part = struct.pack("=IHHII", 16, DELADDR, 0x2 | 0x10, 0, 0)  # NLM_F_MULTI, NLM_F_DUMP_INTR
    for data in (noop, error, done, part, part + done):
        assert not WATCH.concerns_links(data)
        assert not WATCH.concerns_rules(data)
    assert WATCH.concerns_links(overrun)  # what was lost may have concerned us
    assert WATCH.concerns_rules(overrun)


KINDS = st.sampled_from([NEWLINK, DELLINK, NEWADDR, DELADDR, *(NFTABLES << 8 | each for each in range(12))])
ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=20)))


@given(st.integers(0, 0xFFFFFFFF), KINDS, st.integers(0, 0xFFFF), st.binary(max_size=40), ATTRIBUTES)
def test_no_message_raises(
    length: int, kind: int, flags: int, header: bytes, attributes: list[tuple[int, int, bytes]]
) -> None:
    body = header + b"".join(struct.pack("=HH", *each) + value for *each, value in attributes)
    for said in (length, 16 + len(body)):
        data = struct.pack("=IHHII", said, kind, flags, 0, 0) + body
        for end in (len(data), len(data) // 2):
            WATCH.concerns_links(data[:end])
            WATCH.concerns_rules(data[:end])


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    WATCH.concerns_links(data)
    WATCH.concerns_rules(data)
