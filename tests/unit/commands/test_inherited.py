"""Whose settings hold. The sidecars that run are made up; how they are found is in test_instances.py."""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pytest
from pytest_mock import MockerFixture

from sidecar.commands.inherited import load
from sidecar.errors import CommandTimeout, ConfigError
from sidecar.node.instances import Instance
from sidecar.node.proc import Process
from sidecar.node.standing import Standing
from sidecar.settings import invocation
from sidecar.settings.options import FLAGS, PREFIX, Loaded, Origin
from sidecar.state.model import Link, LinkAddress, RuleSet
from sidecar.state.plan import MARK

#: One that exists, so that its files can be looked for.
PID = os.getpid()

LOOKING = ("status", "plan", "doctor")
RULES = ("--ip-address=10.96.0.2", "--setup-iptables")

Running = Callable[..., None]


def link(name: str, *addresses: str, scope: str = "host", alias: str = "") -> Link:
    held = [ip_interface(each) for each in addresses]
    return Link(
        name,
        alias=alias,
        addresses=tuple(
            LinkAddress(each.ip, each.network.prefixlen, scope, is_deprecated=each.version == 6) for each in held
        ),
    )


LO: Final = link("lo", "127.0.0.1/8", "::1/128")


def rules(ip: str, port: int = 443, backend: str = "nft", number: int = 5) -> Standing:
    return Standing(RuleSet(ip_address(ip), port), backend, number)


def instance(
    *words: str, pid: int = PID, is_python: bool = True, variables: Mapping[str, str] | None = None
) -> Instance:
    return Instance(Process(pid, "sidecar"), is_python, invocation.parse(words), variables or {})


def ask(*words: str) -> Loaded:
    with patch.dict(os.environ):  # as in a child process: what is changed there does not stay
        return load(invocation.parse(words))


def changed(*words: str) -> list[str]:
    return ask(*words).options.changed()


