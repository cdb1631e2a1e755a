from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from sidecar.state.desired import claims, desired, has_our_shape, is_name_of_others, port_of, rule_set_of, without
from sidecar.state.model import Address, Interface, RuleSet
from support.namespace import IPV4, IPV6

SPECIFIED = """\
-t raw -A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK
-t raw -A OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK
-t raw -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK
-t filter -A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT
-t filter -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT
""".splitlines()


def test_the_five_rules_are_those_of_the_contract() -> None:
    state = desired([ip_address("10.96.0.2")], interface="lo", port=443, setup_iptables=True)
    assert [str(rule) for rule in state.rules] == SPECIFIED


def test_an_ipv6_address_gets_the_same_rules_with_128() -> None:
    state = desired([ip_address("fd00:10:96::2")], interface="lo", port=443, setup_iptables=True)
    assert [str(rule) for rule in state.rules] == [
        line.replace("10.96.0.2/32", "fd00:10:96::2/128") for line in SPECIFIED
    ]
    assert {rule.family for rule in state.rules} == {6}
    assert [address.cidr for address in state.addresses] == ["fd00:10:96::2/128"]


def test_without_setup_iptables_there_are_no_rules() -> None:
    assert desired([ip_address("10.96.0.2")], interface="lo", port=443).rules == ()


def test_an_address_given_twice_counts_once() -> None:
    ips = [ip_address(text) for text in ("10.96.0.3", "10.96.0.2", "10.96.0.3")]
    state = desired(ips, interface="lo", port=443, setup_iptables=True)
    assert [address.cidr for address in state.addresses] == ["10.96.0.3/32", "10.96.0.2/32"]
    assert len(state.rules) == 10


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ("-A INPUT -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j ACCEPT", True),
        ("-A OUTPUT -s fd00::1/128 -p tcp -m tcp --sport 8443 -j NOTRACK", True),
        ("-A INPUT -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j DROP", False),
        ("-A INPUT -i lo -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j ACCEPT", False),
        ("-A INPUT -d 192.0.2.1/32 -p tcp -m tcp --dport 80:90 -j ACCEPT", False),
    ],
)
def test_rules_of_any_sidecar_have_a_shape(line: str, is_ours: bool) -> None:  # noqa: FBT001 - a parameter
    assert has_our_shape(line) is is_ours


def test_what_another_instance_claims_is_left_out() -> None:
    both = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
    ipv4, ipv6 = Address(IPV4, 32, "lo"), Address(IPV6, 128, "lo")
    assert claims(both, 443) == (ipv4, ipv6, RuleSet(IPV4, 443), RuleSet(IPV6, 443), Interface("lo"))
    assert without(both, 443, claims(both, 443)) == replace(both, addresses=(), rules=(), link_kind="")
    assert without(both, 443, ()) == both
    assert without(both, 443, {ipv4}) == replace(both, addresses=(ipv6,))
    assert without(both, 443, {RuleSet(IPV6, 443), RuleSet(IPV4, 80)}) == replace(both, rules=both.rules[:5])
    assert claims(replace(both, rules=()), 443) == (ipv4, ipv6, Interface("lo"))


def test_the_port_of_a_rule_for_an_address() -> None:
    address = Address(IPv4Address("10.96.0.2"), 32, "lo")
    assert port_of("-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 9443 -j ACCEPT", address) == 9443
    assert port_of("-A INPUT -d 10.96.0.3/32 -p tcp -m tcp --dport 9443 -j ACCEPT", address) is None
    assert port_of("-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 9443 -j DROP", address) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 9443 -j ACCEPT", RuleSet(IPv4Address("10.96.0.2"), 9443)),
        ("-A OUTPUT -s fd00::2/128 -p tcp -m tcp --sport 443 -j NOTRACK", RuleSet(IPv6Address("fd00::2"), 443)),
        ("-A INPUT -d 10.96.0.0/24 -p tcp -m tcp --dport 9443 -j ACCEPT", None),
        ("-A INPUT -d fd00::2/32 -p tcp -m tcp --dport 9443 -j ACCEPT", None),
        ("-A INPUT -d ::::/128 -p tcp -m tcp --dport 9443 -j ACCEPT", None),
        ("-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 9443 -j DROP", None),
        ("-A INPUT -d 10.96.0.2/32 -i lo -p tcp -m tcp --dport 9443 -j ACCEPT", None),
    ],
)
def test_the_address_and_the_port_of_a_rule(line: str, expected: RuleSet | None) -> None:
    assert rule_set_of(line) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "eth0 ens5 eno1 enp3s0f1 enP2p1s0 enx0011 end0 wlan0 wlp2s0 wwan0 wwp0s20 ib0 ibp1s0 em1 p2p1 usb0 lan1",
            True,
        ),
        (
            "br0 br-lan br-8f2 bond0 team0 docker0 docker_gwbridge cni0 cni-podman1 veth1 vethb5 cali12 cilium_host",
            True,
        ),
        ("lxc1 lxcbr0 flannel.1 weave virbr0 vnet3 tun0 tunl0 tap7 wg0 vxlan.calico genev_sys_6081 kube-ipvs0", True),
        ("eth0.100 bond0.5 vlan7 ovs-system antrea-gw0 nodelocaldns sit0 ip6tnl0 tailscale0 ppp0 ifb1 vmbr0", True),
        ("Eth0 ENS5 BR0 Wlan0 cbr0 nerdctl0 ve-web vb-web vz-zone host0 macsec0 bat0 ath0 egress.calico lan wan", True),
        ("lo,dummy0 proxy0@if7", True),
        (
            "dummy0 kube-apiproxy apiserver-proxy proxy0 own0 local0 k8s svc0 vip0 anycast loop1 xeth0 team",
            False,
        ),
    ],
)
def test_names_that_the_system_or_other_programs_give(names: str, expected: bool) -> None:  # noqa: FBT001 - a parameter
    assert [name for name in names.split() if is_name_of_others(name) is not expected] == []
