"""The sidecars that run on this node: what they do by themselves, and what they would undo. No remedy says that."""

import contextlib
from collections.abc import Sequence
from functools import cached_property

from sidecar.node import claims, instances
from sidecar.node.instances import Instance
from sidecar.settings.values import BOOLEANS
from sidecar.state.actions import (
    Action,
    AddAddress,
    AddRule,
    CreateLink,
    DeprecateAddress,
    MoveToFront,
    RemoveAddress,
    RemoveRule,
    RemoveSurplus,
    SetLinkUp,
)
from sidecar.state.desired import rule_set_of
from sidecar.state.model import Address, Claim, RuleSet


class Keepers:
    """The sidecars that run on this node's network; each is looked for once."""

    def __init__(self) -> None:
        #: Why an instance does nothing, by its process id; the check of that fills it in.
        self.idle: dict[int, str] = {}
        #: Whether theirs is another backend than that of this check: they leave alone what is missing in this one.
        self.use_other_backend = False

    @cached_property
    def running(self) -> list[Instance]:
        with contextlib.suppress(OSError):
            return instances.running()[0]
        return []

    @cached_property
    def powerless(self) -> list[Instance]:
        with contextlib.suppress(OSError):
            return instances.powerless()
        return []

    def of(self, claim: Claim) -> list[Instance]:
        """Return the instances that need something, by their settings."""
        return [each for each in self.running if claim in each.claims()]

    def keeps(self, claim: Claim) -> str:
        """Return in words which sidecar needs something; empty: none."""
        if found := self.of(claim):
            return str(found[0])
        with contextlib.suppress(OSError):  # none has run here, or only root can see
            return "a sidecar that runs here" if claims.held([claim]) else ""
        return ""

    def repairs(self, action: Action) -> Instance | None:
        """Return the instance that takes this action by itself, at best one that is at work."""
        able = [each for each in self.running if each.repairs and self._does(each, action)]
        return min(able, key=lambda each: each.process.pid in self.idle, default=None)

    def instead(self, actions: Sequence[Action]) -> str:
        """Return what to say instead of the commands for these actions; empty: nothing."""
        if actions and all(map(self.repairs, actions)):
            return f"{self.repairs(actions[0])} does this by itself, see `sidecar` above"
        if self.use_other_backend and (elsewhere := [each for action in actions for each in self._adds(action)]):
            return f"{elsewhere[0]} keeps its rules in the other backend, see `backend` above"
        # Whoever removes an address to add it again is done with it before the sidecar is.
        again = {action.address for action in actions if isinstance(action, AddAddress)}
        for action in actions:
            claim = _removed(action)
            if claim and claim not in again and (who := self.keeps(claim)):
                setting = f"--ip-address or --{'port' if isinstance(claim, RuleSet) else 'interface'}"
                return f"{who} needs {claim} and would add it again: change its {setting}, or stop it first"
        return ""

    def _adds(self, action: Action) -> list[Instance]:
        """Return the instances that need the rule which an action adds."""
        rules = rule_set_of(action.rule.line) if isinstance(action, AddRule) else None
        return self.of(rules) if rules else []

    def _does(self, each: Instance, action: Action) -> bool:
        needed = each.claims()
        match action:
            case AddAddress(address) | DeprecateAddress(address):
                return address in needed
            case AddRule(rule) | RemoveSurplus(rule):
                return rule_set_of(rule.line) in needed and not self.use_other_backend
            case MoveToFront(rule):
                is_first = each.value("rule-position") == "insert"
                return is_first and rule_set_of(rule.line) in needed and not self.use_other_backend
            case SetLinkUp(interface) | CreateLink(interface):
                return interface == each.value("interface")
            case RemoveAddress(address):
                is_duplicate = address.ip in each.addresses and address not in needed
                return is_duplicate and BOOLEANS.get(each.value("remove-duplicates"), False)
            case _:
                return False


def _removed(action: Action) -> Address | RuleSet | None:
    """Return what an action removes that a sidecar may need."""
    match action:
        case RemoveAddress(address):
            return address
        case RemoveRule(rule):
            return rule_set_of(rule.line)
        case _:
            return None
