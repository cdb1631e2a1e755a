import os
import threading
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar.errors import ConfigError
from sidecar.settings import invocation, sources
from sidecar.settings.klog import Place, Vmodule
from sidecar.settings.options import FLAGS, ON_A_NODE, PREFIX, Options, desired_state, variable
from sidecar.settings.values import Endpoint
from support.namespace import IPV4, IPV6

REQUIRED = "--ip-address=10.96.0.2"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def load(*argv: str) -> Options:
    return sources.load(invocation.parse(argv))[0]


def warnings(*argv: str) -> list[str]:
    return sources.load(invocation.parse(argv))[1]


def faults(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sources.load(invocation.parse(argv))
    return list(caught.value.faults)


def without_file(given: Options) -> dict[str, object]:
    return {each.name: getattr(given, each.name) for each in fields(given) if each.name != "env_file"}


#: Each setting: its default, a spelling of another value, and what that is inside.
SETTINGS = {
    "ip_address": ((IPV4,), "10.96.0.2, fd00:10:96::2", (IPV4, IPV6)),
    "interface": ("lo", "dummy0", "dummy0"),
    "port": (443, "9443", 9443),
    "setup_iptables": (False, "T", True),
    "cleanup": (False, "1", True),
    "daemon": (True, "FALSE", False),
    "sync_interval": (60.0, "1h15m30.5s", 4530.5),
    "address_scope": ("host", "global", "global"),
    "create_interface": ("auto", "1", "true"),
    "remove_duplicates": (False, "true", True),
    "iptables_backend": ("auto", "legacy", "legacy"),
    "iptables_wait": (5.0, "2500ms", 2.5),
    "rule_position": ("append", "insert", "insert"),
    "command_timeout": (10.0, "1m", 60.0),
    "cleanup_timeout": (20.0, "25s", 25.0),
    "health_address": (Endpoint(), "[FD00::1]:9180", Endpoint("fd00::1", 9180)),
    "output": ("text", "json", "json"),
    "watch": (False, "true", True),
    "from_": ((), "10.244.0.5, fd00:10:244::5", (ip_address("10.244.0.5"), ip_address("fd00:10:244::5"))),
    "dry_run": (False, "true", True),
    "v": (0, "4", 4),
    "vmodule": (Vmodule(), "reconcile=2,command=6", Vmodule((("reconcile", 2), ("command", 6)))),
    "logging_format": ("text", "json", "json"),
    "skip_headers": (False, "true", True),
    "add_dir_header": (False, "true", True),
    "log_backtrace_at": (Place(), "daemon.py:90", Place("daemon.py", 90)),
    "logtostderr": (True, "false", False),
    "alsologtostderr": (False, "true", True),
    "stderrthreshold": (2, "warning", 1),
    "log_dir": ("", "/var/log/sidecar", "/var/log/sidecar"),
    "log_file": ("", "/var/log/sidecar.log", "/var/log/sidecar.log"),
    "log_file_max_size": (1800, "10", 10),
    "skip_log_headers": (False, "true", True),
    "one_output": (False, "true", True),
    "alsologtostderrthreshold": (0, "ERROR", 2),
    "legacy_stderr_threshold_behavior": (True, "false", False),
}
TEXTS = {name: text for name, (_, text, _) in SETTINGS.items()}


def test_the_defaults_are_those_of_the_contract() -> None:
    assert without_file(load(REQUIRED)) == {name: default for name, (default, _, _) in SETTINGS.items()}


def test_every_flag_has_a_setting() -> None:
    assert {flag.field for flag in FLAGS.values()} == {each.name for each in fields(Options)} == {*SETTINGS, "env_file"}


def test_the_defaults_are_spelled_as_they_are_shown() -> None:
    shown = load(REQUIRED).texts()
    assert shown == {
        name: flag.default or shown[name] * (flag.default is None) for name, flag in FLAGS.items() if name != "env-file"
    }


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
@pytest.mark.parametrize("command", ON_A_NODE)
def test_every_setting_comes_from_every_source(
    source: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argv = [command]
    used = {flag.field for flag in FLAGS.values() if command in flag.commands}
    texts = {name.rstrip("_"): text for name, text in TEXTS.items() if name in used}
    if source == "flags":
        argv += [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
    elif source == "environment":
        for name, text in texts.items():
            monkeypatch.setenv(f"SIDECAR_{name.upper()}", text)
    else:
        file = tmp_path / "env"
        file.write_text("".join(f"SIDECAR_{name.upper()}={text}\n" for name, text in texts.items()))
        argv += [f"--env-file={file}"]
    expected = {name: value if name in used else default for name, (default, _, value) in SETTINGS.items()}
    assert without_file(load(*argv)) == expected


@pytest.mark.parametrize("command", ON_A_NODE)
def test_variables_that_a_command_has_no_use_for_are_passed_over(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in TEXTS.items():
        if name != "dry_run":
            monkeypatch.setenv(variable(name), text)
    assert load(command).daemon is False
    assert load(command).watch is True


def test_flags_win_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_IP_ADDRESS=10.0.0.1\nSIDECAR_PORT=1\nSIDECAR_INTERFACE=file0\n")
    monkeypatch.setenv("SIDECAR_ENV_FILE", str(file))
    monkeypatch.setenv("SIDECAR_PORT", "2")
    monkeypatch.setenv("SIDECAR_INTERFACE", "env0")
    given = load("--interface=flag0")
    assert (str(given.ip_address[0]), given.port, given.interface) == ("10.0.0.1", 2, "flag0")


def test_an_empty_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_ENV_FILE", "/nonexistent")
    assert load(REQUIRED, "--env-file=").env_file == ""


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_IP_ADDRESS=10.96.0.2\n", encoding="utf-8-sig")
    assert load(f"--env-file={file}").ip_address == (IPV4,)


def test_a_variable_in_lower_case_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("sidecar_port", "1")
    assert load(REQUIRED).port == 443
    assert warnings(REQUIRED) == ["unknown variable sidecar_port is ignored; did you mean SIDECAR_PORT?"]


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_PORT", "")
    assert load(REQUIRED).port == 443


def test_addresses_are_repeated_or_separated_by_commas() -> None:
    given = load("--ip-address=10.96.0.2,10.96.0.3", "--ip-address", "fd00:10:96::2")
    assert given.ip_address == (IPV4, ip_address("10.96.0.3"), IPV6)


def test_of_a_repeated_flag_the_last_one_counts() -> None:
    assert load(REQUIRED, "--port=1", "--port=2").port == 2


def test_gardeners_arguments_are_understood() -> None:
    given = load("--ip-address=240.0.0.10", "--daemon=false", "--interface=lo")
    assert (str(given.ip_address[0]), given.daemon, given.interface) == ("240.0.0.10", False, "lo")


# A command line behind a good --ip-address, and how the one fault begins and what it contains.
FAULTY = {
    "--ip-address=10.96.0.300": "is not an IP address: write it like",
    "--from=10.244.0.300": "10.244.0.300 is not an IP address: write the address of a pod",
    "--from=fe80::1": "fe80::1 is not a pod's: write the address of a pod",
    "--ip-address=10.96.0.2/32": "has a prefix length: leave it out",
    "--ip-address=fe80::1%eth0": "has a zone: leave it out",
    "--ip-address=127.0.0.1": "is a loopback address",
    "--ip-address=::1": "is a loopback address",
    "--ip-address=0.0.0.0": "is the unspecified address",
    "--ip-address=224.0.0.1": "is a multicast address",
    "--ip-address=ff02::1": "is a multicast address",
    "--ip-address=255.255.255.255": "is the broadcast address",
    "--ip-address=::ffff:10.96.0.2": "is an IPv4 address in IPv6 notation",
    "--ip-address=": "an empty address",
    "--ip-address=10.96.0.2,": "an empty address",
    "--ip-address=010.96.0.2": "is not an IP address",
    "--interface=": "1 to 15 bytes",
    "--interface=averylonginterface": "1 to 15 bytes",
    "--interface=a/b": "must not contain a slash, colon, space or control character",
    "--interface=a b": "must not contain a slash, colon, space or control character",
    "--interface=-h": "begin with - or '",
    "--interface=--help": "begin with - or '",
    "--interface='a": "begin with - or '",
    "--interface=a\\": "end with a backslash",
    "--interface=..": "must not contain a slash, colon, space or control character",
    "--port=0": "a number from 1 to 65535",
    "--port=65536": "a number from 1 to 65535",
    "--port=000065536": "a number from 1 to 65535",
    "--port=https": "a number from 1 to 65535",
    "--port=-1": "a number from 1 to 65535",
    "--port=٤٤٣": "a number from 1 to 65535",
    "--port=tcp://10.0.0.1:443": "set enableServiceLinks: false",
    "--health-address=9180": "write it like :9180, 10.0.0.1:9180 or [fd00::1]:9180",
    "--health-address=:0": "write it like :9180",
    "--health-address=:65536": "write it like :9180",
    "--health-address=localhost:9180": "write it like :9180",
    "--health-address=::1:9180": "write it like :9180",
    "--health-address=[10.0.0.1]:9180": "write it like :9180",
    "--health-address=[fe80::1%eth0]:9180": "write it like :9180",
    "--health-address=http://10.0.0.1:9180": "write it like :9180",
    "--cleanup=yes": "write true or false",
    "--cleanup=": "write true or false",
    "--sync-interval=60": "write it like 90s",
    "--sync-interval=0s": "at least 10ms",
    "--sync-interval=0.1ns": "at least 10ms",
    "--sync-interval=99999999999h": "out of range",
    "--iptables-wait=61m": "at least 10ms and at most 1h0m0s",
    "--sync-interval=-1s": "write it like 90s",
    "--command-timeout=2h": "at least 10ms and at most 1h0m0s",
    "--iptables-backend=nftables": "one of auto, nft, legacy, system",
    "--rule-position=front": "one of append, insert",
    "--address-scope=link": "one of host, global",
    "--logging-format=jsno": "one of text, json; did you mean json?",
    "--vmodule=daemon": "write it like reconcile=2,command=6",
    "--vmodule=daemon=-1": "write it like reconcile=2,command=6",
    "--vmodule=a=1=2": "write it like reconcile=2,command=6",
    "--vmodule==1": "write it like reconcile=2,command=6",
    "--log_backtrace_at=daemon:90": "write it like daemon.py:90",
    "--log_backtrace_at=daemon.py": "write it like daemon.py:90",
    "--log_backtrace_at=daemon.py:0": "write it like daemon.py:90",
    "--log_backtrace_at=daemon.py:1:2": "write it like daemon.py:90",
    "--stderrthreshold=4": "0 to 3, or INFO, WARNING, ERROR or FATAL",
    "--stderrthreshold=-1": "0 to 3, or INFO, WARNING, ERROR or FATAL",
    "--stderrthreshold=": "0 to 3, or INFO, WARNING, ERROR or FATAL",
    "--alsologtostderrthreshold=loud": "0 to 3, or INFO, WARNING, ERROR or FATAL",
    "--log_file_max_size=-1": "a whole number of megabytes",
    "--log_file_max_size=1.5": "a whole number of megabytes",
    "--log_file_max_size=99999999999999": "a whole number of megabytes",
    "--logtostderr=maybe": "write true or false",
    "-v=x": "a number like 2",
    "-v=": "a number like 2",
    "-v=2147483648": "a number like 2",
    "-v=1_0": "a number like 2",
}


@pytest.mark.parametrize(("flag", "advice"), FAULTY.items())
def test_a_fault_names_the_flag_the_value_and_what_would_be_right(flag: str, advice: str) -> None:
    command = "doctor" if flag.startswith("--from") else "run"
    (line,) = faults(command, REQUIRED, flag) if not flag.startswith("--ip-address") else faults(flag)
    assert line.startswith(flag)
    assert advice in line
    assert "\n" not in line


@pytest.mark.parametrize("flag", FAULTY)
def test_a_fault_in_a_variable_names_the_variable(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = flag.lstrip("-").partition("=")
    variable = f"SIDECAR_{name.replace('-', '_').upper()}"
    monkeypatch.setenv("SIDECAR_IP_ADDRESS", "10.96.0.2")
    monkeypatch.setenv(variable, value)
    if not value:
        load(REQUIRED)  # an empty variable is none
        return
    (line,) = faults()
    assert line.startswith(f"{variable}={value}")


def test_a_fault_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_PORT=none\n")
    (line,) = faults(REQUIRED, f"--env-file={file}")
    assert line.startswith(f"{file}: SIDECAR_PORT=none")


def test_a_value_is_shown_in_one_line_of_bounded_length() -> None:
    (line,) = faults(REQUIRED, "--interface=" + "x\n\x1b[31m" * 2000)
    assert len(line) < 200
    assert line.isprintable()


def test_all_faults_are_told_at_once() -> None:
    assert (
        len(faults("--port=x", "--sync-interval=y", "--nonsense=z", "run", "word")) == 5
    )  # and the address is missing


def test_without_an_address_it_says_how_to_give_one() -> None:
    (line,) = faults()
    assert line.startswith("--ip-address or SIDECAR_IP_ADDRESS is required")


def test_a_boolean_in_two_words_is_explained() -> None:
    assert faults(REQUIRED, "--cleanup", "false") == [
        "unexpected word false; a boolean takes its value with =, like --cleanup=false"
    ]


@pytest.mark.parametrize(
    "flags", [("--iptables-wait=10s",), ("--command-timeout=3s",), ("--iptables-wait=100ms", "--command-timeout=1s")]
)
def test_a_wait_that_no_command_survives_is_refused(flags: tuple[str, ...]) -> None:
    (line,) = faults(REQUIRED, "--setup-iptables", *flags)
    assert "the timeout must be longer than the wait in whole seconds" in line
    assert load(REQUIRED, *flags)  # without rules there is no lock to wait for


def test_a_path_with_a_nul_in_it_is_a_fault() -> None:
    assert faults(REQUIRED, "--env-file=a\0b") == ["--env-file=a\\x00b: not a path: it contains a NUL"]
    assert faults(REQUIRED, "--log_file=a\0b") == ["--log_file=a\\x00b: not a path: it contains a NUL"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_env_file_that_cannot_be_read_is_a_fault(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "env"
    if content is not None:
        file.write_bytes(content)
    (line,) = faults(REQUIRED, f"--env-file={file}")
    assert line.startswith(f"--env-file={file}"[:60])


def test_a_file_that_does_not_end_is_a_fault() -> None:
    assert faults(REQUIRED, "--env-file=/dev/zero") == ["--env-file=/dev/zero: is longer than 100000 characters"]


def test_variables_that_kubernetes_sets_for_a_service_are_not_taken_for_typos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SIDECAR_PORT_80_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("SIDECAR_PORT_80_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("SIDECAR_OF_ANOTHER_NAME_PORT", "tcp://10.0.0.1:80")
    assert warnings(REQUIRED) == []


def test_an_env_file_is_read_once(tmp_path: Path) -> None:
    """As `--env-file=<(command)` needs it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("SIDECAR_IP_ADDRESS=10.96.0.2\n",))
    writer.start()
    assert load(f"--env-file={pipe}").ip_address == (IPV4,)
    writer.join()


def test_a_line_of_the_file_that_is_none_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nSIDECAR_PORT\n= x\nexport SIDECAR_INTERFACE='lo' # fine\n")
    assert faults(REQUIRED, f"--env-file={file}") == [f"{file}: line 3 (and 1 more) is not NAME=value"]


def test_unknown_variables_are_named_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_SETUP_IPTABLE=true\nSIDECAR_PORT=443\nOTHER=1\n")
    monkeypatch.setenv("SIDECAR_IP_ADRESS", "10.96.0.2")
    expected = [
        "unknown variable SIDECAR_IP_ADRESS is ignored; did you mean SIDECAR_IP_ADDRESS?",
        "unknown variable SIDECAR_SETUP_IPTABLE is ignored; did you mean SIDECAR_SETUP_IPTABLES?",
    ]
    assert warnings(REQUIRED, f"--env-file={file}") == expected
    assert faults(f"--env-file={file}")[1:] == expected  # they are the reason why the address is missing


def test_the_example_env_file_has_every_variable_with_its_default() -> None:
    example = (Path(__file__).parents[3] / ".env.example").read_text()
    given = load(f"--env-file={Path(__file__).parents[3] / '.env.example'}")
    assert without_file(given) == without_file(load(REQUIRED))
    for flag in FLAGS.values():
        assert f"\n{flag.variable}={flag.default or ''}" in example


@pytest.mark.parametrize("command", ON_A_NODE)
def test_the_settings_in_words_are_a_command_line_that_gives_the_same(command: str) -> None:
    used = [flag for flag in FLAGS.values() if command in flag.commands and flag.field in TEXTS]
    given = load(command, *(f"{flag.spelled}={TEXTS[flag.field]}" for flag in used))
    again = load(command, *(f"{flag.spelled}={given.texts()[flag.name]}" for flag in used))
    assert again == given


@pytest.mark.parametrize(
    ("argv", "warning"),
    [
        (
            ["--address-scope=global"],
            "--address-scope=global: the kernel may choose 10.96.0.2 as the source address of other connections",
        ),
        (
            ["--ip-address=10.96.0.2,fe80::2"],
            "--ip-address: fe80::2 is a link-local address: clients need its zone, as in fe80::2%lo",
        ),
        (["--log_file=/x"], "--log_file has no effect without --logtostderr=false"),
        (["--log_dir=/x"], "--log_dir has no effect without --logtostderr=false"),
        (["--log_dir=/x", "--log_file=/x", "--logtostderr=false"], "--log_dir has no effect together with --log_file"),
    ],
)
def test_a_flag_that_does_nothing_or_more_than_one_might_think_is_a_warning(argv: list[str], warning: str) -> None:
    (line,) = warnings(REQUIRED, *argv)
    assert line.startswith(warning)


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--dry-run"], "--dry-run works only with `cleanup`; `plan` shows what `run` would do"),
        (["run", "--watch"], "--watch works only with `status`"),
        (["doctor", "--watch=false"], "--watch works only with `status`"),
        (["run", "--from=10.244.0.5"], "--from works only with `doctor`"),
        (["run", "-o", "json"], "--output works only with `status`, `plan`, `cleanup`, `doctor` and `version`"),
        (["status", "--daemon"], "--daemon works only with `run`"),
        (["plan", "--cleanup"], "--cleanup works only with `run`"),
        (["doctor", "--sync-interval=1s"], "--sync-interval works only with `run`"),
        (["cleanup", "--watch"], "--watch works only with `status`"),
        (["doctor", "--health-address=:9180"], "--health-address works only with `run`"),
        (["status", "--cleanup-timeout=1s"], "--cleanup-timeout works only with `run` and `cleanup`"),
    ],
)
def test_what_belongs_to_another_command_is_refused(argv: list[str], fault: str) -> None:
    assert faults(REQUIRED, *argv) == [fault]


def test_a_variable_cannot_make_run_look_like_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_DRY_RUN", "true")
    assert faults(REQUIRED) == ["SIDECAR_DRY_RUN works only with `cleanup`; `plan` shows what `run` would do"]


def test_the_settings_guide_has_every_flag_with_its_variable_and_its_default() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
    for flag in FLAGS.values():
        spelled = "`-v`, `--v`" if flag.name == "v" else f"`{flag.spelled}`"
        default = "required" if flag.default is None else f"`{flag.default}`" if flag.default else "none"
        assert f"\n| {spelled} | `{flag.variable}` | {default} | " in guide


@pytest.mark.parametrize(
    ("argv", "kept", "waits"),
    [
        ([], "auto", True),
        (["--create-interface"], "true", False),
        (["--create-interface", "--port=444"], "true", False),
        (["--create-interface=T"], "true", False),
        (["--create-interface=auto"], "auto", True),
        (["--create_interface=0"], "false", False),
    ],
)
def test_create_interface_is_auto_or_a_boolean(argv: list[str], kept: str, waits: bool) -> None:  # noqa: FBT001 - a parameter
    options, _ = sources.load(invocation.parse(["--ip-address=10.96.0.2", "--interface=eth7", *argv]))
    assert options.create_interface == kept
    assert bool(desired_state(options).waits_because) is waits
    assert bool(desired_state(options).link_kind) is (kept != "false")
