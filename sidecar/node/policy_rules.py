"""Parses `ip -json -N rule show`, and finds the rule and the route that decide where a packet goes. Pure, no I/O.

The kernel is asked whether a packet arrives; what is in here only names the cause (net/core/fib_rules.c).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Final

from sidecar.node.routes import THROW, Route, objects, table_name
from sidecar.state.model import LOOPBACK, IPAddress

#: How `ip -N` prints the actions of rules without a table.
_ACTIONS: Final = {"6": "blackhole", "7": "unreachable", "8": "prohibit"}

_PROTOCOLS: Final = {"6": "tcp", "17": "udp"}  # others go by their number
_ALL_BITS: Final = 0xFFFFFFFF
_NOBODY: Final = 0xFFFFFFFF  # the user of a packet that comes from outside

#: Whatever else `ip` may print for a rule is not known: such a rule is not taken for the cause, nor deleted.
_KNOWN: Final = frozenset(
    {"priority", "not", "src", "srclen", "dst", "dstlen", "tos", "fwmark", "fwmask", "iif", "iif_detached", "oif"}
    | {"oif_detached", "l3mdev", "uid_start", "uid_end", "ipproto", "sport", "sport_start", "sport_end", "dport"}
    | {"dport_start", "dport_end", "tun_id", "table", "suppress_prefixlen", "suppress_ifgroup", "action", "goto"}
    | {"unresolved", "nop", "protocol", "flow_from", "flow_to"}
)


@dataclass(frozen=True, slots=True)
class Packet:
    """What routing looks at. A packet that this node sends comes in by lo, as routing sees it."""

    destination: IPAddress
    source: IPAddress | None = None  # None: not chosen yet
    interface: str = LOOPBACK
    source_port: int = 0
    port: int = 0
    mark: int = 0


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A line of `ip rule`."""

    priority: int
    table: str = ""  # its number; empty: another action
    shown: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def is_for_all(self) -> bool:
        """Whether it is for every packet."""
        return self.shown.get("src", "all") == "all" and not self.shown.keys() - _FOR_ALL

    @property
    def selects_more_than_addresses(self) -> bool:
        """Whether marks or interfaces decide: network plugins and VRFs have such rules, and rely on their order."""
        return bool(self.shown.keys() & {"fwmark", "iif", "oif", "l3mdev"})

    @property
    def text(self) -> str:
        """The rule in the words of `ip rule add` and `delete`; empty if it has some that are not known here."""
        if self.shown.keys() - _KNOWN:
            return ""
        return " ".join([*(["not"] if "not" in self.shown else []), *self._selectors(), *self._action()])

    def _selectors(self) -> list[str]:
        shown = self.shown
        words = ["from", _prefix(shown, "src")]
        words += ["to", _prefix(shown, "dst")] if "dst" in shown else []
        words += ["tos", str(shown["tos"])] if "tos" in shown else []
        mask = f"/{shown['fwmask']}" if "fwmask" in shown else ""
        words += ["fwmark", f"{shown['fwmark']}{mask}"] if "fwmark" in shown else []
        words += [word for name in ("iif", "oif") if name in shown for word in (name, shown[name])]
        words += ["uidrange", f"{shown['uid_start']}-{shown['uid_end']}"] if "uid_start" in shown else []
        words += ["ipproto", _protocol(shown)] if "ipproto" in shown else []
        for name in ("sport", "dport"):
            first, last = _ports(shown, name)
            words += [name, f"{first}" if first == last else f"{first}-{last}"] if last else []
        return [*words, *(["tun_id", str(shown["tun_id"])] if "tun_id" in shown else [])]

    def _action(self) -> list[str]:
        shown = self.shown
        words = ["l3mdev"] if "l3mdev" in shown else []
        words += ["nop"] if "nop" in shown else []
        words += ["goto", str(shown["goto"])] if "goto" in shown else []
        words += [self.action] if self.action else []
        words += ["lookup", table_name(self.table)] if self.table else []
        for name, option in (("suppress_prefixlen", "suppress_prefixlength"), ("suppress_ifgroup", "suppress_ifgroup")):
            words += [option, str(shown[name])] if name in shown else []
        words += ["realms", f"{shown['flow_from']}/{shown.get('flow_to', 0)}"] if "flow_from" in shown else []
        return [*words, *(["protocol", str(shown["protocol"])] if "protocol" in shown else [])]

    @property
    def action(self) -> str:
        """How it ends the way of a packet by itself: blackhole, …; empty: it does not."""
        action = str(self.shown.get("action", ""))
        return _ACTIONS.get(action, action)

    def matches(self, packet: Packet) -> bool:
        """Whether it is for such a packet, as far as that is known: not for one by TOS or tunnel."""
        is_judged = not self.shown.keys() - _KNOWN and not self.shown.keys() & _NOT_JUDGED
        return is_judged and self._selects(packet) != ("not" in self.shown)

    def _selects(self, packet: Packet) -> bool:
        shown = self.shown
        user = 0 if packet.interface == LOOPBACK else _NOBODY  # for whom `ip route get` asks
        ports = ((packet.source_port, _ports(shown, "sport")), (packet.port, _ports(shown, "dport")))
        return (
            shown.get("iif", packet.interface) == packet.interface
            and (packet.mark ^ _number(shown, "fwmark", packet.mark)) & _number(shown, "fwmask", _ALL_BITS) == 0
            and _is_in(packet.source, shown, "src")
            and _is_in(packet.destination, shown, "dst")
            and _protocol(shown) in ("", "tcp")
            and int(shown.get("uid_start", 0)) <= user <= int(shown.get("uid_end", _NOBODY))
            and all(not last or first <= port <= last for port, (first, last) in ports)
        )


