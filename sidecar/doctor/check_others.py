"""doctor's checks of what others do to the traffic: nat, IPVS, chains that drop it."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import Looks
from sidecar.firewall.walk import Met, Traffic, Way, way
from sidecar.node import proc_formats
from sidecar.state.model import Address, Facts, Family

_REDIRECTING: Final = frozenset(("DNAT", "REDIRECT", "NETMAP"))
_BLOCKING: Final = frozenset(("DROP", "REJECT"))

#: The chains that the traffic comes to, by table; requests in these, replies in the others (man iptables).
_CHAINS: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "OUTPUT"),
}
_INWARD: Final = frozenset(("PREROUTING", "INPUT"))

#: What begins the names of a policy engine's chains.
_POLICY_CHAINS: Final = {"cali-": "Calico", "KUBE-ROUTER-": "kube-router", "KUBE-NWPLCY-": "kube-router"}

#: Whose chains begin so: a rule that is taken away there comes back.
_OWNED: Final = {"KUBE-": "a Service", "DOCKER": "a container", "CNI-": "a pod's hostPort", "cali-": "Calico"}

#: Said of what depends on a look that has failed, once that failure is told.
_BLIND: Final = "rules cannot be looked at, as told above"


def taken(looks: Looks) -> Iterator[Finding]:
    """Yield whether somebody else takes the traffic first: IPVS, or a rule in nat that sends it elsewhere."""
    services = frozenset[tuple[object, int]]()
    path = Path("/proc/net/ip_vs")
    if path.exists():  # only where IPVS is loaded
        services = frozenset(proc_formats.virtual_servers(path.read_text()))
    for each in looks.desired.addresses:
        if (each.ip, looks.port) in services:
            found = f"IPVS takes {each.ip} port {looks.port}: it is the address of a Service (kube-proxy in mode ipvs)"
            remedy = "choose an address that is no Service's; see: ipvsadm -Ln"
            yield Finding(Level.FAULT, "taken", found, remedy, facts=each.facts)
    yield from _each(looks, "taken", _redirected)


def _redirected(looks: Looks, wanted: Address) -> Iterator[Finding]:
    traffic = Traffic(wanted.cidr, looks.port, inward=True, untracked=False)
    starts = dict.fromkeys(("PREROUTING", "OUTPUT"), traffic)
    listings, left_out = looks.chains("nat", starts, wanted.ip.version, certain=False)
    untracked = looks.is_untracked(wanted)
    told = set()
    for start in starts:
        found = way(listings, start, traffic) if start in listings else Way((), ends=False)
        certain, perhaps = found.certainly(_REDIRECTING), found.perhaps(_REDIRECTING)
        if (met := certain or perhaps) and met.line not in told:
            told.add(met.line)
            yield _redirection(looks, wanted, met, certain=bool(certain), untracked=untracked)
    if left_out:
        yield Finding(Level.UNKNOWN, "taken", f"whether rules in nat take {wanted.ip}: {left_out}")
    elif not told:
        yield Finding(Level.OK, "taken", f"no rule of iptables in nat, and no IPVS, takes {looks.where(wanted)}")


def _redirection(looks: Looks, wanted: Address, met: Met, *, certain: bool, untracked: bool) -> Finding:
    text = f"`{met.line}` in nat {'takes' if certain else 'may take'} what goes to {looks.where(wanted)}"
    if untracked:
        return Finding(Level.NOTE, "taken", f"{text}, but for our NOTRACK rules: untracked traffic is not rewritten")
    level = Level.FAULT if certain else Level.WARNING
    facts: Facts = {"rule": met.line}
    remedy = "" if looks.desired.rules else "or run with --setup-iptables instead: untracked traffic is not rewritten"
    if owner := next((name for prefix, name in _OWNED.items() if met.chain.startswith(prefix)), None):
        remedy = f"choose an address and port that {owner} does not use; {remedy}".removesuffix("; ")
        return Finding(level, "taken", text, remedy, facts=facts)
    family: Family = wanted.ip.version
    deletion = _undo(looks.backends[family].command, "nat", met)
    return Finding(level, "taken", text, remedy, commands=(deletion,), facts=facts)


def policies(looks: Looks) -> Iterator[Finding]:
    """Yield whether chains of others, before our rules, drop the traffic because it is not tracked, or at all."""
    yield from _each(looks, "policies", _policies)


def _each(looks: Looks, topic: str, check: Callable[[Looks, Address], Iterator[Finding]]) -> Iterator[Finding]:
    """Look at one address after the other, as far as there is time."""
    addresses = looks.desired.addresses
    for number, each in enumerate(addresses):
        if number and looks.is_late():
            left = f"{each.ip}" + (f" and {len(addresses) - number - 1} more" if number + 1 < len(addresses) else "")
            yield Finding(Level.UNKNOWN, topic, f"not looked at, to be done in time: {left}")
            return
        if looks.could_look(each.ip.version):
            yield from check(looks, each)
        else:
            yield Finding(Level.UNKNOWN, topic, f"what rules of others do to {each.ip}: {_BLIND}")


def _policies(looks: Looks, each: Address) -> Iterator[Finding]:
    untracked = looks.is_untracked(each)
    told = False
    engines: set[str] = set()
    for table, chains in _CHAINS.items():
        starts = {
            chain: Traffic(each.cidr, looks.port, inward=chain in _INWARD, untracked=untracked and table != "raw")
            for chain in chains
        }
        listings, left_out = looks.chains(table, starts, each.ip.version, certain=True)
        for chain, traffic in starts.items():
            met = way(listings, chain, traffic).certainly(_BLOCKING) if chain in listings else None
            # What is in the very chain of our rule is told with our rules.
            if met and not (looks.desired.rules and table == "filter" and met.chain == chain):
                told = True
                yield _dropped(looks, each, table, chain, met)
        engines |= {
            name
            for lines in listings.values()
            for line in lines
            for prefix, name in _POLICY_CHAINS.items()
            if f" {prefix}" in line
        }
        if left_out:
            told = True
            yield Finding(Level.UNKNOWN, "policies", f"whether other chains drop it: {left_out}")
    if engines and untracked:
        found = (
            f"{' and '.join(sorted(engines))} has policy chains: where they rely on connection tracking, replies "
            f"from {each.ip} are no replies to them, as they are untracked"
        )
        yield Finding(Level.NOTE, "policies", found, "allow it by address and port")
    elif not told:
        yield Finding(Level.OK, "policies", f"no rule is known to drop what goes to or comes from {each.ip}")


def drops_replies_to_this_node(looks: Looks, wanted: Address) -> Met | None:
    """Return the rule that drops the replies to this node's own connections: they come in over lo, from the port."""
    traffic = Traffic(wanted.cidr, looks.port, inward=False, untracked=looks.is_untracked(wanted), of_this_node=True)
    listings, _ = looks.chains("filter", {"INPUT": traffic}, wanted.ip.version, certain=True)
    return way(listings, "INPUT", traffic).certainly(_BLOCKING) if "INPUT" in listings else None


