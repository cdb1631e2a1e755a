"""Checks of what the firewall does to the traffic, on the way of requests and replies: who takes it, who drops it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted, unknown
from sidecar.doctor.opening import opening
from sidecar.doctor.passages import Passages, passages, place
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import SidecarError
from sidecar.firewall.verdicts import Effect
from sidecar.firewall.walk import Met
from sidecar.node import proc, proc_formats
from sidecar.state.actions import AddRule, MoveToFront
from sidecar.state.model import Address, Facts, Rule

#: Prefix of a chain → its owner, which puts a removed rule back.
_OWNED: Final = {"KUBE-": "a Service", "DOCKER": "a container", "CNI-": "a pod's hostPort", "cali-": "Calico"}

_UNREWRITTEN: Final = "or run with --setup-iptables instead: untracked traffic is not rewritten"
_SHOWN: Final = 3  # how many clients are named
MOST_ADDRESSES: Final = 8  # for how many the traffic is followed; each takes some commands of its own


@dataclass(slots=True)
class _Stop:
    """A rule that stops requests to an address, or replies, or both; and whose."""

    met: Met
    directions: dict[bool, None] = field(default_factory=dict)  # whether these are replies
    clients: dict[str, None] = field(default_factory=dict)


def taken(view: View) -> Iterator[Finding]:
    """Yield whether something else takes the traffic first: IPVS, or a rule that gives it another destination."""
    servers = proc.of_network("ip_vs", Path.read_text) or ""  # only if IPVS is loaded
    services = proc_formats.virtual_servers(servers)
    by_ipvs = [address for address in view.desired.addresses if (address.ip, view.port) in services]
    for address in by_ipvs:
        found = f"IPVS takes traffic to {view.where(address)}: it is the address of a Service (kube-proxy in mode ipvs)"
        remedy = "choose an address that no Service uses; see: ipvsadm -Ln"
        yield Finding(Level.FAULT, found, remedy, facts=address.facts)
    for address, found_out in _for_each_address(view):
        if isinstance(found_out, Finding):
            yield found_out
            continue
        findings = [_redirection(view, address, found_out, stop) for stop in _stops(found_out, Effect.TAKE)]
        findings += _perhaps_taken(view, address, found_out)
        yield from findings
        if not findings and address not in by_ipvs and not found_out.ruleset.unread:
            yield Finding(Level.OK, f"neither a rule nor IPVS takes traffic to {view.where(address)}")


def policies(view: View) -> Iterator[Finding]:
    """Yield which rules drop the traffic, and whose, wherever they stand."""
    for address, found_out in _for_each_address(view):
        if isinstance(found_out, Finding):
            yield found_out
            continue
        stops = list(_stops(found_out, Effect.DROP))
        yield from filter(None, (_drop(view, address, found_out, stop) for stop in stops))
        yield from _of_other_users(address, found_out)
        doubts = list(_perhaps_dropped(address, found_out))
        yield from doubts
        for left_out in found_out.ruleset.unread:
            yield Finding(Level.UNKNOWN, f"cannot tell whether other rules stop traffic of {address.ip}: {left_out}")
        if found_out.left_out:
            left = counted(found_out.left_out, "pod")
            yield Finding(Level.UNKNOWN, f"not followed {NO_TIME}: traffic to {address.ip} from {left}")
        if not stops and not doubts and not found_out.ruleset.unread:
            clients = _list([client.name for client in found_out.clients])
            yield Finding(Level.OK, f"no rule drops traffic between {clients} and {address.ip}")


def _for_each_address(view: View) -> Iterator[tuple[Address, Passages | Finding]]:
    """Follow the traffic of one address after the other, as long as there is time."""
    addresses = view.desired.addresses
    for number, address in enumerate(addresses):
        subject = f"cannot tell what other programs' rules do to {address.ip}"
        if number >= MOST_ADDRESSES or (number and view.is_late()):
            left = f"{address.ip}" + (f" and {len(addresses) - number - 1} more" if number + 1 < len(addresses) else "")
            yield address, Finding(Level.UNKNOWN, f"not checked {NO_TIME}: {left}")
            return
        if not view.has_seen(address.ip.version):
            yield address, Finding(Level.UNKNOWN, f"{subject}: the rules could not be listed, see above")
            continue
        try:
            yield address, passages(view, address)
        except SidecarError as error:
            yield address, unknown(error, subject)


def _stops(found: Passages, effect: Effect) -> Iterable[_Stop]:
    """Return the rules that certainly stop traffic in this way, each with the clients whose traffic it is."""
    stops: dict[tuple[str, str], _Stop] = {}
    for client in found.clients:
        for each, is_reply in ((client.request, False), (client.reply, True)):
            met = each.stopped
            if met and met.effect is effect:
                stop = stops.setdefault((met.line, met.base.table), _Stop(met))
                stop.directions[is_reply] = stop.clients[client.name] = None
    return stops.values()


def _whose(found: Passages, stop: _Stop, word: str) -> str:
    """Return whose traffic it is, if it is not everybody's."""
    return "" if len(stop.clients) == len(found.clients) else f" {word} {_list(list(stop.clients))}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _redirection(view: View, address: Address, found: Passages, stop: _Stop) -> Finding:
    """Return the finding that a rule gives requests another destination."""
    met = stop.met
    text = f"`{met.line}` in {place(met)} takes traffic to {view.where(address)}{_whose(found, stop, 'from')}"
    remedy = _UNREWRITTEN if not view.desired.rules and met.base.is_nat else ""
    if owner := next((name for prefix, name in _OWNED.items() if met.chain.startswith(prefix)), None):
        remedy = f"choose an address and port that {owner} does not use; {remedy}".removesuffix("; ")
        return Finding(Level.FAULT, text, remedy, facts={"rule": met.line})
    commands = opening(view, address, found.ruleset, met, is_reply=False)
    return Finding(Level.FAULT, text, remedy, commands, _facts(met))


