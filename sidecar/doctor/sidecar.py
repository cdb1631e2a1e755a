"""The check of whether the sidecars that run on this node do their work: the cause of what other checks find.

What a sidecar that works would put right at once is looked at again: it may just be doing that.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import View
from sidecar.node import backends_shown, health_answers, legacy_tables
from sidecar.node.events import Events
from sidecar.node.halted import halted
from sidecar.node.health_answers import Answer
from sidecar.node.instances import Instance
from sidecar.node.netlink import Watch
from sidecar.state.actions import Action, RuleAction
from sidecar.state.model import Facts, Family, RuleSet
from sidecar.state.plan import plan
from sidecar.text import quoted

_PAUSE: Final = 0.5  # seconds between two looks: a sidecar repairs within a tenth of that
_LOOKS: Final = 2  # how often to look again: one that is fought repairs only now and then
_ENOUGH: Final = 1.0  # seconds that must be left for all checks to look a third time
_SHORT: Final = 0.1  # seconds to watch legacy's tables where nothing is missing: of these, no message comes
_SAMPLE: Final = 0.02  # seconds after which the size of legacy's tables is asked for again; it takes microseconds
#: Where the kernel takes an address off an interface, in the process that asks for it (net/ipv4/devinet.c).
_DELETIONS: Final = "kprobe:inet_rtm_deladdr,kprobe:inet6_rtm_deladdr"

_SHOWN: Final = 3  # how many things are named
_LONGEST: Final = 300  # characters of an answer that a finding shows


def sidecar(view: View, *, is_suspect: bool = False) -> Iterator[Finding]:
    """Yield which sidecars run here, but do not repair what they are for, or are fought over it.

    With `is_suspect`, watch for a while even if all is in place.
    """
    holders = [each for each in view.keepers.running if _concerns(view, each)]
    # Of several on one --health-address, the newest answers.
    newest = {each.value("health-address"): each for each in sorted(holders, key=lambda each: each.process.pid)}
    answering = [each for each in newest.values() if each.is_python]
    idle = {each.process.pid: found for each in holders if (found := _idle(each, answers=each in answering))}
    view.keepers.idle = {pid: finding.found for pid, finding in idle.items()}
    # In a rolling update, another one may do the work.
    level = Level.FAULT if len(idle) == len(holders) else Level.WARNING
    yield from (replace(finding, level=level, leads=level is Level.FAULT) for finding in idle.values())
    if not holders:
        yield from (_powerless(each) for each in view.keepers.powerless if _concerns(view, each))
    at_work = [each for each in holders if each.repairs and each.process.pid not in idle]
    view.keepers.use_other_backend = bool(at_work) and any(_is_other(view, family, at_work) for family in view.backends)
    if at_work:
        yield from _unrepaired(view, at_work, is_suspect=is_suspect)


def _is_other(view: View, family: Family, at_work: Sequence[Instance]) -> bool:
    """Whether these instances keep their rules in another backend than the one that this check looks at."""
    used = view.backends[family].in_use if view.has_seen(family) else None
    rules = [RuleSet(address.ip, view.port) for address in view.desired.addresses if address.ip.version == family]
    return used is not None and not backends_shown.keepers(at_work, family, used.name, rules)


def _concerns(view: View, each: Instance) -> bool:
    return any(address in each.claims() for address in view.desired.addresses)


def _idle(each: Instance, *, answers: bool) -> Finding | None:
    """Return why an instance does nothing: it is kept from running, or hangs.

    `answers` says whether it is the one that answers on its --health-address.
    """
    facts: Facts = {"pid": each.process.pid}
    if halt := halted(each.process.pid):
        commands = (halt.command,) if halt.command else ()
        found = f"{each} runs here, but {halt.why}: it repairs nothing"
        return Finding(Level.FAULT, found, halt.remedy, commands, facts)
    answer = health_answers.ask(each.value("health-address"), "/healthz") if answers else None
    if answer is None or answer.status not in (0, 503):
        return None
    says = f"it says {_quoted(answer)}" if answer.status else "it does not answer on --health-address"
    found = f"{each} runs here, but hangs: {says}"
    return Finding(Level.FAULT, found, "restart it; its log says what hangs", facts=facts)


def _powerless(each: Instance) -> Finding:
    found = f"{each} runs here, but lacks CAP_NET_ADMIN: it repairs nothing"
    remedy = "add NET_ADMIN to its container's capabilities and run it as user 0, or run it as root"
    return Finding(Level.FAULT, found, remedy, facts={"pid": each.process.pid}, leads=True)


def _unrepaired(view: View, at_work: Sequence[Instance], *, is_suspect: bool) -> Iterator[Finding]:
    """Look again, and yield what stays missing, or is taken away again."""
    with contextlib.closing(Events(Watch.of(view.desired))) as events:
        first = _drift(view)
        is_moving = any(map(events.arrived, events.descriptors)) or (view.is_legacy() and _pause(view, _SHORT))
        if not (first or is_moving or is_suspect or _repairs(at_work)):
            return
        last, is_removed = _watched(view, at_work, first, events)
    actions = (*last, *first)
    who = (view.keepers.repairs(actions[0]) if actions else None) or at_work[0]
    facts: Facts = {"pid": who.process.pid}
    # It counts only what it puts back after all was in place once: so this was not its first set-up.
    if is_removed or (first and not last and _repairs(at_work)):
        what = f": {_names(actions)}" if actions else ""
        found = f"{who} repairs, and something removes it again{what}"
        yield Finding(Level.FAULT, found, _how_to_find(view, last or first), facts=facts, leads=True)
    elif last:
        found = f"{who} runs here, but does not repair what is missing: {_names(last)}"
        # It waits longer each time that something is taken away again.
        why = _readiness(at_work) or "perhaps something keeps taking it away"
        yield Finding(Level.FAULT, f"{found}; {why}", "see its log", facts=facts, leads=True)
    elif first:
        yield Finding(Level.NOTE, f"{who} has just added what was missing: {_names(first)}", facts=facts)


def _watched(view: View, at_work: Sequence[Instance], first: list[Action], events: Events) -> tuple[list[Action], bool]:
    """Look again, at most twice; return what is missing at last, and whether anything was taken away meanwhile."""
    last = first
    for _ in range(_LOOKS):
        before, counted = last, _repairs(at_work)
        changes = _pause(view, _PAUSE)
        view.look_again()
        last = _drift(view)
        is_removed = any(map(events.arrived, events.descriptors)) or changes > 1 or _repairs(at_work) > counted
        if is_removed or any(each not in before for each in last):
            return last, True
        if not last or view.time_left() < _ENOUGH:
            break
    return last, False


def _pause(view: View, seconds: float) -> int:
    """Wait, and return how often legacy's tables changed meanwhile: of these, the kernel sends no message."""
    tables = [
        (family, table)
        for family, backend in view.backends.items()
        for table in (legacy_tables.readable(family) or () if backend.is_legacy else ())
    ]
    samples = round(seconds / _SAMPLE) if tables else 1
    changes, before = 0, [legacy_tables.table_size(*each) for each in tables]
    for _ in range(samples):
        view.pause(seconds / samples)
        now = [legacy_tables.table_size(*each) for each in tables]
        changes, before = changes + (now != before), now
    return changes


