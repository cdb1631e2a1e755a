"""Runs one pass, or the cleanup: observe, plan, apply, and observe again to check the result."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from loguru import logger

from sidecar.errors import CommandTimeout, DeadlineReached, Interrupted, NodeError, NotSupported, SidecarError
from sidecar.log import levels
from sidecar.node import iproute
from sidecar.node.command import Command
from sidecar.node.iproute import IpRoute
from sidecar.node.seen import Seen
from sidecar.state.actions import (
    Action,
    CreateLink,
    Failure,
    Outcome,
    RemoveAddress,
    RemoveRule,
    Report,
    RuleAction,
    counted,
)
from sidecar.state.history import remember
from sidecar.state.model import BackendInUse, Desired, Family, Hindrance, Link, LinkAddress, Observed, Part, Rule
from sidecar.state.plan import notices, obstacles, plan, teardown, unknowns, unread, unremovable

#: How often one pass acts before it gives up. The repeats are for changes that others make at the same moment.
ROUNDS: Final = 3

PAUSE: Final = 0.2  # seconds between two rounds of a cleanup that has to wait, for example for the xtables lock


class Rules(Protocol):
    """Observes and changes the rules of one address family."""

    @property
    def in_use(self) -> BackendInUse | None: ...

    def reconsider(self) -> None: ...

    def observe(self, rules: Sequence[Rule]) -> Seen: ...

    def commands(self, action: RuleAction) -> list[Command]: ...

    def apply(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]: ...


class Reconciler:
    """Brings the node to the desired state, and back.

    From one call to the next it remembers nothing but the history of the interface, in `iproute`.
    """

    def __init__(  # noqa: PLR0913 - the desired state, the tools, and for tests the time
        self,
        desired: Desired,
        iproute: IpRoute,
        iptables: Mapping[Family, Rules],
        *,
        on_change: Callable[[Action], None] | None = None,
        on_sync: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take one entry in `iptables` for each family that has desired rules; `on_change` logs each change.

        `on_sync` is called at the end of each pass that left everything in place.
        """
        self._desired = desired
        families = {rule.family for rule in desired.rules}
        self._rules = {
            family: tuple(rule for rule in desired.rules if rule.family == family) for family in sorted(families)
        }
        self._iproute = iproute
        self._iptables = iptables
        self._on_change = on_change or _log_change
        self._on_sync = on_sync
        self._clock = clock
        self._sleep = sleep

    def reconcile(
        self, *, reconsiders: bool = True, first: Part | None = None, before_look: Callable[[], object] = lambda: None
    ) -> Report:
        """Run one pass. Raises Stopped if a signal ended it; every other failure is in the report.

        Unless it `reconsiders`, it takes the choice of the backend as it is, without another look. If something was
        changed in one part of the node, it repairs that `first`, before it looks at the rest. Before each look at the
        whole it calls `before_look`.
        """
        started = self._clock()
        if reconsiders:
            self.reconsider()
        changed: list[Action] = []
        failed: dict[Action, Failure] = {}
        if first:
            seen, _ = self.observe(first)
            failed = self._apply(plan(self._desired, seen), changed)
        report = self._reconcile(changed, failed, before_look)
        if report.in_sync:
            self._on_sync()
        seconds = self._clock() - started
        _log_pass(report, seconds)
        return report

    def _reconcile(
        self, changed: list[Action], failed: dict[Action, Failure], before_look: Callable[[], object]
    ) -> Report:
        for acts_left in reversed(range(ROUNDS + 1)):
            before_look()
            observed, unseen = self.observe()
            actions = plan(self._desired, observed)
            failed = _still_to_be_done(failed, actions)
            if not acts_left or not _worth_another_round(actions, failed):
                break
            failed |= self._apply(actions, changed)
        unsolved = (*unseen, *obstacles(self._desired, observed), *failed.values())
        noticed = (*notices(self._desired, observed), *unknowns(observed))
        return Report(tuple(changed), actions, unsolved, noticed, observed)

    def cleanup(self, deadline: float) -> Report:
        """Remove the desired state until nothing of it is left, or the clock reaches `deadline`.

        After a failure, go on with the rest and retry: a few times, or until the deadline if another process only has
        to release a resource. If such a failure hides rules, their address stays for half of the time. If a second
        signal ends the cleanup, log what may be left.
        """
        halfway = (self._clock() + deadline) / 2
        changed: list[Action] = []
        failed: dict[Action, Failure] = {}
        failures: tuple[Failure, ...] = ()
        observed = Observed(None, {})
        tries_left = ROUNDS
        try:
            for attempt in itertools.count():
                if attempt > 1:
                    self._sleep(PAUSE)
                observed, unseen = self.observe()
                patient = self._clock() < halfway and any(failure.error.transient for failure in unseen)
                actions = teardown(self._desired, observed, patient=patient)
                failures = _reasons((*unseen, *_still_to_be_done(failed, actions).values()), failures)
                if failures and not any(failure.error.transient for failure in failures):
                    tries_left -= 1
                if not (actions or unseen) or not tries_left or self._clock() >= deadline:
                    break
                failed = self._apply(actions, changed)
        except Interrupted:
            for action in self._perhaps_left(observed, changed):
                if action not in changed:
                    logger.bind(**action.facts).error(f"cleanup was interrupted, possibly left to do: {action.todo}")
            raise
        left = self._perhaps_left(observed, changed)
        return Report(tuple(changed), left, (*failures, *unremovable(observed)), observed=observed)

    def _perhaps_left(self, observed: Observed, changed: list[Action]) -> tuple[Action, ...]:
        """Return what is left to remove, assuming that everything unseen is there except what was just removed."""
        removed = {action.rule for action in changed if isinstance(action, RemoveRule)}
        copies = {**{rule: int(rule not in removed) for rule in self._desired.rules}, **observed.copies}
        links = observed.links
        link = observed.link(self._desired.interface)
        if links is None or (link and link.problem):
            gone = {action.address for action in changed if isinstance(action, RemoveAddress)}
            left = [address for address in self._desired.addresses if address not in gone]
            addresses = tuple(LinkAddress(each.ip, each.prefix_length, self._desired.scope) for each in left)
            links = (Link(self._desired.interface, addresses=addresses),)
        return teardown(self._desired, Observed(links, copies, history=self._iproute.history))

    def reconsider(self) -> None:
        """Look again for the backend to use, where its choice is not firm."""
        for family in self._rules:
            self._iptables[family].reconsider()

    def observe(self, *parts: Part) -> tuple[Observed, tuple[Failure, ...]]:
        """Return the observed state, or parts of it, and a failure for each part that could not be observed."""
        unseen: list[Failure] = []
        links = self._observe_links(unseen) if Part.LINKS in (parts or Part) else None
        rules = self._observe_rules(unseen) if Part.RULES in (parts or Part) else Observed(None, {})
        return replace(rules, links=links, history=self._iproute.history), tuple(unseen)

    def _observe_links(self, unseen: list[Failure]) -> tuple[Link, ...] | None:
        try:
            links = self._iproute.observe()
        except SidecarError as error:
            unseen.append(Failure("look at the addresses", error))
            return None
        seen = Observed(links, {}, history=self._iproute.history)
        self._iproute.history = remember(self._desired, seen)
        unseen += unread(self._desired, seen)
        return links

    def _observe_rules(self, unseen: list[Failure]) -> Observed:
        """Return the observed state without its links."""
        copies: dict[Rule, int] = {}
        hindrances: dict[Rule, Hindrance] = {}
        unknown: dict[Rule, str] = {}
        former: dict[Rule, int] = {}
        dormant: set[tuple[Family, str]] = set()
        for family, rules in self._rules.items():
            attempt = f"look at the IPv{family} rules"
            try:
                seen = self._iptables[family].observe(rules)
            except SidecarError as error:
                unseen.append(Failure(attempt, error))
            else:
                copies |= seen.copies
                hindrances |= seen.hindrances
                unknown |= seen.unknown
                former |= seen.former
                dormant |= {(family, table) for table in seen.dormant}
                unseen += [Failure(attempt, error) for error in seen.errors]
        backends = tuple(filter(None, (self._iptables[family].in_use for family in self._rules)))
        return Observed(None, copies, hindrances, backends, unknown, frozenset(dormant), former)

    def commands(self, actions: Sequence[Action]) -> list[Command]:
        """Return the commands for these actions, in order; raise SidecarError if a look that this takes fails."""
        found: list[Command] = []
        for action in actions:
            if isinstance(action, RuleAction):
                found += self._iptables[action.rule.family].commands(action)
            else:
                found.append(iproute.command(action))
        return found

    def _apply(self, actions: tuple[Action, ...], changed: list[Action]) -> dict[Action, Failure]:
        """Carry out the actions, add to `changed` those that changed something, and return what failed.

        Each tool gets all that is for it, in order. A failure does not stop the rest. But a tool that hung, had to
        wait, or cannot work is not used again in this round; nor is `ip` after it failed to create the interface. What
        the kernel lacks for one rule, it may have for the others.
        """
        failed: dict[Action, Failure] = {}
        for outcomes in self._begin(actions):
            for action, outcome in outcomes:
                if isinstance(outcome, SidecarError):
                    failed[action] = Failure(action.todo, outcome, action.facts)
                    is_missing = isinstance(outcome, NodeError) and not isinstance(outcome, NotSupported)
                    if outcome.transient or is_missing or isinstance(action, CreateLink):
                        break
                elif outcome:
                    changed.append(counted(action, outcome))
                    self._on_change(changed[-1])
        return failed

    def _begin(self, actions: Sequence[Action]) -> list[Iterator[tuple[Action, Outcome]]]:
        """Return for each tool what carries out its actions, in the order of the plan: links or rules first."""
        on_links = [action for action in actions if not isinstance(action, RuleAction)]
        on_rules = [action for action in actions if isinstance(action, RuleAction)]
        by_iproute = self._iproute.apply(on_links)
        by_iptables = [
            self._iptables[family].apply([action for action in on_rules if action.rule.family == family])
            for family in self._rules
        ]
        is_rules_first = bool(actions) and isinstance(actions[0], RuleAction)
        return [*by_iptables, by_iproute] if is_rules_first else [by_iproute, *by_iptables]


