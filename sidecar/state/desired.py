"""What should be on the node, from plain values. The five rules stand here, and nowhere else."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from sidecar.state.model import Address, Desired, IPAddress, Rule

#: The kind of link that is created where the interface is missing (man 8 ip-link): it only holds addresses.
LINK_KIND: Final = "dummy"

#: What the name of an interface begins with, among the things that are wanted.
LINK: Final = "link "

#: They let traffic to the address in, and keep it out of connection tracking: the address is local to the machine.
#: The spelling is that of `iptables -S`, so that a listing can be compared with it, letter by letter.
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


def desired(  # noqa: PLR0913 - one for each thing an operator can wish for, all by keyword
    ips: Sequence[IPAddress],
    *,
    interface: str,
    port: int,
    scope: str = "host",
    setup_iptables: bool = False,
    insert: bool = False,
    link_kind: str = LINK_KIND,
    remove_duplicates: bool = False,
) -> Desired:
    """Return what should be there: every IP address once, as /32 or /128, and with `setup_iptables` its rules."""
    addresses = tuple(Address(ip, ip.max_prefixlen, interface) for ip in dict.fromkeys(ips))
    rules = tuple(rule for address in addresses for rule in rules_for(address, port)) if setup_iptables else ()
    return Desired(interface, addresses, scope, rules, insert, link_kind, remove_duplicates)


def has_our_shape(line: str) -> bool:
    """Whether a line of `iptables -S` is one of the five rules, for any address and port."""
    return bool(_SHAPE.fullmatch(line))


def port_of(line: str, address: Address) -> int | None:
    """Return the port of a line of `iptables -S` that is one of the five rules for an address; None: it is not."""
    return int(line.split()[-3]) if has_our_shape(line) and address.cidr in line.split() else None


def name_of(address: Address) -> str:
    """Return the name of an address on its link, among the things that are wanted."""
    return f"{address.ip}@{address.interface}"


def things(desired: Desired, port: int) -> tuple[str, ...]:
    """Return a name for each thing that is wanted: addresses on their link, rules by address and port, the link."""
    addresses = tuple(map(name_of, desired.addresses))
    rules = tuple(f"{address.ip}:{port}" for address in desired.addresses) if desired.rules else ()
    return (*addresses, *rules, f"{LINK}{desired.interface}")


def without(desired: Desired, port: int, wanted: Collection[str]) -> Desired:
    """Return what is desired but for the things of these names."""
    kept = {rule for each in desired.addresses if f"{each.ip}:{port}" not in wanted for rule in rules_for(each, port)}
    return replace(
        desired,
        addresses=tuple(each for each in desired.addresses if name_of(each) not in wanted),
        rules=tuple(rule for rule in desired.rules if rule in kept),
        link_kind="" if f"{LINK}{desired.interface}" in wanted else desired.link_kind,
    )


def rules_for(address: Address, port: int) -> tuple[Rule, ...]:
    """Return the five rules of one address."""
    filled = (rule.format(address=address.cidr, port=port).split() for rule in RULES)
    return tuple(Rule(address.ip.version, table, chain, tuple(match)) for _, table, _, chain, *match in filled)
