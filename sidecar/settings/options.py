"""What an operator wants, as plain values: what settings.py makes of flags, environment and env file."""

from dataclasses import dataclass

from sidecar.settings import durations
from sidecar.settings.flags import FLAGS
from sidecar.settings.klog import Place, Severity, Vmodule
from sidecar.settings.values import Endpoint
from sidecar.state.desired import LINK_KIND, desired
from sidecar.state.model import Desired, IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One value for each flag of flags.py, checked. Durations are seconds."""

    ip_address: tuple[IPAddress, ...]
    interface: str
    port: int
    address_scope: str
    create_interface: bool
    remove_duplicates: bool

    setup_iptables: bool
    iptables_backend: str
    rule_position: str
    iptables_wait: float

    daemon: bool
    sync_interval: float
    command_timeout: float
    cleanup: bool
    cleanup_timeout: float
    health_address: Endpoint
    env_file: str

    output: str
    watch: bool
    dry_run: bool

    v: int
    vmodule: Vmodule
    logging_format: str
    skip_headers: bool
    add_dir_header: bool
    log_backtrace_at: Place

    logtostderr: bool
    alsologtostderr: bool
    stderrthreshold: Severity
    log_dir: str
    log_file: str
    log_file_max_size: int
    skip_log_headers: bool
    one_output: bool
    alsologtostderrthreshold: Severity
    legacy_stderr_threshold_behavior: bool

    def changed(self) -> list[str]:
        """Return the flags that set what differs from the default, wherever it came from."""
        return [
            f"{FLAGS[name].spelled}={text}" for name, text in self.in_words().items() if text != FLAGS[name].default
        ]

    def in_words(self) -> dict[str, str]:
        """Return every option in an operator's spelling, by its flag's name; not the file that they came from."""
        return {flag.name: _text(getattr(self, flag.field)) for flag in FLAGS.values() if flag.name != "env-file"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The options, what is to be said of them, and whose they are if they are not one's own."""

    options: Options
    warnings: list[str]
    origin: str = ""


def goal(options: Options) -> Desired:
    """Return what should be on the node."""
    return desired(
        options.ip_address,
        interface=options.interface,
        port=options.port,
        scope=options.address_scope,
        setup_iptables=options.setup_iptables,
        insert=options.rule_position == "insert",
        link_kind=LINK_KIND if options.create_interface else "",
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
