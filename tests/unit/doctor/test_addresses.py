"""The checks of the interface and the addresses, on recorded answers."""

from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level
from sidecar.errors import AddressUnusable
from sidecar.state.desired import desired
from support.namespace import IPV4
from support.recorded_node import BOTH, ONLY_IPV6, Change, RecordedNode

OK, NOTE, WARNING, FAULT, UNKNOWN = Level.OK, Level.NOTE, Level.WARNING, Level.FAULT, Level.UNKNOWN

CIDR, CIDR6 = "10.96.0.2/32", "fd00:10:96::2/128"

ON_LINK = desired([IPV4], interface="link0", port=443, setup_iptables=True)
ON_EXISTING = desired([IPV4], interface="eth9", port=443, link_kind="")
AWAITED = desired([IPV4], interface="ens5", port=443, waits_because="so")
INSERTED = desired([IPV4], interface="lo", port=443, setup_iptables=True, insert=True)


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


MARK = "apiserver-proxy-sidecar"
CREATE = f"printf 'link add name proxy0 type dummy\\nlink set dev proxy0 alias {MARK} up\\n' | ip -batch -"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, "lo is up", "", ())]),
        (lambda node: node.set(desired=ON_LINK), [(OK, "link0 is up, not created by this program", "", ())]),
        (lambda node: (node.set(desired=ON_LINK).kernel.links["link0"].update(ifalias=MARK)),
         [(OK, "link0 is up, created by this program", "", ())]),
        (lambda node: node.set(desired=ON_LINK).kernel.links["link0"].update(flags=[]),
         [(FAULT, "link0 is down: nothing reaches its addresses", "", ("ip link set dev link0 up",))]),
        (lambda node: node.set(desired=desired([IPV4], interface="proxy0", port=443)),
         [(FAULT, "proxy0 does not exist", "", (CREATE,))]),
        (lambda node: node.set(desired=ON_EXISTING),
         [(FAULT, "eth9 does not exist", "create it, or set --interface to another one; see: ip link show", ())]),
        (lambda node: node.set(desired=AWAITED), [(FAULT, "ens5 does not exist", "the sidecar waits for it: so", ())]),
        (lambda node: (node.set(desired=AWAITED).kernel.links["link0"].update(ifname=7)),
         [(UNKNOWN, "cannot tell whether ens5 exists: ifname is 7", "", ())]),
        (lambda node: node.set(desired=ON_EXISTING).kernel.links["link0"].update(altnames=["eth9"]),
         [(OK, "link0 is up, not created by this program", "", ())]),
    ],
)  # fmt: skip
def test_interface(node: RecordedNode, change: Change, expected: list[tuple[Level, str, str, tuple[str, ...]]]) -> None:
    change(node)
    found = node.findings("interface")
    assert [(each.level, each.found, each.remedy, each.commands) for each in found] == expected


@pytest.mark.parametrize(
    ("file", "content", "manager"),
    [
        ("systemd/netif/links/2", "ADMIN_STATE=configured\nOPER_STATE=routable\n", "systemd-networkd"),
        ("systemd/netif/links/2", "ADMIN_STATE=unmanaged\n", ""),
        ("systemd/netif/links/1", "ADMIN_STATE=configured\n", ""),
        ("NetworkManager/devices/2", "[device]\nmanaged=true\n", "NetworkManager"),
        ("NetworkManager/devices/2", "[device]\nmanaged=false\n", ""),
    ],
)
def test_who_manages_the_interface(node: RecordedNode, file: str, content: str, manager: str) -> None:
    node.set(desired=ON_LINK).files[f"/run/{file}"] = content
    found = [each for each in node.findings("interface") if each.level is NOTE]
    assert [(each.found, each.remedy) for each in found] == [
        (
            f"link0 is managed by {manager}, which may remove addresses that it did not add",
            f"keep this program running, as it adds them again at once; or configure {manager} to leave them alone",
        )
    ] * bool(manager)


ADD = f"ip address add {CIDR} dev lo scope host"
OTHER_SCOPE = "has scope global instead of host, so it may become a source address"
DELETE = f"ip address delete {CIDR} dev lo"
ADD6 = f"ip address add {CIDR6} dev lo nodad preferred_lft 0"
DELETE6 = f"ip address delete {CIDR6} dev lo"
SWITCH = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"