_NOT_JUDGED: Final = frozenset({"oif", "l3mdev", "tos", "tun_id", "iif_detached", "suppress_ifgroup"})

_FOR_ALL: Final = frozenset({"priority", "src", "table", "protocol", "action", "goto", "suppress_prefixlen"})


def _number(shown: Mapping[str, Any], name: str, default: int) -> int:
    return int(str(shown.get(name, default)), 0)


def _prefix(shown: Mapping[str, Any], name: str) -> str:
    address = str(shown.get(name, "all"))
    return f"{address}/{shown[f'{name}len']}" if f"{name}len" in shown else address


def _is_in(ip: IPAddress | None, shown: Mapping[str, Any], name: str) -> bool:
    prefix = _prefix(shown, name)
    return prefix == "all" or (ip is not None and ip in ip_network(prefix))


def _protocol(shown: Mapping[str, Any]) -> str:
    protocol = str(shown.get("ipproto", "")).removeprefix("ipproto-")
    return _PROTOCOLS.get(protocol, protocol)


def _ports(shown: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Return the first and the last port of a range; 0: any."""
    return int(shown.get(f"{name}_start", shown.get(name, 0))), int(shown.get(f"{name}_end", shown.get(name, 0)))


def policy_rules(text: str) -> tuple[PolicyRule, ...]:
    """Parse `ip -json -N rule show` of one family; the rules are in the order in which the kernel goes through them."""
    return tuple(PolicyRule(int(each["priority"]), str(each.get("table", "")), each) for each in objects(text))


def decision(
    rules: Sequence[PolicyRule], routes: Sequence[Route], packet: Packet
) -> tuple[PolicyRule | None, Route | None]:
    """Return the rule that decides where a packet goes, and the route, if it looks one up; None: no rule does."""
    at = 0
    for rule in rules:
        if rule.priority < at or not rule.matches(packet):
            continue
        if rule.action:
            return rule, None
        at = int(rule.shown.get("goto", at))
        found = _looked_up(rule.table, routes, packet.destination) if rule.table else None
        if found and found.network.prefixlen > int(rule.shown.get("suppress_prefixlen", -1)) and found.kind != THROW:
            return rule, found
    return None, None


def _looked_up(table: str, routes: Sequence[Route], destination: IPAddress) -> Route | None:
    """Return the most specific route of a table."""
    found = [each for each in routes if each.table == table and destination in each.network]
    return max(found, key=lambda each: (each.network.prefixlen, -each.metric), default=None)