def _dropped(looks: Looks, wanted: Address, table: str, chain: str, met: Met) -> Finding:
    traffic = Traffic(wanted.cidr, looks.port, inward=chain in _INWARD, untracked=False)
    way_of = f"to {wanted.ip}" if traffic.inward else f"from {wanted.ip}"
    found = f"`{met.line}` in {table} drops traffic {way_of}"
    facts: Facts = {"rule": met.line}
    command = looks.backends[wanted.ip.version].command
    if table != "filter":
        remedy = "whoever set it may set it again: allow the address and port there"
        return Finding(Level.FAULT, "policies", found, remedy, (_undo(command, table, met),), facts)
    if not looks.desired.rules:
        remedy = "let it pass: --setup-iptables --rule-position=insert"
        return Finding(Level.FAULT, "policies", found, remedy, facts=facts)
    ours = next(rule for rule in looks.desired.rules if (rule.table, rule.chain) == (table, chain)
                and wanted.cidr in rule.match)  # fmt: skip
    words = f"{command} -w 5 -t {table}", f"{chain} {' '.join(ours.match)}"
    is_there = looks.observed().copies.get(ours)
    moves = (*([f"{words[0]} -D {words[1]}"] if is_there else []), f"{words[0]} -I {words[1]}")
    remedy = "or allow the address and port there, where whoever set it puts itself in front again"
    return Finding(Level.FAULT, "policies", f"{found}, before our rule in {chain} lets it pass", remedy, moves, facts)


def _undo(command: str, table: str, met: Met) -> str:
    """Return what takes a rule away, or a chain's policy back."""
    verb, chain, *words = shlex.split(met.line)
    if verb == "-P":
        return f"{command} -w 5 -t {table} -P {chain} ACCEPT"
    return f"{command} -w 5 -t {table} -D {chain} {shlex.join(words)}"
