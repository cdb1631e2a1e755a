"""Builds the text of --help, for all commands or for one, from the table of settings."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sidecar import PROGRAM
from sidecar.settings.options import FLAGS, INHERITING, Flag
from sidecar.text import WIDTH

_NAME: Final = 19  # width of the column of names
_COMMAND: Final = 11  # width of the column of commands


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str  # fits on one line with the command's name
    more: str  # what to know besides
    examples: tuple[str, str]
    words: str = "[flags]"  # what follows the command


_OWN: Final = (
    "Without --ip-address, it uses the settings of the sidecar that runs on this node, or of the rules that one has "
    "left."
)

_COMMANDS: Final = {
    "run": _Command(
        "Keep the addresses and the rules in place, until stopped. This is the default.",
        "It checks the node every --sync-interval, and at once when something is taken away.",
        ("run --ip-address=10.96.0.2 --setup-iptables", "run --ip-address=10.96.0.2 --daemon=false"),
        "--ip-address=ADDRESS[,ADDRESS...] [flags]",
    ),
    "status": _Command(
        "Show what is in place. It changes nothing.", _OWN, ("status", "status --watch --ip-address=10.96.0.2")
    ),
    "plan": _Command(
        "Show the commands that run would execute now. It changes nothing.",
        f"You can paste them into a shell. {_OWN}",
        ("plan", "plan --ip-address=10.96.0.2 --setup-iptables"),
    ),
    "cleanup": _Command(
        "Remove what run set up.",
        "It removes nothing that a running sidecar needs: stop that one first.",
        ("cleanup --ip-address=10.96.0.2 --setup-iptables --dry-run", "cleanup --env-file=/etc/sidecar.env"),
        "--ip-address=ADDRESS[,ADDRESS...] [flags]",
    ),
    "doctor": _Command(
        "Find out why it does not work on this node. It changes nothing.",
        _OWN,
        ("doctor", "doctor --ip-address=10.96.0.2 --setup-iptables --output=json"),
    ),
    "version": _Command("Print the version.", "", ("version", "version --output=json")),
    "completion": _Command(
        "Print a script that completes commands and flags in a shell.",
        "Each shell can `source` it, too; zsh after compinit.",
        (
            f"completion bash > /etc/bash_completion.d/{PROGRAM}",
            f"completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
        ),
        "bash|zsh|fish",
    ),
    "help": _Command("Show this help, or that of one command.", "", ("help", "help status"), "[COMMAND]"),
}

_NOTES: Final = (
    "Second column: the environment variable for the same setting. Flags win over variables, variables over "
    "--env-file, that over the default (third column). A boolean is --cleanup or --cleanup=false; a duration is Go's: "
    "90s, 1m30s, 500ms; a severity is 0 to 3 or INFO, WARNING, ERROR, FATAL. --create-interface=auto creates none "
    "whose name the system or others give, such as eth0 or br0. --alsologtostderrthreshold is the lowest severity "
    "that --alsologtostderr copies. With --legacy_stderr_threshold_behavior=false, --logtostderr drops lines below "
    "--stderrthreshold."
)
_EXIT_CODES: Final = (
    "Exit codes: 0 done, or stopped by a signal; 1 not in sync; 2 bad configuration; 3 the node lacks something: a "
    "command, a capability, kernel support. doctor: 1 as well for a fault that run cannot repair, and for what decides "
    "but cannot be seen."
)


def summary(command: str) -> str:
    """Return what a command is for, in a line."""
    return _COMMANDS[command].summary


def usage(topic: str = "", width: int = WIDTH) -> str:
    """Return the help on a command, or without one on all, in lines of at most so many columns."""
    if topic:
        command = _COMMANDS[topic]
        intro = [
            f"Usage: {PROGRAM} {topic} {command.words}",
            "",
            f"{command.summary} {command.more}",
            "",
            "Examples:",
            *(f"  {PROGRAM} {each}" for each in command.examples),
        ]
    else:
        intro = [
            f"Usage: {PROGRAM} [COMMAND] [flags]",
            "",
            "Holds IP addresses on an interface, and the iptables rules for them, for an apiserver-proxy.",
            "",
            "Commands:",
            *(f"  {name:<{_COMMAND}} {command.summary}" for name, command in _COMMANDS.items()),
        ]
    flags = [flag for flag in FLAGS.values() if not topic or topic in flag.commands]
    lines = [*intro]
    for title, group in groupby(flags, lambda flag: flag.group):
        lines += ["", f"{title}:", *_rows(list(group), "-" if topic in INHERITING else "required")]
    if len(flags) > 1:
        lines += ["", _NOTES, "", _EXIT_CODES]
    if not topic:
        lines += ["", f"{PROGRAM} COMMAND --help shows a command's own flags, with examples."]
    return "\n".join("\n".join(_wrapped(line, width)) for line in lines)


def _rows(group: Sequence[Flag], missing: str) -> Iterator[str]:
    """Yield a line for each flag; `missing` is the default of one that has none.

    A group with longer names has its own column widths.
    """
    is_wide = any(len(flag.spelled) > _NAME for flag in group)
    names, variables, defaults = (34, 40, 4) if is_wide else (_NAME, 26, 8)
    for flag in group:
        default = missing if flag.default is None else flag.default or "-"
        forms = f"-{flag.letter}, --{flag.name}" if flag.letter else flag.spelled
        yield f"  {forms:<{names}} {flag.variable:<{variables}} {default:<{defaults}} {flag.help}"


def _wrapped(line: str, width: int) -> list[str]:
    indent = " " * 6 if line.startswith(" ") else ""
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
