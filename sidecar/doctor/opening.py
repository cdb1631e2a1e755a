"""The command that lets traffic pass a rule of others: it puts one before it, and takes none away."""

from typing import Final

from sidecar.doctor.ruleset import Ruleset
from sidecar.doctor.view import View
from sidecar.errors import pasteable
from sidecar.firewall.walk import Met
from sidecar.state.actions import AddRule, MoveToFront
from sidecar.state.model import IPV4, Address, Rule

_WAIT: Final = 5.0  # seconds for which a command that is shown waits for the xtables lock


def opening(view: View, address: Address, rules: Ruleset, met: Met, *, is_reply: bool) -> tuple[str, ...]:
    """Return the commands that let the traffic of an address pass the base chain in which a rule stops it.

    In raw, they leave our NOTRACK rule before the new one, as what is accepted there does not come to it.
    """
    base = met.base
    tool = rules.tools.get(base.table)
    if tool is None:
        return (_native(view, address, met, is_reply=is_reply),)
    table, family = base.table.partition(" ")[0], address.ip.version
    direction = ("-s", "--sport") if is_reply else ("-d", "--dport")
    words = (direction[0], address.cidr, "-p", "tcp", "-m", "tcp", direction[1], str(view.port), "-j")
    notrack = Rule(family, table, base.name, (*words, "NOTRACK"))
    accept = Rule(family, table, base.name, (*words, "ACCEPT"))
    program = tool.waiting(_WAIT)
    if view.observed().copies.get(notrack):
        second = program.argv(table, ("-I", base.name, "2", *accept.match))
        return (*view.commands(MoveToFront(notrack, met.line)), pasteable(second, ""))
    return tuple(pasteable(*command) for command in program.commands(AddRule(accept, insert=True)))


def _native(view: View, address: Address, met: Met, *, is_reply: bool) -> str:
    """Return the same for nft's own tables, whose name is `table FAMILY NAME`."""
    family = "ip" if address.ip.version == IPV4 else "ip6"
    address_field, port_field = ("saddr", "sport") if is_reply else ("daddr", "dport")
    place = met.base.table.removeprefix("table ").split()
    match = (family, address_field, str(address.ip), "tcp", port_field, str(view.port), "accept")
    return pasteable(("nft", "insert", "rule", *place, met.base.name, *match), "")
