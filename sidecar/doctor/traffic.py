"""Checks of what happens to the traffic: nat, IPVS, chains that drop it, connections that are tracked."""

import contextlib
import shlex
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted, unknown
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import CommandError, SidecarError
from sidecar.firewall.conditions import Traffic
from sidecar.firewall.walk import BLOCKING, Met, way
from sidecar.node import proc, proc_formats
from sidecar.node.programs import is_installed
from sidecar.state.actions import AddRule, MoveToFront, RemoveRule
from sidecar.state.model import LOOPBACK, Address, Facts, Family, Rule

_REDIRECTING: Final = frozenset(("DNAT", "REDIRECT", "NETMAP"))

#: The chains that the traffic comes to, by table; requests in these, replies in the others (man iptables).
_CHAINS: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "OUTPUT"),
}
_INWARD: Final = frozenset(("PREROUTING", "INPUT"))

#: Prefixes of the names of policy engines' chains.
_POLICY_CHAINS: Final = {"cali-": "Calico", "KUBE-ROUTER-": "kube-router", "KUBE-NWPLCY-": "kube-router"}

#: Prefix of a chain → its owner, which puts a removed rule back.
_OWNED: Final = {"KUBE-": "a Service", "DOCKER": "a container", "CNI-": "a pod's hostPort", "cali-": "Calico"}

_SYSCTLS: Final = Path("/proc/sys/net")
_COUNT: Final = _SYSCTLS / "netfilter/nf_conntrack_count"


def taken(view: View) -> Iterator[Finding]:
    """Yield whether something else takes the traffic first: IPVS, or a rule in nat that redirects it."""
    servers = proc.of_network("ip_vs", Path.read_text) or ""  # only if IPVS is loaded
    services = proc_formats.virtual_servers(servers)
    by_ipvs = [address for address in view.desired.addresses if (address.ip, view.port) in services]
    for address in by_ipvs:
        found = f"IPVS takes traffic to {view.where(address)}: it is the address of a Service (kube-proxy in mode ipvs)"
        remedy = "choose an address that no Service uses; see: ipvsadm -Ln"
        yield Finding(Level.FAULT, found, remedy, facts=address.facts)
    yield from _for_each_address(view, partial(_redirections, by_ipvs=by_ipvs))


def policies(view: View) -> Iterator[Finding]:
    """Yield whether chains of other programs, before our rules, drop the traffic."""
    yield from _for_each_address(view, _drops)


def _for_each_address(view: View, check: Callable[[View, Address], Iterator[Finding]]) -> Iterator[Finding]:
    """Check one address after the other, as long as there is time."""
    addresses = view.desired.addresses
    for number, address in enumerate(addresses):
        subject = f"cannot tell what other programs' rules do to {address.ip}"
        if number and view.is_late():
            left = f"{address.ip}" + (f" and {len(addresses) - number - 1} more" if number + 1 < len(addresses) else "")
            yield Finding(Level.UNKNOWN, f"not checked {NO_TIME}: {left}")
            return
        if not view.has_seen(address.ip.version):
            yield Finding(Level.UNKNOWN, f"{subject}: the rules could not be listed, see above")
            continue
        try:
            yield from check(view, address)
        except SidecarError as error:
            yield unknown(error, subject)


def _redirections(view: View, address: Address, *, by_ipvs: Collection[Address]) -> Iterator[Finding]:
    traffic = Traffic(address.cidr, view.port, inward=True, untracked=False)
    starts = dict.fromkeys(("PREROUTING", "OUTPUT"), traffic)
    listings, left_out = view.chains("nat", starts, address.ip.version, certain=False)
    reported = set()
    for start in starts:
        found = way(listings, start, traffic)
        certain, perhaps = found.certainly(_REDIRECTING), found.perhaps(_REDIRECTING)
        if (met := certain or perhaps) and met.line not in reported:
            reported.add(met.line)
            yield _redirection(view, address, met, certain=bool(certain))
    if left_out:
        yield Finding(Level.UNKNOWN, f"cannot tell whether nat rules take traffic to {address.ip}: {left_out}")
    elif not reported and address not in by_ipvs:
        yield Finding(Level.OK, f"neither nat rules nor IPVS take traffic to {view.where(address)}")


def _redirection(view: View, address: Address, met: Met, *, certain: bool) -> Finding:
    where = view.where(address)
    facts: Facts = {"rule": met.line}
    if view.is_untracked(address):
        found = (
            f"`{met.line}` in nat would take traffic to {where} without our NOTRACK rules: untracked traffic is not "
            "rewritten"
        )
        return Finding(Level.NOTE, found)
    level, verb = (Level.FAULT, "takes") if certain else (Level.WARNING, "may take")
    found = f"`{met.line}` in nat {verb} traffic to {where}"
    remedy = "" if view.desired.rules else "or run with --setup-iptables instead: untracked traffic is not rewritten"
    if owner := next((name for prefix, name in _OWNED.items() if met.chain.startswith(prefix)), None):
        remedy = f"choose an address and port that {owner} does not use; {remedy}".removesuffix("; ")
        return Finding(level, found, remedy, facts=facts)
    return Finding(level, found, remedy, _removal(view, address.ip.version, "nat", met), facts)


