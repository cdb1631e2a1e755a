"""Builds the desired state from plain values. The only place that spells out the five rules."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Final

from sidecar.state.model import Address, Claim, Desired, Interface, IPAddress, Rule, RuleSet

#: The kind of link to create if the interface is missing (man 8 ip-link): it only holds addresses.
LINK_KIND: Final = "dummy"

#: These rules let traffic to the address in, and keep it out of connection tracking: the address is local to the node.
#: They are spelled as `iptables -S` prints them, so that a listing can be compared with them letter by letter.
RULES: Final = (
    "-t raw    -A PREROUTING -d {address} -p tcp -m tcp --dport {port} -j NOTRACK",
    "-t raw    -A OUTPUT     -d {address} -p tcp -m tcp --dport {port} -j NOTRACK",
    "-t raw    -A OUTPUT     -s {address} -p tcp -m tcp --sport {port} -j NOTRACK",
    "-t filter -A INPUT      -d {address} -p tcp -m tcp --dport {port} -j ACCEPT",
    "-t filter -A OUTPUT     -s {address} -p tcp -m tcp --sport {port} -j ACCEPT",
)


_SHAPE: Final = re.compile(
    "|".join(
        re.escape(" ".join(rule.split()[2:]))
        .replace(r"\{address\}", "[0-9a-f.:]+/[0-9]+")
        .replace(r"\{port\}", "[0-9]+")
        for rule in RULES
    )
)


def desired(  # noqa: PLR0913 - one for each setting that an operator can choose, all by keyword
    ips: Sequence[IPAddress],
    *,
    interface: str,
    port: int,
    scope: str = "host",
    setup_iptables: bool = False,
    insert: bool = False,
    link_kind: str = LINK_KIND,
    remove_duplicates: bool = False,
    waits_because: str = "",
) -> Desired:
    """Return the desired state: every IP address once, as /32 or /128, and with `setup_iptables` its rules."""
    addresses = tuple(Address(ip, ip.max_prefixlen, interface) for ip in dict.fromkeys(ips))
    rules = tuple(rule for address in addresses for rule in rules_for(address, port)) if setup_iptables else ()
    return Desired(interface, addresses, scope, rules, insert, link_kind, remove_duplicates, waits_because)


#: Names that the system gives to network cards (man 7 systemd.net-naming-scheme, biosdevname, the kernel's own), and
#: that network managers, plugins and tunnels give to links that they create. A list, or what `ip link` prints for a
#: link and its peer (`a@b`), is no name that anybody meant.
_NAMES_OF_OTHERS: Final = """
    en* eth* wl* ww* wpan* ib* sl[0-9]* usb[0-9]* em[0-9]* p[0-9]*p[0-9]* lan lan[0-9]* wan wan[0-9]* swp[0-9]*
    hsn[0-9]* nic[0-9]* can[0-9]* vcan[0-9]* rename[0-9]* ppp[0-9]* mgmt* ath[0-9]* ra[0-9]* wifi* mlan[0-9]* rmnet*
    br* vmbr* bond* team[0-9]* vlan* vrf* macvlan* macvtap* macsec* ipvlan* ifb[0-9]* ovs* bat[0-9]* hsr[0-9]* nlmon*
    veth* docker* podman* nerdctl* cni* cbr[0-9]* cali* cilium* lxc* lxd* incus* flannel* weave* ovn* antrea* azv* gke*
    nodelocaldns* kube-ipvs* kube-bridge* kube-dummy* egress.calico wireguard.cali virbr* vnet[0-9]* vmnet* host[0-9]*
    ve-* vb-* vz-* tun* tap* wg* tailscale* zt* vxlan* genev* sit* gre* erspan* ip6tnl* ip6gre* ip_vti* ip6_vti* vti*
    xfrm* ipsec* teql* ipip* l2tp* vpn* *,* *@*
"""


def is_name_of_others(interface: str) -> bool:
    """Whether the system, or another program, gives such a name: a dummy of this name would be in its way."""
    return any(fnmatchcase(interface.lower(), pattern) for pattern in _NAMES_OF_OTHERS.split())


def has_our_shape(line: str) -> bool:
    """Whether a line of `iptables -S` is one of the five rules, for any address and port."""
    return bool(_SHAPE.fullmatch(line))


def rule_set_of(line: str) -> RuleSet | None:
    """Return the address and the port of a line of `iptables -S` if it is one of the five rules, or else None."""
    if not has_our_shape(line):
        return None
    words = line.split()
    try:
        ip, prefix_length = words[3].split("/")
        found = RuleSet(ip_address(ip), int(words[-3]))
    except ValueError:  # it only looks like an address
        return None
    return found if int(prefix_length) == found.ip.max_prefixlen else None


def port_of(line: str, address: Address) -> int | None:
    """Return the port of a line of `iptables -S` if it is one of the five rules for an address, or else None."""
    return int(line.split()[-3]) if has_our_shape(line) and address.cidr in line.split() else None


def end_of(rule: Rule) -> tuple[IPAddress, int, bool]:
    """Return the address and port of one of the five rules, and whether it is for packets to them, not from them."""
    direction, network = rule.match[:2]
    return ip_address(network.partition("/")[0]), int(rule.match[-3]), direction == "-d"


def claims(desired: Desired, port: int) -> tuple[Claim, ...]:
    """Return what an instance with this desired state needs: the addresses, their rules, the interface."""
    rules = tuple(RuleSet(address.ip, port) for address in desired.addresses) if desired.rules else ()
    return (*desired.addresses, *rules, Interface(desired.interface))


def without(desired: Desired, port: int, claimed: Collection[Claim]) -> Desired:
    """Return the desired state without what is claimed."""
    kept = {
        rule for each in desired.addresses if RuleSet(each.ip, port) not in claimed for rule in rules_for(each, port)
    }
    return replace(
        desired,
        addresses=tuple(each for each in desired.addresses if each not in claimed),
        rules=tuple(rule for rule in desired.rules if rule in kept),
        link_kind="" if Interface(desired.interface) in claimed else desired.link_kind,
    )


def rules_for(address: Address, port: int) -> tuple[Rule, ...]:
    """Return the five rules of one address."""
    filled = (rule.format(address=address.cidr, port=port).split() for rule in RULES)
    return tuple(Rule(address.ip.version, table, chain, tuple(match)) for _, table, _, chain, *match in filled)