def faults(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ask(*words)
    return list(caught.value.faults)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def running(mocker: MockerFixture) -> Running:
    """Say which sidecars run here, and of which it cannot be seen whether they do."""

    def running(*found: Instance, hidden: tuple[Instance, ...] = ()) -> None:
        mocker.patch("sidecar.commands.inherited.running", return_value=(list(found), list(hidden)))

    return running


Left = Callable[..., None]


@pytest.fixture(autouse=True)
def left(mocker: MockerFixture) -> Left:
    """Say which rules stand here, and which links there are; at first none, and lo with its own address."""

    def left(*found: Standing, links: tuple[Link, ...] = (LO,)) -> None:
        mocker.patch("sidecar.commands.from_rules.standing", return_value=list(found))
        mocker.patch("sidecar.commands.from_rules.IpRoute.observe", return_value=links)

    mocker.patch("sidecar.node.proc.sees_all_processes", return_value=True)
    left()
    return left


# One's own


@pytest.mark.parametrize("command", ["run", *LOOKING, "cleanup"])
def test_who_names_an_address_is_on_his_own(running: Running, command: str) -> None:
    running(instance("--ip-address=10.96.0.9", "--port=9443", variables={"SIDECAR_INTERFACE": "dummy0"}))
    loaded = ask(command, "--ip-address=10.96.0.2")
    assert (loaded.options.changed(), loaded.origin) == (["--ip-address=10.96.0.2"], Origin())


def test_the_address_may_be_named_by_a_variable_or_in_a_file(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running(instance("--ip-address=10.96.0.9"))
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.3\n")
    assert changed("status", f"--env-file={tmp_path}/env") == ["--ip-address=10.96.0.3"]
    monkeypatch.setenv("SIDECAR_ENV_FILE", f"{tmp_path}/env")
    assert changed("status") == ["--ip-address=10.96.0.3"]
    monkeypatch.setenv("SIDECAR_IP_ADDRESS", "10.96.0.2")
    assert changed("status") == ["--ip-address=10.96.0.2"]


def test_who_runs_takes_nothing_over(running: Running) -> None:
    running(instance("--ip-address=10.96.0.2"))
    assert faults("run") == ["--ip-address or SIDECAR_IP_ADDRESS is required: address of the proxy; several: a,b"]


# Those of the sidecar that runs


@pytest.mark.parametrize("command", LOOKING)
def test_who_looks_goes_by_the_sidecar_that_runs(running: Running, command: str) -> None:
    running(
        instance(
            "--ip-address=10.96.0.2",
            "--ip-address=fd00::2",
            "--port=9443",
            variables={"SIDECAR_SETUP_IPTABLES": "true"},
        )
    )
    loaded = ask(command)
    assert loaded.options.changed() == ["--ip-address=10.96.0.2,fd00::2", "--port=9443", "--setup-iptables=true"]
    assert loaded.origin == Origin("sidecar", PID, f"of pid {PID} (this program), running here")


def test_all_that_says_what_the_node_should_be_like_is_taken(running: Running) -> None:
    words = [
        *("--ip-address=10.96.0.2", "--interface=dummy0", "--port=9443", "--address-scope=global"),
        *("--create-interface=false", "--remove-duplicates=true", "--setup-iptables=true"),
        *("--iptables-backend=legacy", "--rule-position=insert", "--iptables-wait=3s"),
    ]
    running(instance(*words))
    assert changed("status") == words
    pairs = [word.removeprefix("--").split("=") for word in words]
    running(instance(variables={FLAGS[name].variable: text for name, text in pairs}))
    assert changed("status") == words


def test_how_it_runs_and_where_it_logs_to_is_not_taken(running: Running, tmp_path: Path) -> None:
    words = (
        "--daemon=false",
        "--cleanup",
        "--command-timeout=1m",
        "--health-address=:9180",
        "--output=json",
        "--watch",
    )
    log = {"SIDECAR_V": "6", "SIDECAR_LOG_FILE": f"{tmp_path}/log", "SIDECAR_LOGTOSTDERR": "false"}
    (tmp_path / "env").write_text("SIDECAR_SYNC_INTERVAL=1s\nSIDECAR_ONE_OUTPUT=true\n")
    running(instance("--ip-address=10.96.0.2", f"--env-file={tmp_path}/env", *words, variables=log))
    assert changed("status") == ["--ip-address=10.96.0.2"]


def test_flags_win_over_variables_and_these_over_the_file(running: Running, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.4\nSIDECAR_PORT=4443\nSIDECAR_INTERFACE=dummy4\n")
    file = f"--env-file={tmp_path}/env"
    running(instance(file))
    assert changed("plan") == ["--ip-address=10.96.0.4", "--interface=dummy4", "--port=4443"]
    variables = {"SIDECAR_PORT": "3443", "SIDECAR_INTERFACE": "dummy3", "SIDECAR_ENV_FILE": f"{tmp_path}/env"}
    running(instance("--port=2443", variables=variables))
    assert changed("plan") == ["--ip-address=10.96.0.4", "--interface=dummy3", "--port=2443"]


@pytest.mark.parametrize("theirs", ["flags", "variables", "file"])
@pytest.mark.parametrize("ours", ["flag", "variable"])
def test_what_is_asked_for_wins(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: str, theirs: str
) -> None:
    (tmp_path / "env").write_text("SIDECAR_PORT=9443\n")
    flag, file = ("--port=9443" if theirs == "flags" else "--v=0"), (f"{tmp_path}/env" if theirs == "file" else "")
    variables = {"SIDECAR_PORT": "9443"} if theirs == "variables" else {}
    running(instance("--ip-address=10.96.0.2", flag, f"--env-file={file}", variables=variables))
    assert changed("status")[1:] == ["--port=9443"]
    if ours == "variable":
        monkeypatch.setenv("SIDECAR_PORT", "8443")
    assert changed("status", *(["--port=8443"] if ours == "flag" else []))[1:] == ["--port=8443"]


def test_cleanup_does_not_take_away_what_a_sidecar_would_put_back(running: Running) -> None:
    running(instance("--ip-address=10.96.0.2", "--v=2", variables={"SIDECAR_PORT": "9443"}))
    (fault,) = faults("cleanup")
    assert fault == (
        f"--ip-address is required: pid {PID} (this program) runs here with --ip-address=10.96.0.2 --port=9443; "
        "to clean up, stop it first"
    )


# Several, and none


def test_sidecars_that_agree_count_as_one(running: Running) -> None:
    running(
        instance("--ip-address=10.96.0.2", "--v=4", "--cleanup"),
        instance(pid=PID + 1, variables={"SIDECAR_IP_ADDRESS": "10.96.0.2", "SIDECAR_PORT": "443"}),
    )
    assert changed("status") == ["--ip-address=10.96.0.2"]


@pytest.mark.parametrize("command", [*LOOKING, "cleanup"])
def test_of_sidecars_that_do_not_agree_it_must_be_said_which(running: Running, command: str) -> None:
    go = instance("--ip-address=10.96.0.2", "--port=9443", pid=8, is_python=False)
    running(instance("--ip-address=10.96.0.2", pid=7), go)
    (fault,) = faults(command)
    assert fault.removeprefix("--ip-address is required: sidecars with different settings run here: ") == (
        "pid 7 (this program): --ip-address=10.96.0.2; "
        "pid 8 (not Python: the Go sidecar?): --ip-address=10.96.0.2 --port=9443"
    )
    assert changed(command, "--ip-address=10.96.0.2") == ["--ip-address=10.96.0.2"]


def test_env_files_of_different_names_do_not_agree(running: Running, tmp_path: Path) -> None:
    running(instance(f"--env-file={tmp_path}/a", pid=7), instance(f"--env-file={tmp_path}/b", pid=8))
    assert re.search(r"different settings .*/a; .*/b", faults("status")[0])


@pytest.mark.parametrize("command", [*LOOKING, "cleanup"])
def test_without_any_the_address_is_asked_for_with_all_other_faults(running: Running, command: str) -> None:
    running()
    required, port, hint = faults(command, "--port=x")
    assert required.startswith("--ip-address or SIDECAR_IP_ADDRESS is required: ")
    assert port.startswith("--port=x: not a port")
    assert hint == "no running sidecar was found whose settings could be used"


def test_one_that_cannot_be_looked_at_is_told(running: Running) -> None:
    running(hidden=(instance("--ip-address=10.96.0.2", pid=7),))
    assert faults("status")[-1] == (
        "no running sidecar was found whose settings could be used: "
        "only root can see whether pid 7 (this program) is on this node's network"
    )


# Those of the rules that one has left

WHOLE: Final = ["--ip-address=10.96.0.2", "--setup-iptables=true", "--iptables-backend=nft"]


@pytest.mark.parametrize("command", LOOKING)
def test_without_any_that_runs_the_rules_that_stand_here_tell(running: Running, left: Left, command: str) -> None:
    running()
    left(rules("10.96.0.2", 8443, "legacy"), rules("fd00::2", 8443, "legacy"))
    loaded = ask(command)
    assert loaded.options.changed() == [
        "--ip-address=10.96.0.2,fd00::2", "--port=8443", "--setup-iptables=true", "--iptables-backend=legacy",
    ]  # fmt: skip
    assert loaded.origin == Origin("rules", None, "from the rules on this node; no sidecar runs here")


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ((link("lo", "10.96.0.2/32"),), []),
        ((LO, link("dummy0", "10.96.0.2/32")), ["--interface=dummy0"]),
        ((link("lo", "10.96.0.2/32", scope="global"),), ["--address-scope=global"]),
    ],
)
def test_so_does_where_the_address_is(
    running: Running, left: Left, links: tuple[Link, ...], expected: list[str]
) -> None:
    running()
    left(rules("10.96.0.2"), links=links)
    assert changed("status") == [WHOLE[0], *expected, *WHOLE[1:]]


@pytest.mark.parametrize("backends", [("nft", "legacy"), ("legacy", "nft")])
def test_rules_in_both_backends_leave_the_choice_of_one_to_the_evidence(
    running: Running, left: Left, backends: tuple[str, ...]
) -> None:
    running()
    left(*(rules("10.96.0.2", backend=backend) for backend in backends))
    assert changed("status") == WHOLE[:2]


@pytest.mark.parametrize(
    ("found", "flags"),
    [
        ((rules("10.96.0.2"), rules("10.96.0.2", 8443)), ("--port=443", "--port=8443")),
        ((rules("10.96.0.2"), rules("10.96.0.9", 8443)), ("=10.96.0.2 --port=443", "=10.96.0.9 --port=8443")),
        ((rules("10.96.0.2", number=4), rules("fd00::2")), ("4 of the 5 for 10.96.0.2, 5 of .*=10.96.0.2,fd00::2 ",)),
    ],
)
def test_rules_that_can_be_read_in_two_ways_are_named(
    running: Running, left: Left, found: tuple[Standing, ...], flags: tuple[str, ...]
) -> None:
    running()
    left(*found)
    told = faults("status")
    assert len(told) == len(flags)
    assert all(re.search(flag, each) for flag, each in zip(flags, told, strict=True))
    assert all(each.startswith("--ip-address is required: rules of a sidecar stand here, ") for each in told)


def test_what_is_asked_for_decides_between_rules(running: Running, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    running()
    left(rules("10.96.0.2"), rules("10.96.0.2", 8443), rules("10.96.0.2", 8443, "legacy"))
    assert changed("status", "--port=443") == WHOLE
    monkeypatch.setenv("SIDECAR_PORT", "8443")
    assert changed("status")[1] == "--port=8443"
    assert changed("status", "--iptables-backend=legacy")[-1] == "--iptables-backend=legacy"


def test_addresses_on_several_interfaces_are_named(running: Running, left: Left) -> None:
    running()
    left(rules("10.96.0.2"), links=(link("lo", "10.96.0.2/32"), link("link0", "10.96.0.2/32")))
    assert faults("status") == [
        "--interface is required: the addresses of the rules that stand here are 10.96.0.2 on link0, 10.96.0.2 on lo"
    ]
    assert "--interface=link0" in changed("status", "--interface=link0")


@pytest.mark.parametrize("command", [*LOOKING, "cleanup"])
def test_less_than_five_rules_are_named_but_not_taken(running: Running, left: Left, command: str) -> None:
    running()
    left(rules("10.96.0.2", number=3), rules("192.0.2.7", number=1))
    (hint,) = faults(command)[2:]
    flags = "--ip-address=10.96.0.2 --port=443 --setup-iptables --iptables-backend=nft"
    assert hint == f"rules of a sidecar stand here, 3 of the 5 for 10.96.0.2 and port 443: repeat with {flags}"


def test_cleanup_does_not_take_rules_for_granted(running: Running, left: Left) -> None:
    running()
    left(rules("10.96.0.2"))
    assert "repeat with --ip-address=10.96.0.2" in faults("cleanup")[2]


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (link("lo", "127.0.0.1/8", "::1/128", "10.96.0.2/32"), "10.96.0.2/32 on lo"),
        (link("lo", "fd00::2/128"), "fd00::2/128 on lo"),
        (link("dummy0", "10.96.0.2/32", scope="global", alias=MARK), "10.96.0.2/32 on dummy0"),
        (link("eth0", "10.0.0.5/32", scope="global"), ""),
        (link("eth0", "10.0.0.5/24"), ""),
    ],
)
def test_an_address_alone_is_named_but_not_taken(running: Running, left: Left, found: Link, named: str) -> None:
    running()
    left(links=(found,))
    ip = named.partition("/")[0]
    hint = f"{named} may be one that a sidecar added: repeat with --ip-address={ip} --interface={found.name}"
    assert faults("status")[2:] == ([hint] if named else [])


