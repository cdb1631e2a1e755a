"""Names the policy rule or the route that takes a packet elsewhere, and the commands that take precedence over it.

The commands only add: a rule of somebody else may carry the rest of the node's traffic.
"""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, TypeAlias

from sidecar.doctor.peers import Peer, all_routes, all_rules, connected, routes_in_use
from sidecar.doctor.view import View
from sidecar.node import iproute
from sidecar.node.policy_rules import Packet, PolicyRule, decision
from sidecar.node.routes import LOCAL, MAIN, UNICAST, Route, table_name
from sidecar.state.model import IPV4, Address, Family

#: The rules that the kernel makes itself, by priority and table (net/ipv4/fib_rules.c); Cilium moves the first one.
_OF_KERNEL: Final = ((0, LOCAL), (32766, MAIN), (32767, "253"))


#: What a person has to do, and commands that do it.
Remedy: TypeAlias = tuple[str, tuple[str, ...]]

_ROUTE: Final = "the network plugin, or the kernel, makes this route: if it goes again, find out who removes it"

_FIRST_PLACE: Final = "no rule can be added in front of that one: have it removed, or moved, where it is set"


@dataclass(frozen=True, slots=True)
class Cause:
    """What decides where a packet goes; both None: nothing does."""

    rule: PolicyRule | None
    route: Route | None

    @property
    def is_foreign(self) -> bool:
        """Whether a rule decides that the kernel has not made itself."""
        rule = self.rule
        return rule is not None and not (rule.is_for_all and (rule.priority, rule.table) in _OF_KERNEL)

    @property
    def words(self) -> str:
        """How it goes on after what was found."""
        words = ""
        if self.route and self.route.kind == "local":
            return words
        if self.rule and self.is_foreign:
            words = f"; by the policy rule `{self.rule.priority}: {self.rule.text or '…'}`"
        if self.route and (not words or self.route.kind != UNICAST):
            words += f"{', and' if words else '; by'} the route `{self.route}`"
        return words


def cause(view: View, packet: Packet) -> Cause:
    """Return what decides where a packet goes."""
    family = packet.destination.version
    return Cause(*decision(all_rules(view, family), all_routes(view, family), packet))


def local_first(view: View, cause: Cause, address: Address) -> Remedy:
    """Return what lets the table local come first: for all, or for one address."""
    ip, rules, local = _ip(address.ip.version), all_rules(view, address.ip.version), _local(view, address.ip.version)
    before = [rule for rule in rules if not local or rule.priority < local.priority]
    for_all = () if local and local.priority == 0 else (f"{ip} rule add pref 0 lookup local",)
    remedy = "then the table local comes first, as it does unless somebody moves it"
    if cause.route and cause.route.kind == "local":  # it is something else that the kernel follows
        return _see(ip), ()
    if cause.rule and cause.rule.priority == 0:
        moved = _moved(ip, rules, cause.rule, to=1)
        return (remedy, (*for_all, *moved)) if moved else (_FIRST_PLACE, ())
    # Cilium and VRFs move it behind their own rules on purpose, which then have to stay first.
    is_moved = local is not None and local.priority < _OF_KERNEL[1][0]
    if cause.rule and is_moved and any(each.selects_more_than_addresses for each in before if each is not cause.rule):
        pref = cause.rule.priority - 1
        return _or_remove(ip, cause), (f"{ip} rule add pref {pref} to {address.cidr} lookup local",)
    return remedy, for_all


def _local(view: View, family: Family) -> PolicyRule | None:
    """Return the rule that looks up the table local for each packet, wherever it is."""
    return next((rule for rule in all_rules(view, family) if rule.table == LOCAL and rule.is_for_all), None)


def local_is_behind(view: View, cause: Cause, family: Family) -> str:
    """Return why the table local does not decide, as it goes on after what was found."""
    local = _local(view, family)
    if cause.is_foreign or (local and local.priority == 0):
        return cause.words
    return f"; the table local comes only at {local.priority}" if local else "; no policy rule looks up the table local"


def replies_first(view: View, cause: Cause, address: Address, peer: Peer) -> Remedy:
    """Return what lets the replies to a pod leave by its interface."""
    family = address.ip.version
    ip, every = _ip(family), routes_in_use(view, family)
    leading = [each for each in every if each.interface == peer.interface and peer.ip in each.network]
    right = max(leading, key=lambda each: each.network.prefixlen, default=None)
    if cause.route and cause.route.kind == UNICAST and cause.route.interface == peer.interface:
        return _see(ip), ()  # it is something else that the kernel follows
    if right and cause.rule and cause.rule.table != right.table:
        # Not its default route: to other destinations the other rules still apply.
        new = f"from {address.cidr} lookup {table_name(right.table)} suppress_prefixlength 0"
        if cause.rule.priority == 0:
            moved = _moved(ip, all_rules(view, family), cause.rule, to=2)
            return ("", (f"{ip} rule add pref 1 {new}", *moved)) if moved else (_FIRST_PLACE, ())
        return _or_remove(ip, cause), (f"{ip} rule add pref {cause.rule.priority - 1} {new}",)
    return _ROUTE, (f"{ip} route {_route_to(view, cause.route, right, peer)}",)


def _route_to(view: View, blocking: Route | None, right: Route | None, peer: Peer) -> str:
    """Return the words of `ip route` that make, or make again, the route to a pod; `right` is a less specific one."""
    own = connected(view, peer)
    if own and not right and (blocking is None or blocking.network.prefixlen <= own.prefix_length):
        network = ip_network(own.cidr, strict=False)
        source = f" scope link src {own.ip}" if own.ip.version == IPV4 else " metric 256"
        return f"replace {network} dev {peer.interface} proto kernel{source}"
    table = right.table if right else MAIN
    verb, metric = "add", ""
    if blocking and blocking.network.num_addresses == 1 and blocking.table == table:
        verb, metric = "replace", f" metric {blocking.metric}" if blocking.metric else ""
    place = "" if table == MAIN else f" table {table}"
    return f"{verb} {peer.ip}/{peer.ip.max_prefixlen} dev {peer.interface}{place}{metric}"


def _moved(ip: str, rules: tuple[PolicyRule, ...], rule: PolicyRule, *, to: int) -> tuple[str, ...]:
    """Return the commands that move a rule from the first place; none if others could be deleted instead."""
    if not rule.text or sum(each.priority == rule.priority for each in rules if each.table != LOCAL) > 1:
        return ()
    return f"{ip} rule add pref {to} {rule.text}", f"{ip} rule delete pref {rule.priority} {rule.text}"


def _or_remove(ip: str, cause: Cause) -> str:
    if not cause.is_foreign or not cause.rule or not cause.rule.text:
        return ""
    deletion = f"{ip} rule delete pref {cause.rule.priority} {cause.rule.text}"
    return f"or have that rule removed where it is set; by hand: {deletion}"


def _see(ip: str) -> str:
    return f"see: {ip} rule show; {ip} route show table all"


def _ip(family: Family) -> str:
    return iproute.COMMAND if family == IPV4 else f"{iproute.COMMAND} -{family}"
