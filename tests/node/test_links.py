"""Interfaces and addresses on the real kernel: what is created, set up, kept, noticed, removed.

Not every kernel has the dummy type. Where this one has not, links of another kind stand in for it, of one that this
program treats in no other way.
"""

import json
from ipaddress import ip_address

import pytest

from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.state.desired import LINK_KIND, desired
from sidecar.state.model import Desired, IPAddress
from sidecar.state.plan import MARK
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands
from support.waiting import until

pytestmark = pytest.mark.usefixtures("privileged")

BOTH = ["10.96.0.2/32", "fd00:10:96::2/128"]


@pytest.fixture(params=[LINK_KIND, "ifb"])
def kind(namespace: Namespace, request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    with Namespace() as other:
        if kind not in other.run("sh", "-c", f"ip link add test0 type {kind} && echo {kind}", check=False):
            pytest.skip(f"this kernel has no links of type {kind}")
    assert namespace
    return kind


def reconciler(namespace: Namespace, goal: Desired) -> Reconciler:
    return Reconciler(goal, IpRoute(NamespaceCommands(namespace).run), {})


def goal(interface: str, *ips: IPAddress, kind: str = "", remove_duplicates: bool = False) -> Desired:
    return desired(
        ips or [IPV4, IPV6], interface=interface, port=443, link_kind=kind, remove_duplicates=remove_duplicates
    )


def links(namespace: Namespace) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = json.loads(namespace.run("ip", "-json", "-details", "link", "show"))
    return shown


def test_a_missing_interface_is_created_marked_up_and_goes_with_the_cleanup(namespace: Namespace, kind: str) -> None:
    before = links(namespace)
    wish = goal("own0", kind=kind)
    assert reconciler(namespace, wish).reconcile().in_sync
    assert namespace.addresses("own0")[:2] == BOTH
    (link,) = [link for link in links(namespace) if link["ifname"] == "own0"]
    assert (link["ifalias"], "UP" in str(link["flags"])) == (MARK, True)
    assert reconciler(namespace, wish).reconcile().changed == ()
    assert reconciler(namespace, wish).cleanup(float("inf")).in_sync
    assert links(namespace) == before


def test_one_that_is_down_again_is_set_up(namespace: Namespace, kind: str) -> None:
    wish = goal("own0", kind=kind)
    assert reconciler(namespace, wish).reconcile().in_sync
    namespace.run("ip", "link", "set", "own0", "down")
    report = reconciler(namespace, wish).reconcile()
    assert report.in_sync
    assert report.changed[0].done == "interface own0 was down, set up"
    assert namespace.addresses("own0")[:2] == BOTH  # the kernel had taken the IPv6 address with it


@pytest.mark.parametrize(
    "other",
    [
        "ip address add 192.168.7.1/24 dev own0",
        "ip address add 10.9.9.9 peer 10.9.9.10/32 dev own0",
        "ip address add 169.254.20.10/32 dev own0 scope link",
        "ip address add fe80::1234/64 dev own0",
        "ip link add link own0 name mv0 type macvlan",
        "ip link add br0 type bridge && ip link set own0 master br0",
    ],
)
def test_with_something_else_on_it_it_stays(namespace: Namespace, kind: str, other: str) -> None:
    wish = goal("own0", kind=kind)
    assert reconciler(namespace, wish).reconcile().in_sync
    namespace.run("sh", "-c", other)
    assert reconciler(namespace, wish).cleanup(float("inf")).in_sync
    assert "own0" in [link["ifname"] for link in links(namespace)]
    assert not set(BOTH) & set(namespace.addresses("own0"))


@pytest.mark.parametrize("alias", ["", "of somebody else", MARK])
def test_one_of_the_same_name_that_is_not_ours_is_used_and_never_touched(
    namespace: Namespace, kind: str, alias: str
) -> None:
    """The mark alone does not make it ours: its kind must be the one that is created."""
    namespace.run("ip", "link", "add", "own0", "type", "veth")
    namespace.run("ip", "link", "set", "own0", "alias", alias)
    namespace.run("ip", "link", "set", "own0", "up")
    before = links(namespace)
    wish = goal("own0", kind=kind)
    assert reconciler(namespace, wish).reconcile().in_sync
    assert reconciler(namespace, wish).cleanup(float("inf")).in_sync
    assert links(namespace) == before


def test_a_link_of_somebody_else_that_is_down_stays_down_and_is_noticed(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "own0", "type", "veth")
    report = reconciler(namespace, goal("own0", IPV4)).reconcile()
    assert "own0 is down: nothing reaches its addresses; this program did not create it" in str(report.notices[0])
    assert "UP" not in namespace.run("ip", "-brief", "link", "show", "own0").split("<")[1].split(">")[0].split(",")


def test_lo_that_is_down_is_set_up(namespace: Namespace) -> None:
    namespace.run("ip", "link", "set", "lo", "down")
    report = reconciler(namespace, goal("lo")).reconcile()
    assert report.in_sync
    assert "interface lo was down, set up" in [action.done for action in report.changed]
    assert namespace.addresses() == BOTH


def test_an_address_elsewhere_is_noticed_or_taken_off_there(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "v0", "type", "veth")
    for cidr in (*BOTH, "10.96.0.2/24", "10.96.0.50/24", "10.96.0.3/32"):
        namespace.run("ip", "address", "add", cidr, "dev", "v0")
    report = reconciler(namespace, goal("lo")).reconcile()
    assert report.in_sync
    assert len(report.notices) == 3
    report = reconciler(namespace, goal("lo", remove_duplicates=True)).reconcile()
    assert report.in_sync
    assert [str(notice) for notice in report.notices] == [
        "10.96.0.2/24 is on v0 as well, with a network or a peer, and stays there"
    ]
    assert namespace.addresses() == BOTH
    assert sorted(namespace.addresses("v0")) == ["10.96.0.2/24", "10.96.0.3/32", "10.96.0.50/24"]


def test_an_ipv6_address_with_a_peer_is_taken_as_it_is(namespace: Namespace) -> None:
    namespace.run("ip", "address", "add", "fd00:10:96::2", "peer", "fd00:10:96::3/128", "dev", "lo")
    report = reconciler(namespace, goal("lo", IPV6)).reconcile()
    assert report.in_sync
    assert "is used as it is, and cleanup leaves it in place" in str(report.notices[0])
    assert reconciler(namespace, goal("lo", IPV6)).cleanup(float("inf")).changed == ()


def test_an_ipv4_address_with_another_prefix_length_gets_ours_beside_it(namespace: Namespace) -> None:
    namespace.run("ip", "address", "add", "10.96.0.2/24", "dev", "lo")
    assert reconciler(namespace, goal("lo", IPV4)).reconcile().in_sync
    assert sorted(namespace.addresses()) == ["10.96.0.2/24", "10.96.0.2/32"]
    assert reconciler(namespace, goal("lo", IPV4)).cleanup(float("inf")).in_sync
    assert namespace.addresses() == ["10.96.0.2/24"]


def test_an_ipv6_address_with_another_prefix_length_is_taken_as_it_is(namespace: Namespace) -> None:
    namespace.run("ip", "address", "add", "fd00:10:96::2/64", "dev", "lo")
    report = reconciler(namespace, goal("lo", IPV6)).reconcile()
    assert report.in_sync
    assert "fd00:10:96::2/64 on lo is used as it is" in str(report.notices[0])
    assert "may become a source address" in str(report.notices[0])
    namespace.run("ip", "address", "change", "fd00:10:96::2/64", "dev", "lo", "preferred_lft", "0")
    assert "source" not in str(reconciler(namespace, goal("lo", IPV6)).reconcile().notices[0])
    assert reconciler(namespace, goal("lo", IPV6)).cleanup(float("inf")).in_sync
    assert namespace.addresses() == ["fd00:10:96::2/64"]


def test_another_scope_is_kept_and_noticed(namespace: Namespace) -> None:
    namespace.run("ip", "address", "add", "10.96.0.2/32", "dev", "lo", "scope", "global")
    report = reconciler(namespace, goal("lo", IPV4)).reconcile()
    assert (report.in_sync, report.changed) == (True, ())
    assert "has scope global instead of host" in str(report.notices[0])


def test_an_ipv6_address_that_is_tentative_is_not_in_sync_until_it_is_not(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    namespace.run("ip", "link", "set", "v0", "up")
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", "v0")  # no carrier: it waits
    report = reconciler(namespace, goal("v0", IPV6)).reconcile()
    assert (report.in_sync, report.exit_code) == (False, 1)
    assert "could not use fd00:10:96::2/128 on v0: tentative" in str(report.failures[0])
    namespace.run("ip", "link", "set", "v1", "up")
    until(lambda: reconciler(namespace, goal("v0", IPV6)).reconcile().in_sync)


def test_an_ipv6_address_that_another_host_has_is_a_failure(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in ("v0", "v1"):
        namespace.run("ip", "link", "set", name, "up")
    namespace.run("ip", "address", "add", "fd00:10:96::2/64", "dev", "v1", "nodad")
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", "v0")

    def failure() -> str:
        report = reconciler(namespace, goal("v0", IPV6)).reconcile()
        assert not report.in_sync
        return str(report.failures[0])

    until(lambda: "another host on the link has it" in failure())


def test_addresses_of_our_own_are_usable_at_once(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in ("v0", "v1"):
        namespace.run("ip", "link", "set", name, "up")
    report = reconciler(namespace, goal("v0", ip_address("fd00:10:96::3"))).reconcile()
    assert report.in_sync


# The address must never become a source address


def uplink_and_pod(namespace: Namespace) -> None:
    """Give the node an uplink with an address of its own, and a pod behind a veth without one, as Calico does."""
    for name, peer in (("up0", "up1"), ("cali0", "cali1")):
        namespace.run("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
        for each in (name, peer):
            namespace.run("ip", "link", "set", each, "up")
    namespace.run("ip", "address", "add", "fd00:1:1::11/64", "dev", "up0", "nodad")
    namespace.run("ip", "-6", "route", "add", "default", "via", "fd00:1:1::1", "dev", "up0")
    namespace.run("ip", "-6", "route", "add", "fd00:10:244::5", "dev", "cali0")


def sources(namespace: Namespace) -> list[str]:
    """Return the source addresses to the pod, and to the world."""
    shown = [json.loads(namespace.run("ip", "-json", "route", "get", to)) for to in ("fd00:10:244::5", "2001:db8::1")]
    return [each[0]["prefsrc"] for each in shown]


@pytest.mark.parametrize("interface", ["lo", "up0", "cali0"])
def test_an_ipv6_address_does_not_become_a_source_address(namespace: Namespace, interface: str) -> None:
    uplink_and_pod(namespace)
    # The link-local address of a new link is tentative for a moment, and no source as long as it is.
    until(lambda: "tentative" not in namespace.run("ip", "address", "show"))
    before = sources(namespace)
    assert reconciler(namespace, goal(interface, IPV6)).reconcile().in_sync
    assert sources(namespace) == before


@pytest.mark.parametrize("interface", ["lo", "up0"])
def test_one_that_may_become_a_source_is_changed_in_place(namespace: Namespace, interface: str) -> None:
    uplink_and_pod(namespace)
    until(lambda: "tentative" not in namespace.run("ip", "address", "show"))
    before = sources(namespace)
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", interface, "nodad")
    report = reconciler(namespace, goal(interface, IPV6)).reconcile()
    assert [action.done for action in report.changed] == [
        f"deprecated fd00:10:96::2/128 on {interface}, which could become a source address"
    ]
    assert report.in_sync
    assert sources(namespace) == before
    assert reconciler(namespace, goal(interface, IPV6)).reconcile().changed == ()
    shown = namespace.run("ip", "-6", "address", "show", "dev", interface)
    assert "nodad deprecated \n       valid_lft forever preferred_lft 0sec" in shown
    assert reconciler(namespace, goal(interface, IPV6)).cleanup(float("inf")).in_sync
    assert "fd00:10:96::2/128" not in namespace.addresses(interface)


# What cannot be read


@pytest.mark.parametrize(
    "odd",
    [
        "ip link add $(printf 'a\\001\\033b') type veth peer name v1",
        "ip link add v0 type veth peer name v1 && ip link set v0 alias \"$(printf 'a\\nb\\002\\177')\"",
        "ip link add v0 type veth peer name v1 && ip link property add dev v0 altname $(printf 'a\\006b')",
        "ip link add 'q\"},{x' type veth peer name v1",
        "ip link add $(printf '\\377\\302') type veth peer name v1",
        "ip link set lo alias $(printf 'a\\001b')",
    ],
)
def test_names_and_aliases_of_any_kind_do_not_hide_the_rest(namespace: Namespace, odd: str) -> None:
    namespace.run("sh", "-c", odd)
    assert reconciler(namespace, goal("lo")).reconcile().in_sync
    assert namespace.addresses() == BOTH
    assert reconciler(namespace, goal("lo")).cleanup(float("inf")).in_sync
    assert namespace.addresses() == []