def test_iptables_that_hangs_is_told(running: Running, mocker: MockerFixture) -> None:
    running()
    hung = CommandTimeout(("iptables-nft",), "", "was killed after 1s")
    mocker.patch("sidecar.commands.from_rules.standing", side_effect=hung)
    assert faults("status")[1] == (
        "no running sidecar was found whose settings could be used: `iptables-nft` was killed after 1s"
    )


def test_in_a_container_it_says_what_it_cannot_see(running: Running, left: Left, mocker: MockerFixture) -> None:
    running()
    left(rules("10.96.0.2"))
    mocker.patch("sidecar.node.proc.sees_all_processes", return_value=False)
    assert ask("status").origin.detail.endswith("; only the processes of this container can be seen")


# The Go sidecar, whose defaults are not known


def test_the_go_sidecar_has_the_port_of_its_rules(running: Running, left: Left) -> None:
    running(instance(*RULES, is_python=False))
    left(rules("10.96.0.2", 9443), rules("10.96.0.9"))
    loaded = ask("status")
    assert loaded.options.port == 9443
    assert (loaded.origin.kind, loaded.origin.pid) == ("other", PID)
    assert loaded.origin.detail.endswith("running here; the port is that of its rules")
    left(rules("10.96.0.2", 9443), rules("10.96.0.2"))
    assert faults("status")[0].startswith("--port is required: ")