def _drops(view: View, address: Address) -> Iterator[Finding]:
    untracked = view.is_untracked(address)
    is_dropped = False
    unread = []
    engines: set[str] = set()
    for table, chains in _CHAINS.items():
        starts = {
            chain: Traffic(address.cidr, view.port, inward=chain in _INWARD, untracked=untracked and table != "raw")
            for chain in chains
        }
        listings, left_out = view.chains(table, starts, address.ip.version, certain=True)
        unread += [left_out] if left_out else []
        for chain, traffic in starts.items():
            if met := way(listings, chain, traffic).certainly(BLOCKING):
                is_dropped = True
                found = f"`{met.line}` in {table} drops traffic {'to' if traffic.inward else 'from'} {address.ip}"
                ours = _our_rule(view, address, table, chain)
                if not ours:
                    yield _drop(view, address, table, met, found)
                elif met.chain != chain or not _is_reported(view, ours):
                    yield _drop_before(view, ours, met, found)
        lines = [line for lines in listings.values() for line in lines]
        engines |= {name for prefix, name in _POLICY_CHAINS.items() if any(f" {prefix}" in line for line in lines)}
    for left_out in unread:
        yield Finding(Level.UNKNOWN, f"cannot tell whether other chains drop traffic of {address.ip}: {left_out}")
    if engines and untracked:
        found = (
            f"policy chains of {' and '.join(sorted(engines))}: rules that rely on connection tracking do not "
            f"recognise replies from {address.ip}, as they are untracked"
        )
        yield Finding(Level.NOTE, found, "allow them by address and port")
    elif not is_dropped and not unread:
        yield Finding(Level.OK, f"no rule was found that drops traffic to or from {address.ip}")


def _our_rule(view: View, address: Address, table: str, chain: str) -> Rule | None:
    """Return our rule that lets the traffic through a chain, if one is desired."""
    ours = (rule for rule in view.desired.rules if table == "filter" and rule.place == (table, chain))
    return next((rule for rule in ours if address.cidr in rule.match), None)


def _is_reported(view: View, rule: Rule) -> bool:
    """Whether the check of our rules says already that this one is missing, or has no effect in its place."""
    hindrance = view.observed().hindrances.get(rule)
    return not view.observed().copies.get(rule) or (hindrance is not None and hindrance.certain)


def _drop_before(view: View, ours: Rule, met: Met, found: str) -> Finding:
    is_there = view.observed().copies.get(ours)
    action = MoveToFront(ours, met.line) if is_there else AddRule(ours, insert=True)
    remedy = "or allow the address and port there, if the program that set it puts its rules in front again"
    text = f"{found}, before our rule in {ours.chain} lets it pass"
    return Finding(Level.FAULT, text, remedy, view.commands(action), {"rule": met.line})


def _drop(view: View, address: Address, table: str, met: Met, found: str) -> Finding:
    facts: Facts = {"rule": met.line}
    if table == "filter":
        return Finding(Level.FAULT, found, "let it pass: --setup-iptables --rule-position=insert", facts=facts)
    remedy = "the program that set it may set it again: allow the address and port there"
    return Finding(Level.FAULT, found, remedy, _removal(view, address.ip.version, table, met), facts)


def drops_replies_to_this_node(view: View, address: Address) -> Met | None:
    """Return the rule that drops the replies to this node's own connections: they come in over lo, from the port."""
    untracked = view.is_untracked(address)
    traffic = Traffic(address.cidr, view.port, inward=False, untracked=untracked, interface=LOOPBACK)
    listings, _ = view.chains("filter", {"INPUT": traffic}, address.ip.version, certain=True)
    return way(listings, "INPUT", traffic).certainly(BLOCKING)


def _removal(view: View, family: Family, table: str, met: Met) -> tuple[str, ...]:
    """Return the command that removes a rule, or resets a chain's policy."""
    verb, chain, *words = shlex.split(met.line)
    if verb == "-P":
        return (f"{view.backends[family].command} -t {table} -P {chain} ACCEPT",)
    return view.commands(RemoveRule(Rule(family, table, chain, tuple(words)), 1))


def conntrack(view: View) -> Iterator[Finding]:
    """Yield whether connections to each address are in the kernel's table of tracked connections."""
    try:
        lines, complete = _connections(view)
    except (OSError, CommandError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(Level.UNKNOWN, f"the tracked connections could not be listed: {reason}")
        return
    for address in view.desired.addresses:
        number = proc_formats.tracked(lines, address.ip, view.port)
        where = view.where(address)
        connections = counted(number, f"connection to {where} is", f"connections to {where} are")
        facts = {**address.facts, "connections": number}
        if number and view.desired.rules:
            deletion = f"conntrack -D -p tcp -d {address.ip} --dport {view.port}"
            found = f"{connections} tracked, though our rules should prevent that"
            yield Finding(Level.WARNING, found, commands=(deletion,), facts=facts)
        elif number:
            yield Finding(Level.NOTE, f"{connections} tracked, as expected without --setup-iptables", facts=facts)
        elif complete:
            yield Finding(Level.OK, f"no connection to {where} is tracked")
    if not complete:
        yield Finding(Level.UNKNOWN, f"only the first {len(lines)} tracked connections were checked, {NO_TIME}")


def _connections(view: View) -> tuple[list[str], bool]:
    """Return a line for each tracked connection, and whether these are all."""
    with contextlib.suppress(FileNotFoundError):  # without the whole of /proc, the program conntrack knows
        if listed := proc.of_network("nf_conntrack", proc.lines):
            return listed
    if is_installed("conntrack"):
        argv = ("conntrack", "-L", "-p", "tcp")
        result = view.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        return result.stdout.splitlines(), True
    if _SYSCTLS.is_dir() and not _COUNT.exists():
        return [], True  # the kernel tracks nothing at all
    raise OSError(0, "there is no /proc/net/nf_conntrack, and conntrack is not installed: apt-get install conntrack")