def _perhaps_taken(view: View, address: Address, found: Passages) -> Iterator[Finding]:
    """Yield the rules that may give requests another destination, or would without our NOTRACK rules."""
    where = view.where(address)
    for met in _once(met for client in found.clients for met in client.request.doubts if met.effect is Effect.TAKE):
        text = f"`{met.line}` in {place(met)} may take traffic to {where}"
        commands = opening(view, address, found.ruleset, met, is_reply=False)
        yield Finding(Level.WARNING, text, "" if view.desired.rules else _UNREWRITTEN, commands, {"rule": met.line})
    for met in _once(client.rewritten for client in found.clients if client.rewritten):
        text = f"`{met.line}` in {place(met)} would take traffic to {where} without our NOTRACK rules"
        yield Finding(Level.NOTE, f"{text}: untracked traffic is not rewritten")


def _drop(view: View, address: Address, found: Passages, stop: _Stop) -> Finding | None:
    """Return the finding that a rule drops traffic; None if the check of our rules has it already."""
    met, ours = stop.met, _our_rule(view, address, stop)
    if ours and met.chain == met.base.name and _is_reported(view, ours):
        del stop.directions[ours.match[0] == "-s"]
        if not stop.directions:
            return None
        ours = None
    ways: dict[tuple[bool, ...], tuple[str, str]] = {(False,): ("to", "from"), (True,): ("from", "to")}
    way, whose = ways.get(tuple(stop.directions), ("to and from", "for"))
    text = f"`{met.line}` in {place(met)} drops traffic {way} {address.ip}{_whose(found, stop, whose)}"
    if not ours and _has_place_of_ours(stop) and not view.desired.rules:
        remedy = "let it pass: --setup-iptables --rule-position=insert"
        if met.base.name == "INPUT" and True in stop.directions:
            remedy += "; and accept what comes in over lo"
        return Finding(Level.FAULT, text, remedy, facts=_facts(met))
    commands: list[str] = []
    for is_reply in stop.directions:
        if ours and (ours.match[0] == "-s") is is_reply:
            text += f", before our rule in {ours.chain} lets it pass"
            is_there = view.observed().copies.get(ours)
            commands += view.commands(MoveToFront(ours, met.line) if is_there else AddRule(ours, insert=True))
        else:
            commands += opening(view, address, found.ruleset, met, is_reply=is_reply)
    remedy = "or allow the address and port there, if the program that set it puts its rules in front again"
    return Finding(Level.FAULT, text, remedy, tuple(commands), _facts(met))


def _has_place_of_ours(stop: _Stop) -> bool:
    """Whether one of our rules would let this traffic pass there."""
    base = stop.met.base
    return base.table == "filter" and (base.name == "OUTPUT") in stop.directions


def _our_rule(view: View, address: Address, stop: _Stop) -> Rule | None:
    """Return our rule that lets the traffic pass there, if one is desired."""
    place = ("filter", stop.met.base.name)
    ours = (rule for rule in view.desired.rules if rule.place == place and _has_place_of_ours(stop))
    return next((rule for rule in ours if address.cidr in rule.match), None)


def _is_reported(view: View, rule: Rule) -> bool:
    """Whether the check of our rules says already that this one is missing, or has no effect in its place."""
    hindrance = view.observed().hindrances.get(rule)
    return not view.observed().copies.get(rule) or (hindrance is not None and hindrance.certain)


def _of_other_users(address: Address, found: Passages) -> Iterator[Finding]:
    """Yield the rules that drop traffic of processes of some users of this node."""
    mine = found.clients[0]
    if mine.request.stopped:
        return
    for met in found.other_users.request.doubts:
        if met.effect is Effect.DROP and met not in mine.request.doubts:
            text = f"`{met.line}` in {place(met)} drops traffic to {address.ip} of some users of this node"
            yield Finding(Level.WARNING, text, "allow the address and port before it", facts=_facts(met))


def _perhaps_dropped(address: Address, found: Passages) -> Iterator[Finding]:
    """Yield one note on all rules that may drop traffic, as far as can be seen from here."""
    dropping = (Effect.DROP, Effect.UNKNOWN)
    passing = [each for each in found.clients if not (each.request.stopped or each.reply.stopped)]
    doubts = (met for each in passing for met in (*each.request.doubts, *each.reply.doubts))
    if met := _once(met for met in doubts if met.effect in dropping):
        others = f", and {counted(len(met) - 1, 'other rule')}" if len(met) > 1 else ""
        text = f"`{met[0].line}` in {place(met[0])}{others} may drop traffic of {address.ip}"
        yield Finding(Level.NOTE, f"{text}: that depends on more than can be seen here", facts=_facts(met[0]))


def _once(found: Iterable[Met]) -> list[Met]:
    """Return each rule once, in order."""
    return list({(met.line, met.base.table): met for met in found}.values())


def _facts(met: Met) -> Facts:
    return {"rule": met.line, "table": met.base.table}