def show(node: RecordedNode, *cidrs: str, link: str = "lo", **details: object) -> RecordedNode:
    """Let these addresses be on a link, and the last be shown with these details."""
    node.kernel.addresses[link] = list(cidrs)
    if cidrs:
        node.kernel.states[cidrs[-1]] = details
    return node


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, f"{CIDR} on lo, scope host", ())]),
        (lambda node: node.set(desired=ONLY_IPV6), [(OK, f"{CIDR6} on lo, scope host", ())]),
        (show, [(FAULT, f"{CIDR} is not on lo", (ADD,))]),
        (lambda node: show(node).kernel.links["lo"].update(ifalias=7),
         [(UNKNOWN, f"cannot tell whether {CIDR} on lo is there: ifalias is 7", ())]),
        (lambda node: node.kernel.links["lo"].update(ifalias=7), [(OK, f"{CIDR} on lo, scope host", ())]),
        (lambda node: show(node).kernel.links["link0"].update(ifalias=7), [(FAULT, f"{CIDR} is not on lo", (ADD,))]),
        (lambda node: node.set(desired=desired([IPV4], interface="eth9", port=443, scope="link")),
         [(FAULT, f"{CIDR} is not on eth9; it is on lo", (f"ip address add {CIDR} dev eth9 scope link",))]),
        (lambda node: show(show(node), CIDR, link="link0"),
         [(FAULT, f"{CIDR} is not on lo; it is on link0", (ADD,))]),
        (lambda node: node.kernel.addresses["link0"].append("10.96.0.2/24"),
         [(OK, f"{CIDR} on lo, scope host", ()),
          (WARNING, "10.96.0.2/24 is on link0 as well", ("ip address delete 10.96.0.2/24 dev link0",))]),
        (lambda node: show(node, "10.96.0.2/24"), [(FAULT, f"{CIDR} is not on lo, but 10.96.0.2/24 is", (ADD,))]),
        (lambda node: show(node, CIDR, address="192.0.2.1"),
         [(FAULT, f"{CIDR} is not on lo, but {CIDR} with a peer is", (ADD,))]),
        (lambda node: show(node, "10.96.0.2/24", CIDR), [(OK, f"{CIDR} on lo, scope host", ())]),
        (lambda node: show(node, CIDR, scope="global"),
         [(WARNING, f"{CIDR} on lo {OTHER_SCOPE}",
           ("ip address add 10.96.0.2/31 dev lo scope host noprefixroute", DELETE,
            f"ip address replace {CIDR} dev lo scope host", "ip address delete 10.96.0.2/31 dev lo"))]),
        (lambda node: show(node.set(desired=ONLY_IPV6), "fd00:10:96::2/64", scope="global"),
         [(NOTE, ("fd00:10:96::2/64 on lo is used as it is, and cleanup leaves it in place; "
          "it is not deprecated, so it may become a source address"), ())]),
        (lambda node: show(node.set(desired=ONLY_IPV6), CIDR6, scope="global"),
         [(FAULT, f"{CIDR6} on lo is not deprecated, so it may become a source address",
           (f"ip address change {CIDR6} dev lo nodad preferred_lft 0",))]),
        (lambda node: show(node.set(desired=ONLY_IPV6), CIDR6, scope="global", deprecated=True),
         [(OK, f"{CIDR6} on lo, scope global", ())]),
        (lambda node: show(node.set(desired=ONLY_IPV6), CIDR6, tentative=True),
         [(FAULT, f"{CIDR6} on lo is {AddressUnusable(duplicate=False)}",
           (DELETE6, ADD6))]),
        (lambda node: show(node.set(desired=ONLY_IPV6), CIDR6, tentative=True, dadfailed=True),
         [(FAULT, f"another host on the link has {CIDR6} on lo (dadfailed): it is not used here", (DELETE6, ADD6))]),
        (lambda node: show(node.set(desired=ONLY_IPV6)).files.update({SWITCH: "0\n"}),
         [(FAULT, f"{CIDR6} is not on lo", (ADD6,))]),
        (lambda node: show(node.set(desired=ONLY_IPV6)).files.update({SWITCH: "1\n"}),
         [(FAULT, f"{CIDR6} is not on lo, as IPv6 is disabled there", (f"echo 0 > {SWITCH}", ADD6))]),
        (lambda node: show(node).files.update({SWITCH: "1\n"}), [(FAULT, f"{CIDR} is not on lo", (ADD,))]),
        (lambda node: show(node.set(desired=BOTH), CIDR),
         [(OK, f"{CIDR} on lo, scope host", ()), (FAULT, f"{CIDR6} is not on lo", (ADD6,))]),
    ],
)  # fmt: skip
def test_address(node: RecordedNode, change: Change, expected: list[tuple[Level, str, tuple[str, ...]]]) -> None:
    change(node)
    assert [(each.level, each.found, each.commands) for each in node.findings("address")] == expected


@pytest.mark.parametrize(("cidrs", "interface"), [([], "lo"), ([CIDR], "lo"), ([CIDR], "link0")])
def test_the_facts_of_an_address(node: RecordedNode, cidrs: list[str], interface: str) -> None:
    show(node.set(desired=desired([IPV4], interface=interface, port=443)), *cidrs, link=interface)
    assert node.findings("address")[0].facts == {"address": CIDR, "interface": interface}
