"""The table of settings: one line holds the name, type, default, help, group and check of a setting.

Code derives from it the flags, the `SIDECAR_*` variables, --help, and pydantic's model (sources.py); tests hold
`.env.example` and the tables in docs/settings.md to it. To add a setting, add a line.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final, Literal, TypeVar, cast

from sidecar.settings import durations, klog, values
from sidecar.settings.klog import Place, Severity, Vmodule
from sidecar.settings.values import Endpoint, boolean, duration, one_of, path
from sidecar.state.desired import LINK_KIND, desired, is_name_of_others
from sidecar.state.model import Desired, IPAddress

T = TypeVar("T")

PREFIX: Final = "SIDECAR_"  # the prefix of every variable's name
_SHORTEST: Final = 0.01  # seconds. Not 0, and long enough to leave time for other work
_LONGEST_TIMEOUT: Final = 3600.0  # seconds. No command and no cleanup takes an hour; a longer time is a wrong unit


#: The commands that observe or change a node.
ON_A_NODE: Final = ("run", "status", "plan", "cleanup", "doctor")
#: Those that can do without --ip-address: they take the settings of the sidecar that runs on the node, or of its rules.
INHERITING: Final = ("status", "plan", "doctor")
_ANSWERING: Final = ("status", "plan", "cleanup", "doctor", "version")
_RUN: Final = ("run",)

#: Letters that stand for flags, besides klog's -v.
SHORT: Final = {"o": "output"}

_NAME_OF_OTHERS: Final = (
    "the system or another program gives such names, see `ip link show`; --create-interface=true creates a dummy"
)


def variable(field: str) -> str:
    """Return the variable of a field; one that ends in an underscore would be a word of Python without it."""
    return PREFIX + field.rstrip("_").upper()


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting as an operator sees it. `default` is spelled as an operator would spell it; None means required."""

    group: str
    default: str | None
    help: str
    check: Callable[[str], object]  # turns the text into the value, or raises ValueError that says what would be right
    is_list: bool
    is_klog: bool
    is_switch: bool
    """Whether the flag alone means true, although it has other values than true and false (pflag's NoOptDefVal)."""

    commands: tuple[str, ...]  # the commands that have a use for it
    field: str = ""

    @property
    def name(self) -> str:
        """The name of the flag; klog's own flags are spelled with underscores."""
        return self.field if self.is_klog else self.field.rstrip("_").replace("_", "-")

    @property
    def spelled(self) -> str:
        """The flag as messages name it: -v, --port."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def letter(self) -> str:
        """The letter that stands for the flag, or an empty string."""
        return next((letter for letter, name in {"v": "v", **SHORT}.items() if name == self.name), "")

    @property
    def variable(self) -> str:
        return variable(self.field)

    @property
    def is_boolean(self) -> bool:
        """Whether the flag may stand alone."""
        return self.is_switch or self.default in ("true", "false")


def flag(  # noqa: PLR0913 - the columns of the table
    group: str,
    default: str | None,
    help: str,  # noqa: A002 - the name of the column
    check: Callable[[str], T],
    *,
    is_list: bool = False,
    is_klog: bool = False,
    is_switch: bool = False,
    of: tuple[str, ...] = ON_A_NODE,
) -> T:
    """Declare a setting. To the type checker, it is a value of the type that `check` returns."""
    return cast("T", field(metadata={"flag": Flag(group, default, help, check, is_list, is_klog, is_switch, of)}))


_A, _R, _D, _L, _V, _F, _S = (
    "Address", "iptables rules", "Running", "Looking", "Log", "Log files", "Log files, rarely needed"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One validated value for each setting. Durations are in seconds.

    Where the Go sidecar, and so klog v2 (klog.go, `init`), has the same flag, its name and default are the same.
    """

    # fmt: off
    ip_address: tuple[IPAddress, ...] = flag(_A, None, "address of the proxy; several: a,b", values.addresses, is_list=True)
    interface: str = flag(_A, "lo", "interface to add the address to", values.interface)
    port: int = flag(_A, "443", "port on which the proxy listens", values.port)
    address_scope: str = flag(_A, "host", "host or global: scope of IPv4 addresses", one_of("host", "global"))
    create_interface: str = flag(_A, "auto", "auto, true or false: create a missing one", values.create_interface, is_switch=True)
    remove_duplicates: bool = flag(_A, "false", "take the address off other interfaces", boolean)

    setup_iptables: bool = flag(_R, "false", "let the traffic in, untracked", boolean)
    iptables_backend: str = flag(_R, "auto", "auto, nft, legacy or system", one_of("auto", "nft", "legacy", "system"))
    rule_position: str = flag(_R, "append", "append, or insert: before other rules", one_of("append", "insert"))
    iptables_wait: float = flag(_R, "5s", "how long to wait for the xtables lock", duration(_SHORTEST, _LONGEST_TIMEOUT))

    daemon: bool = flag(_D, "true", "keep running; false: one pass, then exit", boolean, of=_RUN)
    sync_interval: float = flag(_D, "1m0s", "time between two checks of the node", duration(_SHORTEST), of=_RUN)
    command_timeout: float = flag(_D, "10s", "maximum time for one command", duration(_SHORTEST, _LONGEST_TIMEOUT))
    cleanup: bool = flag(_D, "false", "on exit, remove what was set up", boolean, of=_RUN)
    cleanup_timeout: float = flag(_D, "20s", "maximum time for the cleanup", duration(_SHORTEST, _LONGEST_TIMEOUT), of=("run", "cleanup"))
    health_address: Endpoint = flag(_D, "", "host:port or :port; probes and metrics", values.endpoint, of=_RUN)
    env_file: str = flag(_D, "", "read variables from this file", path)

    output: str = flag(_L, "text", "format of the answer: text or json", one_of("text", "json"), of=_ANSWERING)
    watch: bool = flag(_L, "false", "status: print again at each change", boolean, of=("status",))
    from_: tuple[IPAddress, ...] = flag(_L, "", "doctor: look from these pods, a,b", values.pods, is_list=True, of=("doctor",))
    dry_run: bool = flag(_L, "false", "cleanup: only print the commands", boolean, of=("cleanup",))

    v: int = flag(_V, "0", "2 each pass, 4 each command, 6 output", klog.parse_level)
    vmodule: Vmodule = flag(_V, "", "verbosity by file: reconcile=2,command=6", klog.parse_vmodule)
    logging_format: str = flag(_V, "text", "text, or json: one object a line", one_of("text", "json"))
    skip_headers: bool = flag(_V, "false", "omit time, source location and severity", boolean, is_klog=True)
    add_dir_header: bool = flag(_V, "false", "include the directory in the location", boolean, is_klog=True)
    log_backtrace_at: Place = flag(_V, ":0", "file.py:N: stack trace at that log line", klog.parse_place, is_klog=True)

    logtostderr: bool = flag(_F, "true", "log to standard error, not to files", boolean)
    alsologtostderr: bool = flag(_F, "false", "to standard error as well as to files", boolean)
    stderrthreshold: Severity = flag(_F, "2", "lowest severity also on stderr: 0-3", klog.parse_severity)
    log_dir: str = flag(_F, "", "directory for one file per severity", path, is_klog=True)
    log_file: str = flag(_F, "", "one file for all; wins over --log_dir", path, is_klog=True)
    log_file_max_size: int = flag(_F, "1800", "MB before it is truncated; 0: no limit", values.file_size, is_klog=True)
    skip_log_headers: bool = flag(_F, "false", "files without a header at their start", boolean, is_klog=True)
    one_output: bool = flag(_F, "false", "write each line to one file only", boolean, is_klog=True)

    alsologtostderrthreshold: Severity = flag(_S, "0", "0-3", klog.parse_severity)
    legacy_stderr_threshold_behavior: bool = flag(_S, "true", "false: see below", boolean, is_klog=True)
    # fmt: on

    def changed(self) -> list[str]:
        """Return the flags for all values that differ from the default, whatever their source."""
        texts = self.texts()
        return [f"{flag.spelled}={texts[name]}" for name, flag in FLAGS.items() if texts.get(name, "") != flag.default]

    def texts(self) -> dict[str, str]:
        """Return every option as an operator would spell it, by its flag's name, except --env-file."""
        return {flag.name: _text(getattr(self, flag.field)) for flag in FLAGS.values() if flag.name != "env-file"}


