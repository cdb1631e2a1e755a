"""What `ip` and `iptables` print, turned into values. Pure; each raises ValueError on anything unexpected."""

import json
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from sidecar.state.model import AddressState, Chain, Link, LinkAddress


def links(text: str) -> tuple[Link, ...]:
    """Read `ip -json -details address show`.

    Only the fields that decide something are read, by name; iproute2 adds others from release to release.
    Some releases print an empty object for a link that a filter left out: it is passed over.
    """
    try:
        shown = list(filter(None, json.loads(text)))
        lower = {link[name] for link in shown for name in ("link", "master") if link.get(name)}
        return tuple(_link(link, has_dependents=link["ifname"] in lower or "master" in link) for link in shown)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not the output of `ip -json address show` ({type(error).__name__}: {error})") from error


def _link(shown: dict[str, Any], *, has_dependents: bool) -> Link:
    own = _link_local(shown.get("address", ""))
    return Link(
        name=shown["ifname"],
        altnames=tuple(shown.get("altnames", ())),
        kind=shown.get("linkinfo", {}).get("info_kind", ""),
        alias=shown.get("ifalias", ""),
        is_up="UP" in shown["flags"],
        addresses=tuple(_address(info, own) for info in shown["addr_info"]),
        has_dependents=has_dependents,
    )


def _link_local(hardware: str) -> str:
    """Return the address that the kernel gives a link with this hardware address (RFC 4291, appendix A)."""
    parts = hardware.split(":")
    if len(parts) != 6:  # noqa: PLR2004 - bytes of an Ethernet address
        return ""
    first = f"{int(parts[0], 16) ^ 2:02x}"
    return str(ip_address(f"fe80::{first}{parts[1]}:{parts[2]}ff:fe{parts[3]}:{parts[4]}{parts[5]}"))


def _address(info: dict[str, Any], own: str) -> LinkAddress:
    state = AddressState.USABLE
    if info.get("dadfailed"):
        state = AddressState.DUPLICATE
    elif info.get("tentative") and not info.get("optimistic"):
        state = AddressState.TENTATIVE
    return LinkAddress(
        ip_address(info["local"]),
        int(info["prefixlen"]),
        info["scope"],
        state,
        is_peer="address" in info,
        made_by_kernel=info["local"] == own,
    )


def listings(text: str, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
    """Read the listings (`-S`) of `chains`, which were asked for in this order: the rules of each, then its policy.

    A policy that lets everything pass is left out.

    A listing begins with the chain's policy (`-P INPUT ACCEPT`; `-N NAME` for a chain without one), which is
    what tells the OUTPUT chain of one table from that of the next: the lines do not name the table.
    """
    sections: list[list[str]] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith(("-P ", "-N ")):
            sections.append([line])
        elif line.startswith("-A ") and sections:
            sections[-1].append(line)
        elif line and not line.startswith("#"):
            raise ValueError(f"not the output of `iptables -S`: {line[:80]!r}")
    listed = [section[0].split()[1] for section in sections]
    if listed != [chain for _, chain in chains]:
        raise ValueError(f"asked for the chains {[chain for _, chain in chains]}, got {listed}")
    return {chain: (*section[1:], *_policy(section[0])) for chain, section in zip(chains, sections, strict=True)}


def _policy(line: str) -> tuple[str, ...]:
    return (line,) if line.startswith("-P ") and not line.endswith(" ACCEPT") else ()