def _drift(view: View) -> list[Action]:
    """Return what is to do that a sidecar which works does by itself."""
    return [action for action in plan(view.desired, view.observed()) if view.keepers.repairs(action)]


def _repairs(at_work: Sequence[Instance]) -> float:
    """Return how many things these instances have put back, as far as they tell."""
    addresses = dict.fromkeys(filter(None, (each.value("health-address") for each in at_work)))
    return sum(health_answers.repairs(each) or 0.0 for each in addresses)


def _readiness(at_work: Sequence[Instance]) -> str:
    """Return what the instances say of why they are not ready; empty: nothing."""
    for address in dict.fromkeys(each.value("health-address") for each in at_work):
        answer = health_answers.ask(address, "/readyz")
        if answer and answer.status == 503:  # noqa: PLR2004 - 503 Service Unavailable
            return f"it says {_quoted(answer)}"
    return ""


def _quoted(answer: Answer) -> str:
    return quoted(" ".join(answer.text.split()), _LONGEST)


def _names(actions: Sequence[Action]) -> str:
    names = list(dict.fromkeys(_name(action) for action in actions))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _name(action: Action) -> str:
    facts = action.facts
    return str(facts.get("rule") or facts.get("address") or f"interface {facts['interface']}")


def _how_to_find(view: View, actions: Sequence[Action]) -> str:
    """Return how to find who removes it."""
    rivals = [
        f"perhaps it is {each}, which holds {address.ip} on {each.value('interface')}"
        for address in view.desired.addresses
        for each in view.keepers.running
        if address.ip in each.addresses and address not in each.claims()
    ]
    return "; ".join([*rivals[:1], f"find it: {_tracing(view, actions)}"])


def _tracing(view: View, actions: Sequence[Action]) -> str:
    """Return how to see which program makes such changes."""
    if not any(isinstance(action, RuleAction) for action in actions):
        return f"`bpftrace -e '{_DELETIONS} {{ printf(\"%s %d\\n\", comm, pid) }}'` names the process"
    if view.is_legacy():
        return "`ausearch -m NETFILTER_CFG -ts recent` names the program, where auditd runs"
    return "`nft monitor` names the process with each change"
