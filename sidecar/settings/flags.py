"""Every flag with its variable, its default and its meaning; the command words; and the text of --help.

Pure text, so that --help and version need not wait for what reads and checks the values (settings.py).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.settings import command_line
from sidecar.text import quoted

PREFIX: Final = "SIDECAR_"


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting. `default` is spelled as an operator would spell it; None: required."""

    name: str
    default: str | None
    meaning: str

    @property
    def field(self) -> str:
        """The name of the setting inside."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return PREFIX + self.field.upper()

    @property
    def spelled(self) -> str:
        return command_line.spelled(self.name)

    @property
    def is_boolean(self) -> bool:
        return self.default in ("true", "false")


#: In order of use. The names and defaults of the Go sidecar, and so of klog v2 (klog.go, `init`).
GROUPS: Final = {
    "Address": (
        Flag("ip-address", None, "where the proxy listens; repeat, or a,b"),
        Flag("interface", "lo", "interface to add the address to"),
        Flag("port", "443", "port on which the proxy listens"),
        Flag("address-scope", "host", "host or global: scope of IPv4 addresses"),
        Flag("create-interface", "true", "create the interface where it is missing"),
        Flag("remove-duplicates", "false", "take the address off other interfaces"),
    ),
    "iptables rules": (
        Flag("setup-iptables", "false", "let the traffic in, untracked"),
        Flag("iptables-backend", "auto", "auto, nft, legacy or system"),
        Flag("rule-position", "append", "append, or insert: before other rules"),
        Flag("iptables-wait", "5s", "how long to wait for the xtables lock"),
    ),
    "Running": (
        Flag("daemon", "true", "keep running; false: one pass, then exit"),
        Flag("sync-interval", "1m0s", "time between two looks at the node"),
        Flag("command-timeout", "10s", "no command may run longer"),
        Flag("cleanup", "false", "on exit, remove what was set up"),
        Flag("cleanup-timeout", "20s", "the cleanup ends by then, done or not"),
        Flag("health-address", "", "host:port or :port; probes and metrics"),
        Flag("env-file", "", "read variables from this file"),
    ),
    "Looking": (
        Flag("output", "text", "of what looks or cleans up: text or json"),
        Flag("watch", "false", "of status: again and again, until stopped"),
        Flag("dry-run", "false", "of cleanup: print the commands only"),
    ),
    "Log": (
        Flag("v", "0", "2 each pass, 4 each command, 6 output"),
        Flag("vmodule", "", "by source file: reconcile=2,command=6"),
        Flag("logging-format", "text", "text, or json: one object a line"),
        Flag("skip_headers", "false", "lines without time, place and severity"),
        Flag("add_dir_header", "false", "the place with its directory"),
        Flag("log_backtrace_at", ":0", "file.py:N: stack trace at that log line"),
    ),
    "Log files": (
        Flag("logtostderr", "true", "log to standard error, not to files"),
        Flag("alsologtostderr", "false", "to standard error as well as to files"),
        Flag("stderrthreshold", "2", "to standard error too from here: 0-3"),
        Flag("log_dir", "", "directory; a file for each severity"),
        Flag("log_file", "", "one file for all; wins over --log_dir"),
        Flag("log_file_max_size", "1800", "MB, then it starts over; 0: no limit"),
        Flag("skip_log_headers", "false", "files without a header at their start"),
        Flag("one_output", "false", "a line only in its severity's file"),
    ),
    "Log files, rarely needed": (
        Flag("alsologtostderrthreshold", "0", "0-3"),
        Flag("legacy_stderr_threshold_behavior", "true", "false: see below"),
    ),
}

FLAGS: Final = {flag.name: flag for group in GROUPS.values() for flag in group}

#: The command words; without one it is the first.
COMMANDS: Final = ("run", "status", "plan", "cleanup", "doctor", "version", "help")

_ASIDE: Final = ("help", "h", "version")

_WORDS_OF_A_BOOLEAN: Final = {*map(str.lower, command_line.BOOLEANS), "yes", "no"}


#: How wide the column of names is in --help.
_NAME: Final = 19

#: What looks like an address, and is no word.
_ADDRESS: Final = re.compile(r"[0-9.,]+|[0-9a-fA-F:.,]*:[0-9a-fA-F:.,]*")


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command, and the values of each flag that was given, in order; `faults` is what is wrong with it.

    A command that is not known is "unknown", and told among the faults.
    """

    command: str
    values: dict[str, list[str]]
    faults: list[str]


