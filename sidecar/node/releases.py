"""Releases of iptables and their known faults."""

import re
from dataclasses import dataclass
from typing import Final

from sidecar.state.model import IPV6, Family

_VERSION: Final = re.compile(r"ip6?tables v(\d+)\.(\d+)\.(\d+)(?: \((nf_tables|legacy)\))?")


@dataclass(frozen=True, slots=True)
class Release:
    """The version and backend that `iptables --version` prints."""

    number: tuple[int, int, int]
    is_legacy: bool

    def __str__(self) -> str:
        return ".".join(map(str, self.number))


def parse(text: str) -> Release:
    """Parse `iptables v1.8.9 (nf_tables)`. Before 1.8 there was only legacy, and it was not named."""
    match = _VERSION.search(text)
    if not match:
        raise ValueError(f"not the output of `iptables --version`: {text[:80]!r}")
    major, minor, patch, backend = match.groups()
    return Release((int(major), int(minor), int(patch)), is_legacy=backend != "nf_tables")


def loses_ports(release: Release) -> bool:
    """Whether its nft variant lists rules that 1.8.8 or newer has set without their ports, but its own rightly."""
    return release.number < (1, 8, 8)


def faults(release: Release, family: Family) -> list[str]:
    """Return the faults of a release that affect rules like ours."""
    found = []
    if release.number == (1, 8, 10):
        found.append("its -C does not find rules that are there (kube-router#1676)")
    if release.number < (1, 8, 8) and not release.is_legacy:
        found.append("its -C sometimes fails, and programs that rely on it add copies (kubernetes/dns#568)")
    if release.number == (1, 8, 4):
        found.append("it cannot delete NOTRACK rules that the other backend's programs added (cilium#20714)")
    if release.number == (1, 8, 9) and release.is_legacy and family == IPV6:
        found.append("its -C finds rules that have another port")
    return found
