"""Builds the scripts by which shells complete commands and flags, from the table of settings."""

import shlex
from collections.abc import Iterator
from typing import Final

from sidecar import PROGRAM
from sidecar.settings.invocation import COMMANDS, SHELLS
from sidecar.settings.options import FLAGS
from sidecar.settings.usage import summary

_FUNCTION: Final = f"_{PROGRAM.replace('-', '_')}"

_BASH: Final = """\
{function}() {{
    local command= known= each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in ({commands}) command=$each; break ;; esac
    done
    case $command in
{cases}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$known" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -o default -F {function} {program}"""

_ZSH: Final = """\
#compdef {program}
{function}() {{
    local command= known= each
    for each in ${{words[2,CURRENT-1]}}; do
        case $each in ({commands}) command=$each; break ;; esac
    done
    case $command in
{cases}
    esac
    compadd -- ${{=known}} || _files
}}
if [[ $funcstack[1] == {function} ]]; then {function}; else compdef {function} {program}; fi"""


def script(shell: str) -> str:
    """Return the script for bash, zsh or fish."""
    if shell == "fish":
        return "\n".join(_fish())
    cases = "\n".join(f"        ('{command}') known='{' '.join(_words(command))}' ;;" for command in ("", *COMMANDS))
    return (_BASH if shell == "bash" else _ZSH).format(
        function=_FUNCTION, program=PROGRAM, commands="|".join(COMMANDS), cases=cases
    )


def _words(command: str) -> Iterator[str]:
    """Yield what may follow a command; or what may come first, as run is the default."""
    if command in ("", "help"):
        yield from COMMANDS
    if command == "completion":
        yield from SHELLS
    yield from (f"--{flag.name}" for flag in FLAGS.values() if (command or "run") in flag.commands)
    if command != "help":
        yield "--help"


def _fish() -> Iterator[str]:
    begin = f"complete -c {PROGRAM}"
    yield f"{begin} -f"
    yield f"{begin} -l help -s h -d {shlex.quote('show the help')}"
    for command in COMMANDS:
        yield f"{begin} -n __fish_use_subcommand -a {command} -d {shlex.quote(summary(command))}"
    yield f"{begin} -n '__fish_seen_subcommand_from help' -a '{' '.join(COMMANDS)}'"
    yield f"{begin} -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'"
    for flag in FLAGS.values():
        first = "__fish_use_subcommand; or " if COMMANDS[0] in flag.commands else ""
        letter = f" -s {flag.letter}" if flag.letter else ""
        value = "" if flag.is_boolean else " -r"
        where = f"{first}__fish_seen_subcommand_from {' '.join(flag.commands)}"
        yield f"{begin} -n '{where}' -l {flag.name}{letter}{value} -d {shlex.quote(flag.help)}"