def parse(argv: Sequence[str]) -> Invocation:
    """Read the arguments of this program (without its own name)."""
    booleans = [*_ASIDE, *(flag.name for flag in FLAGS.values() if flag.is_boolean)]
    line = command_line.parse(argv, flags=[*FLAGS, *_ASIDE], booleans=booleans)
    command, *rest = line.words or COMMANDS[:1]
    asked = {name for name in _ASIDE if command_line.BOOLEANS.get(line.values.pop(name, ["false"])[-1], True)}
    if command == "help" or asked & {"help", "h"}:
        return Invocation("help", {}, [])
    if command in COMMANDS:
        return Invocation("version" if asked else command, line.values, [*line.faults, *map(_unexpected, rest)])
    if _hint(command):  # a value that lost its flag
        return Invocation("run", line.values, [*line.faults, *map(_unexpected, line.words)])
    nearest = command_line.nearest(command, COMMANDS)
    fault = f"unknown command {quoted(command)}: it is one of {', '.join(COMMANDS)}{nearest}"
    return Invocation("unknown", line.values, [*line.faults, fault, *map(_unexpected, rest)])


def _unexpected(word: str) -> str:
    return f"unexpected word {quoted(word)}{_hint(word)}"


def _hint(word: str) -> str:
    """Return what a word was perhaps meant to be."""
    if word.lower() in _WORDS_OF_A_BOOLEAN:
        return "; a boolean takes its value with =, like --cleanup=false"
    if _ADDRESS.fullmatch(word):
        return "; several addresses are separated by commas: --ip-address=10.96.0.2,10.96.0.3"
    return ""


def usage() -> str:
    """Return the text of --help: every flag with its variable, its default and its meaning, a line each."""
    lines = [
        "Usage: apiserver-proxy-sidecar [run] --ip-address=ADDRESS[,ADDRESS...] [flags]",
        "       apiserver-proxy-sidecar status | plan | cleanup | doctor [flags]",
        "       apiserver-proxy-sidecar version | help",
        "",
        "Holds IP addresses on an interface, and iptables rules that go with them, for an apiserver-proxy.",
        "status shows what of it is there, plan the commands that run would execute now, and neither changes",
        "anything; cleanup takes it away; doctor finds out why it does not work on this node. Without",
        "--ip-address they go by the sidecar that runs on this node.",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *_rows(group)]
    return "\n".join(
        (
            *lines,
            "",
            "Second column: the variable that sets the same. Flags win over variables, variables over the",
            "--env-file, that over the default in the third column. A boolean is --cleanup or --cleanup=false;",
            "a duration is Go's: 90s, 1m30s, 500ms; a severity is 0 to 3 or INFO, WARNING, ERROR, FATAL.",
            "With --alsologtostderr, --alsologtostderrthreshold is the severity from which it holds. With",
            "--legacy_stderr_threshold_behavior=false, --logtostderr drops what is below --stderrthreshold.",
            "",
            "Exit codes: 0 done, or stopped in order; 1 not in sync; 2 bad configuration; 3 the node lacks",
            "something: a command, a capability, kernel support. Of doctor: 0 nothing wrong found, 1 a fault.",
        )
    )


def _rows(group: Sequence[Flag]) -> Iterator[str]:
    """Yield a line for each flag; a group with longer names has columns of its own."""
    is_wide = any(len(flag.spelled) > _NAME for flag in group)
    names, variables, defaults = (34, 40, 4) if is_wide else (_NAME, 26, 8)
    for flag in group:
        spelled = "-v, --v" if flag.name == "v" else flag.spelled
        default = "required" if flag.default is None else flag.default or "-"
        yield f"  {spelled:<{names}} {flag.variable:<{variables}} {default:<{defaults}} {flag.meaning}"
