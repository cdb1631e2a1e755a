"""Compares what was found with what is desired, and words the facts that the log, status, plan and doctor share."""

from typing import Final

from sidecar.state.model import (
    IPV6,
    NFT_FAMILIES,
    Address,
    AddressState,
    Desired,
    Family,
    Link,
    LinkAddress,
    Observed,
)

GLOBAL: Final = "global"  # the scope (man 8 ip-address) of what the kernel may choose as the source for any destination
PREFERRED: Final = "not deprecated, so it may become a source address"


def on(link: Link, address: Address, *, exactly: bool = False) -> LinkAddress | None:
    """Return the address as found on the link.

    IPv4 allows the same address twice with different prefix lengths, IPv6 does not (net/ipv6/addrconf.c,
    ipv6_add_addr): for IPv6, unless `exactly`, any prefix length counts, as traffic to it is accepted all the same.
    """
    for found in link.addresses:
        if found.ip == address.ip and (is_exact(address, found) or (found.ip.version == IPV6 and not exactly)):
            return found
    return None


def find(observed: Observed, address: Address) -> LinkAddress | None:
    """Return the address as found on its interface, or None if it is not there."""
    link = observed.link(address.interface)
    return on(link, address) if link else None


def elsewhere(observed: Observed, address: Address) -> list[tuple[Link, LinkAddress]]:
    """Return the other interfaces that have the address, and the address as found on each."""
    others = [link for link in observed.links or () if not link.goes_by(address.interface)]
    return [(link, found) for link in others for found in link.addresses if found.ip == address.ip]


def works(link: Link, address: Address) -> bool:
    """Whether the address is on the link, and can be used there."""
    found = on(link, address)
    return link.is_up and found is not None and found.state is AddressState.USABLE


def may_become_source(link: Link, address: Address) -> bool:
    """Whether an IPv6 address is on the link exactly as desired, but not deprecated.

    Every node has it, so a reply to it would go to whichever node is nearest.
    """
    found = on(link, address, exactly=True)
    return found is not None and _is_preferred(found)


def _is_preferred(found: LinkAddress) -> bool:
    return found.ip.version == IPV6 and not found.is_deprecated


def is_exact(address: Address, found: LinkAddress) -> bool:
    """Whether an address was found with the desired prefix length, and without a peer."""
    return found.prefix_length == address.prefix_length and not found.is_peer


def has_scope(desired: Desired, found: LinkAddress) -> bool:
    """Whether an address has the desired scope; the kernel derives the scope of an IPv6 address from its prefix."""
    return found.ip.version == IPV6 or found.scope == desired.scope


def also_on(other: Link, found: LinkAddress) -> str:
    """Return in words that another interface has the address, too."""
    return f"{found.cidr} is on {other.name} as well"


def is_down(link: Link) -> str:
    """Return in words that a link is down."""
    return f"{link.name} is down: nothing reaches its addresses"


def other_scope(desired: Desired, address: Address, found: LinkAddress) -> str:
    """Return in words that the address has another scope than the desired one."""
    risk = ", so it may become a source address" if found.scope == GLOBAL else ""
    return f"{address} has scope {found.scope} instead of {desired.scope}{risk}"


def dormant(family: Family, table: str) -> str:
    """Return in words that the rules of an nft table have no effect."""
    return f"the nft table {NFT_FAMILIES[family]} {table} has `flags dormant`, so its rules have no effect"


def waking(family: Family, table: str) -> str:
    """Return the command that ends the dormancy of a table: adding it again clears its flags."""
    return f"nft add table {NFT_FAMILIES[family]} {table}"


def taken_as_it_is(found: LinkAddress, interface: str) -> str:
    """Return in words that the address was found with another prefix length, or with a peer."""
    risk = f"; it is {PREFERRED}" if _is_preferred(found) else ""
    return f"{found.cidr} on {interface} is used as it is, and cleanup leaves it in place{risk}"