def _log_change(action: Action) -> None:
    logger.bind(**action.facts).info(action.done)


def _log_pass(report: Report, seconds: float) -> None:
    changed, remaining, failed = len(report.changed), len(report.remaining), len(report.failures)
    state = "in sync" if report.in_sync else f"not in sync, {remaining} still to do, {failed} failed"
    facts = logger.bind(seconds=round(seconds, 6), changed=changed, remaining=remaining, failed=failed)
    facts.log(levels.PASS, f"pass: {state}, {changed} changed, {seconds * 1000:.1f} ms")


def _still_to_be_done(failed: dict[Action, Failure], actions: tuple[Action, ...]) -> dict[Action, Failure]:
    """Return the failures of actions that are still to be done; others may have done the rest meanwhile."""
    return {action: failure for action, failure in failed.items() if action in actions}


def _worth_another_round(actions: tuple[Action, ...], failed: dict[Action, Failure]) -> bool:
    """Whether an action is left that did not just fail for good, and no tool hung or is missing.

    What the kernel lacks for one rule, it may have for the others.
    """
    errors = [failure.error for failure in failed.values() if not isinstance(failure.error, NotSupported)]
    if any(isinstance(error, CommandTimeout | NodeError) for error in errors):
        return False
    return any(action not in failed or failed[action].error.transient for action in actions)


def _reasons(failures: tuple[Failure, ...], earlier: tuple[Failure, ...]) -> tuple[Failure, ...]:
    """Return the failures; replace one that only says time is up by the earlier one that says what took so long."""
    known = {failure.attempt: failure for failure in earlier}
    return tuple(
        known.get(failure.attempt, failure) if isinstance(failure.error, DeadlineReached | CommandTimeout) else failure
        for failure in failures
    )
