"""The command `plan`: observes the node, changes nothing, and prints the commands that `run` would run now."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias

from sidecar.commands.output import Answer, Terminal, as_json
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import SidecarError, pasteable
from sidecar.log.setup import collect_warnings
from sidecar.node.access import access
from sidecar.node.command import Commands
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Loaded, Origin
from sidecar.state.actions import Action, Failure, exit_code
from sidecar.state.foresee import whole_plan
from sidecar.state.plan import obstacles, unknowns
from sidecar.text import visible

SCHEMA: Final = "plan/v2"  # the version of the JSON: it changes when a field is removed or its meaning changes

#: An action and its commands, ready to paste.
Step: TypeAlias = tuple[Action, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and by which commands."""

    steps: tuple[Step, ...]
    failures: tuple[str, ...]
    exit_code: int
    schema: str
    nothing: str  # the line to print if there is nothing to do
    origin: Origin = field(default_factory=Origin)
    warnings: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()  # objects that stay because another instance needs them


def answers(loaded: Loaded, _: Terminal) -> Iterator[Answer]:
    """Yield the plan. Raises OSError if no command can be run at all."""
    logged = collect_warnings(loaded.options)
    commands = Commands(loaded.options.command_timeout)
    Wakeup(commands.wakeup_fd, on_stop=commands.interrupt, on_interrupt=commands.interrupt)
    node = access(loaded.options, commands, creates=False)
    reconciler = node.reconciler()
    observed, unseen = reconciler.observe()
    found, failed = steps(reconciler, whole_plan(node.desired, observed))
    failures = (*unseen, *obstacles(node.desired, observed), *failed)
    plan = Plan(
        steps=found,
        failures=tuple(map(str, failures)),
        exit_code=exit_code(failures, in_sync=not found),
        schema=SCHEMA,
        nothing="nothing to do" if observed.unknown else "in sync: nothing to do",
        origin=loaded.origin,
        warnings=(*loaded.warnings, *logged, *map(str, unknowns(observed))),
    )
    yield render(plan, loaded.options.output)


def steps(reconciler: Reconciler, actions: Sequence[Action]) -> tuple[tuple[Step, ...], list[Failure]]:
    """Return each action with its commands, ready to paste; and the failures of looks that this took."""
    found: list[Step] = []
    failed = []
    for action in actions:
        try:
            found.append((action, tuple(pasteable(*each) for each in reconciler.commands([action]))))
        except SidecarError as error:
            failed.append(Failure(action.todo, error))
    return tuple(found), failed


def render(plan: Plan, output: str) -> Answer:
    """Return the plan in the format of --output, and its exit code."""
    return (plan_json if output == "json" else plan_text)(plan), plan.exit_code


def plan_text(plan: Plan) -> str:
    """Return the commands as a shell can run them, one per line; everything else is a shell comment."""
    lines = [command for _, commands in plan.steps for command in commands]
    if not lines and not plan.failures and not plan.kept:
        lines = [f"# {plan.nothing}"]
    before = [f"settings {plan.origin.detail}"] if plan.origin.detail else []
    before += [f"warning: {warning}" for warning in plan.warnings]
    after = [f"kept, because an instance running on this node needs it: {each}" for each in plan.kept]
    after += [f"error: {failure}" for failure in plan.failures]
    return "\n".join((*_comments(before), *lines, *_comments(after)))


def _comments(texts: Sequence[str]) -> Iterator[str]:
    return (f"# {visible(text)}" for text in texts)


def plan_json(plan: Plan) -> str:
    """Return the same as one JSON object on one line."""
    return as_json(
        {
            "schema": plan.schema,
            "exit": plan.exit_code,
            "settings_of": asdict(plan.origin),
            "steps": [
                {"action": action.todo, "commands": list(commands), **action.facts} for action, commands in plan.steps
            ],
            "kept": list(plan.kept),
            "warnings": list(plan.warnings),
            "failures": list(plan.failures),
        }
    )
