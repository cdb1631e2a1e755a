"""Lists nftables' own tables: those that packets of this node pass, and that are not iptables' own.

Measured with nft 1.0.6:

- `list chains` names all base chains and reads no rules. So 50,000 rules of iptables-nft cost nothing.
- `list table` prints one table. Two such commands in one process do not work: it finds only one of the tables.
- `get element` reads the elements of all sets, `list set` those of one. It is not quicker, and crashes on intervals of
  interface names. So a set is listed whole, and only if a judgement depends on it.
- The JSON of a chain lacks its devices, and has wrong flags of a table.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, TypeAlias, TypeVar

from sidecar.errors import (
    CommandError,
    DeadlineReached,
    NotSupported,
    OutputUnreadable,
    PermissionMissing,
    SidecarError,
)
from sidecar.firewall.nft import HOOKS, NftTable, read, read_elements
from sidecar.firewall.nft_conditions import Elements
from sidecar.firewall.nft_values import Json
from sidecar.node import nft_tables
from sidecar.node.command import Run

_T = TypeVar("_T")

#: The tables that could be listed, and why the others could not, by `table FAMILY NAME`.
Listed: TypeAlias = tuple[list[NftTable], dict[str, SidecarError]]

_FAMILIES: Final = ("ip", "ip6", "inet", "netdev")

#: What iptables-nft calls its tables and its base chains.
_IPTABLES_TABLES: Final = ("raw", "mangle", "nat", "filter", "security")
_IPTABLES_CHAINS: Final = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))

#: Names that nft takes for names (nftables' src/scanner.l). The kernel has tables of any name, `x; flush ruleset` too.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_/.\\-]*")

#: Lines of `nft list chains`, which has the devices of a chain.
_TABLE_LINE: Final = re.compile(r"table \S+ (\S+) \{")
_CHAIN_LINE: Final = re.compile(r"\s*chain (\S+) \{")
_DEVICES: Final = re.compile(r'\s*type \S+ hook \S+ (?:device "([^"]+)"|devices = \{ (.*?) \}) ')

_ABSENT: Final = "No such file or directory"

#: What nft says on a kernel without nf_tables (net/netfilter/nfnetlink.c), which has no tables either.
_NO_NF_TABLES: Final = "cache initialization failed: Invalid argument"


class NftProgram:
    """The program nft. Its answers are JSON."""

    def __init__(
        self, run: Run, known: Callable[[], Collection[tuple[str, str, bool]] | None] = nft_tables.everywhere
    ) -> None:
        """`known` returns the tables as the kernel tells, with whether they are dormant; None: not known."""
        self._run = run
        self._known = known

    def tables(self, deadline: float) -> Listed:
        """Return the tables, with their rules, and why others could not be read.

        Starts no command after the deadline, of the monotonic clock. Raises a SidecarError if not even their names can
        be read.
        """
        listed: list[NftTable] = []
        failures: dict[str, SidecarError] = {}
        nothing: list[NftTable] = []
        for each in self._ask(read, "list", "chains", if_absent=nothing, absent=_NO_NF_TABLES):
            if _own_base_chains(each):
                try:
                    _raise_if_late(deadline, "list", "table", each.family, each.name)
                    listed += self.table(each.family, each.name)
                except SidecarError as error:
                    failures[f"table {each.family} {each.name}"] = error
        for each in listed:
            each.bases = _own_base_chains(each)
        known = self._known()
        for each in listed:
            if known is not None:
                each.is_dormant = (each.family, each.name, True) in known
        self._add_devices(listed)
        return listed, failures

    def table(self, family: str, name: str) -> list[NftTable]:
        """Return a table with its rules; nothing if there is no such table. iptables' own can be asked for, too."""
        return self._ask(read, "--terse", "list", "table", family, name, if_absent=[])

    def answer(self, elements: Elements, deadline: float) -> dict[str, SidecarError]:
        """Answer the questions that are open, and return why some cannot be answered, by `set FAMILY TABLE NAME`."""
        failures: dict[str, SidecarError] = {}
        for each in sorted(elements.questions, key=str):
            place = (each.kind, each.family, each.table, each.name)
            elements.answers[each] = None
            try:
                _raise_if_late(deadline, "list", *place)
                elements.answers[each] = self._ask(read_elements, "list", *place)
            except SidecarError as error:
                failures[" ".join(place)] = error
        elements.questions.clear()
        return failures

    def _add_devices(self, tables: Collection[NftTable]) -> None:
        """Add the devices of base chains that have some, if their JSON lacks them."""
        lacking = {each.family for each in tables for base in each.bases.values() if _lacks_devices(base)}
        for family in lacking:
            found: dict[tuple[str, str], list[str]] = {}
            with contextlib.suppress(SidecarError):  # then it is not known for which devices they are
                found = dict(_devices(self._run("nft", "list", "chains", family).stdout))
            for each in tables:
                for name, base in each.bases.items():
                    if each.family == family and _lacks_devices(base) and (each.name, name) in found:
                        base["dev"] = found[each.name, name]

    def _ask(self, parse: Callable[[str], _T], *words: str, if_absent: _T | None = None, absent: str = _ABSENT) -> _T:
        argv = ("nft", "--json", *words)
        for each in words[3:]:
            if not _NAME.fullmatch(each):
                raise CommandError(argv, "", "was not run: nft cannot be given such a name")
        result = self._run(*argv)
        if result.exit:
            if if_absent is not None and absent in result.stderr:
                return if_absent
            raise _failure(CommandError(argv, "", f"exited with {result.exit}", result.stderr), result.stderr)
        try:
            return parse(result.stdout)
        except ValueError as error:
            raise OutputUnreadable(argv, "", error) from error


def _failure(failure: CommandError, stderr: str) -> SidecarError:
    if "Operation not permitted" in stderr:
        return PermissionMissing(["CAP_NET_ADMIN"], str(failure))
    if "JSON support not compiled-in" in stderr or "unrecognized option" in stderr:
        return NotSupported(f"this nft cannot print JSON: install nftables 0.9.3 or newer, built with it; {failure}")
    return failure


def _raise_if_late(deadline: float, *words: str) -> None:
    if time.monotonic() >= deadline:
        raise DeadlineReached(("nft", "--json", *words), "")


def _own_base_chains(table: NftTable) -> dict[str, Json]:
    """Return the base chains that packets of this node pass, but for those that iptables lists."""
    if table.family not in _FAMILIES:
        return {}
    is_of_iptables = table.family in ("ip", "ip6") and table.name in _IPTABLES_TABLES
    listed = _IPTABLES_CHAINS if is_of_iptables else ()
    return {name: base for name, base in table.bases.items() if base.get("hook") in HOOKS and name not in listed}


def _lacks_devices(base: Mapping[str, object]) -> bool:
    return base["hook"] in ("ingress", "egress") and "dev" not in base


def _devices(listing: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield the devices of chains, by table and chain, from what `nft list chains` prints for people."""
    table = chain = ""
    for line in listing.split("\n"):
        if found := _TABLE_LINE.match(line):
            table = found[1]
        elif found := _CHAIN_LINE.match(line):
            chain = found[1]
        elif found := _DEVICES.match(line):
            names = [found[1]] if found[1] else found[2].split(", ")
            yield (table, chain), [each.strip('"') for each in names]