def test_the_go_sidecar_is_asked_for_its_port(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running(instance(*RULES, is_python=False))
    (fault,) = faults("status")
    assert fault.startswith(f"--port is required: pid {PID} (not Python: the Go sidecar?) has none in its settings")
    assert "--port=9443" in changed("status", "--port=9443")
    monkeypatch.setenv("SIDECAR_PORT", "8443")
    assert "--port=8443" in changed("status")


def test_a_port_that_it_was_told_is_taken(running: Running) -> None:
    running(instance(*RULES, "--port=9443", is_python=False))
    assert changed("status") == ["--ip-address=10.96.0.2", "--port=9443", "--setup-iptables=true"]


@pytest.mark.parametrize("words", [(), ("--setup-iptables=false",), ("--setup-iptables=F",)])
def test_without_rules_no_port_is_needed(running: Running, words: tuple[str, ...]) -> None:
    running(instance("--ip-address=10.96.0.2", *words, is_python=False))
    assert changed("status") == ["--ip-address=10.96.0.2"]


def test_the_default_of_this_program_is_known(running: Running) -> None:
    running(instance(*RULES))
    assert ask("status").options.port == 443


# Its env file


def test_its_path_is_from_where_it_was_started(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.4\n")
    monkeypatch.chdir(tmp_path)
    running(instance("--env-file=env"))
    assert changed("status") == ["--ip-address=10.96.0.4"]


def test_a_file_in_a_container_of_its_own_is_not_read(running: Running, mocker: MockerFixture, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.4\n")
    places = {f"/proc/{PID}/ns/mnt": "mnt:[2]", "/proc/self/ns/mnt": "mnt:[1]", f"/proc/{PID}/cwd": "/"}
    mocker.patch("sidecar.commands.inherited.os.readlink", places.__getitem__)
    running(instance(f"--env-file={tmp_path}/env"))
    (fault,) = faults("status")
    assert fault.endswith(f"reads {tmp_path}/env in its own container: run this command there")


def test_a_file_that_is_none_or_has_faults_is_told(running: Running, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever reads it would wait for ever
    for name in ("pipe", "nothing"):
        running(instance(f"--env-file={tmp_path}/{name}"))
        (fault,) = faults("status")
        assert fault.endswith(f"/{name}, which pid {PID} (this program) reads, is not a regular file")
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.4\nwhat is this\n")
    running(instance(f"--env-file={tmp_path}/env"))
    assert faults("status") == [f"{tmp_path}/env: line 2 is not NAME=value"]
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.4\nSIDECAR_INTERFACE=a\0b\n")
    (fault,) = faults("status")
    assert fault.endswith(": is not text: it contains a NUL")


def test_the_file_of_one_that_has_ended_cannot_be_found(running: Running) -> None:
    pid = 2**22 + 1  # higher than the kernel gives any
    running(instance("--env-file=/etc/env", pid=pid))
    assert faults("status") == [
        f"pid {pid} (this program) reads settings from /etc/env, which cannot be found: No such file or directory"
    ]