#: The flags by name, in the order of the table.
FLAGS: Final[Mapping[str, Flag]] = {
    declared.name: declared
    for declared in (replace(cast("Flag", each.metadata["flag"]), field=each.name) for each in fields(Options))
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose settings these are: the user's own, those of a sidecar or another implementation, or of the rules."""

    kind: Literal["own", "sidecar", "other", "rules"] = "own"
    pid: int | None = None
    detail: str = ""  # the same in words; empty for the user's own


@dataclass(frozen=True, slots=True)
class Loaded:
    """The options, warnings about them, and whose they are."""

    options: Options
    warnings: list[str]
    origin: Origin = Origin()


def desired_state(options: Options) -> Desired:
    """Return the desired state of the node."""
    is_awaited = options.create_interface == "auto" and is_name_of_others(options.interface)
    return desired(
        options.ip_address,
        interface=options.interface,
        port=options.port,
        scope=options.address_scope,
        setup_iptables=options.setup_iptables,
        insert=options.rule_position == "insert",
        link_kind="" if options.create_interface == "false" else LINK_KIND,
        waits_because=_NAME_OF_OTHERS if is_awaited else "",
        remove_duplicates=options.remove_duplicates,
    )


def _text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return durations.render(value)
        case Severity():
            return str(int(value))
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)
