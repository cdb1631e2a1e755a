"""Which processes count as a sidecar, and what is known of them. The processes are made up."""

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.node.instances import Instance, powerless, running
from sidecar.node.proc import Process
from sidecar.settings import invocation
from sidecar.state.desired import claims, desired
from sidecar.state.model import Address, Interface, RuleSet
from support.namespace import IPV4, IPV6

SCRIPT = "/usr/local/bin/apiserver-proxy-sidecar"
HOLDS = "--ip-address=10.96.0.2"

#: Command lines of this program that hold an address, up to its own arguments.
OURS = [
    ("/usr/bin/python3", SCRIPT),
    ("/opt/venv/bin/python3.11", "bin/apiserver-proxy-sidecar"),
    ("python", "/opt/apiserver-proxy-sidecar.pyz"),
    ("python3", "-m", "sidecar"),
    ("python3", "-X", "dev", "-m", "sidecar"),
    ("python3", "-Xdev", "-m", "sidecar"),
    ("python3", "-W", "error", "-u", "-B", "-m", "sidecar"),
    ("python3", "-Werror", "-X", "importtime", SCRIPT),
    ("python3", "--check-hash-based-pycs", "always", "-I", SCRIPT),
    ("python3", "-um", "sidecar"),
    ("python3", "-msidecar"),
    ("python3", "-BuImsidecar"),
    ("python3", "-uW", "error", "-m", "sidecar"),
    ("python3", "-uXdev", "-m", "sidecar.__main__"),
    ("python3", "-u", "--", SCRIPT),
]

#: And of others.
OTHERS = [
    ("python3",),
    ("python3", "-u"),
    ("python3", "-m"),
    ("python3", "-X"),
    ("python3", "-m", "sidecars"),
    ("python3", "-um", "sidecars"),
    ("python3", "-msidecars"),
    ("python3", "-mhttp.server", SCRIPT),
    ("python3", "-uc", "import sidecar", "-m", "sidecar"),
    ("python3", "-cpass", SCRIPT),
    ("python3", "-Wm", "sidecar"),
    ("python3", "-", "-m", "sidecar"),
    ("python3", "-m", "http.server"),
    ("python3", "-m", "venv", "sidecar"),
    ("python3", "-c", "import sidecar"),
    ("python3", "/opt/other.py", SCRIPT),
    ("python3", "/opt/other.py", "-m", "sidecar"),
    ("python3", "-W", SCRIPT, "/opt/other.py"),
    ("python3", "/opt/apiserver-proxy-sidecar/other"),
    ("sidecar",),
    ("vim", SCRIPT),
    ("pgrep", "-f", "apiserver-proxy-sidecar"),
    ("sh", "-c", f"{SCRIPT} {HOLDS}"),
    ("apiserver-proxy-sidecar.pyz",),
    ("apiserver-proxy",),
    ("apiserver-proxy-sidecar: worker",),
]

Node = Callable[..., None]


@pytest.fixture
def environment(mocker: MockerFixture) -> dict[str, str]:
    """Return what every process was started with, to be filled."""
    variables: dict[str, str] = {}
    mocker.patch("sidecar.node.proc.variables", return_value=variables)
    return variables


@pytest.fixture
def node(mocker: MockerFixture, environment: dict[str, str]) -> Node:  # noqa: ARG001 - it has to be there
    """Say which processes there are; each could do a sidecar's work."""
    mocker.patch("sidecar.node.capabilities.has", return_value=True)
    mocker.patch("sidecar.node.instances.os.readlink", return_value="user:[4026531837]")

    def node(*command_lines: tuple[str, ...], is_near: bool | None = True) -> None:
        found = [(Process(100 + number, "x", argv), is_near) for number, argv in enumerate(command_lines)]
        mocker.patch("sidecar.node.proc.neighbours", return_value=found)

    return node


def the_one() -> Instance:
    (found,), hidden = running()
    assert hidden == []
    return found


def instance(*words: str, is_python: bool = True, **variables: str) -> Instance:
    return Instance(Process(7, "x"), is_python, invocation.parse(words), variables)


# Which they are


@pytest.mark.parametrize("argv", OURS)
def test_this_program_is_known_however_it_is_started(node: Node, argv: tuple[str, ...]) -> None:
    node((*argv, HOLDS, "--port", "9443"))
    found = the_one()
    assert (found.is_python, found.addresses, found.value("port")) == (True, (IPV4,), "9443")
    assert str(found) == "pid 100 (this program)"


@pytest.mark.parametrize("name", ["apiserver-proxy-sidecar", SCRIPT, "./apiserver-proxy-sidecar"])
def test_the_go_sidecar_is_known_by_its_name(node: Node, name: str) -> None:
    node((name, HOLDS))
    found = the_one()
    assert (found.is_python, found.addresses) == (False, (IPV4,))
    assert str(found) == "pid 100 (not Python: the Go sidecar?)"


@pytest.mark.parametrize("argv", OTHERS)
def test_others_are_none(node: Node, argv: tuple[str, ...]) -> None:
    node(argv, (*argv, HOLDS))
    assert running() == ([], [])


def test_the_child_that_writes_log_files_is_none(node: Node, mocker: MockerFixture) -> None:
    node((SCRIPT, HOLDS))
    child = Process(101, "sidecar-log", (SCRIPT, HOLDS))
    mocker.patch("sidecar.node.proc.neighbours", return_value=[(child, True)])
    assert running() == ([], [])


@pytest.mark.parametrize("command", ["status", "plan", "cleanup", "doctor", "version", "help", "--version", "nonsense"])
def test_who_only_looks_or_cleans_up_is_none(node: Node, command: str) -> None:
    node(("python3", SCRIPT, command, HOLDS), ("python3", "-m", "sidecar", HOLDS, command))
    assert running() == ([], [])


def test_who_runs_may_say_so(node: Node) -> None:
    node(("python3", SCRIPT, "run", HOLDS), ("python3", SCRIPT, HOLDS, "run"), ("python3", SCRIPT))
    assert [each.addresses for each in running()[0]] == [(IPV4,), (IPV4,), ()]


def test_the_go_sidecar_always_runs_whatever_words_it_is_given(node: Node) -> None:
    node((SCRIPT, HOLDS, "status", "--new-flag=1"))
    assert the_one().addresses == (IPV4,)


# Which are believed


def test_on_another_network_it_is_none_and_where_that_cannot_be_seen_it_is_hidden(node: Node) -> None:
    node(("python3", SCRIPT, HOLDS), is_near=False)
    assert running() == ([], [])
    node(("python3", SCRIPT, HOLDS), ("python3", SCRIPT, "status"), ("vim", SCRIPT), is_near=None)
    found, hidden = running()
    assert (found, [str(each) for each in hidden]) == ([], ["pid 100 (this program)"])


@pytest.mark.parametrize("answer", [False, ProcessLookupError])
def test_who_cannot_change_the_network_is_not_believed(node: Node, mocker: MockerFixture, answer: object) -> None:
    node(("python3", SCRIPT, HOLDS))
    has = mocker.patch("sidecar.node.capabilities.has", side_effect=[answer])
    assert running() == ([], [])
    has.assert_called_once_with("CAP_NET_ADMIN", 100)


def test_who_is_in_a_user_namespace_of_its_own_is_not_believed(node: Node, mocker: MockerFixture) -> None:
    node((SCRIPT, HOLDS))
    mocker.patch(
        "sidecar.node.instances.os.readlink",
        {"/proc/100/ns/user": "user:[2]", "/proc/self/ns/user": "user:[1]"}.__getitem__,
    )
    assert running() == ([], [])
    mocker.patch("sidecar.node.instances.os.readlink", side_effect=PermissionError)
    assert running() == ([], [])


def test_who_looks_like_one_without_the_capability_is_told_apart(node: Node, mocker: MockerFixture) -> None:
    node(("python3", SCRIPT, HOLDS))
    has = mocker.patch("sidecar.node.capabilities.has", return_value=False)
    assert [each.process.pid for each in powerless()] == [100]
    has.return_value = True
    assert powerless() == []
    has.return_value = False
    spaces = {"/proc/100/ns/user": "user:[2]", "/proc/self/ns/user": "user:[1]"}
    mocker.patch("sidecar.node.instances.os.readlink", spaces.__getitem__)
    assert powerless() == []  # nobody expects it to change the network


# What is known of one


def test_its_environment_counts_as_far_as_this_program_knows_it(node: Node, environment: dict[str, str]) -> None:
    environment |= {"SIDECAR_IP_ADDRESS": "10.96.0.3", "SIDECAR_PORT": "8443", "SIDECAR_INTERFACE": "", "HOME": "/root"}
    node(("python3", SCRIPT, HOLDS))
    assert dict(the_one().variables) == {"SIDECAR_IP_ADDRESS": "10.96.0.3", "SIDECAR_PORT": "8443"}
    assert (the_one().addresses, the_one().value("port"), the_one().value("interface")) == ((IPV4,), "8443", "lo")


def test_the_go_sidecar_reads_no_variables(node: Node, environment: dict[str, str]) -> None:
    environment["SIDECAR_PORT"] = "8443"
    node((SCRIPT, HOLDS))
    assert the_one().value("port") == "443"


def test_of_another_user_only_the_command_line_is_known(node: Node, mocker: MockerFixture) -> None:
    mocker.patch("sidecar.node.proc.variables", side_effect=PermissionError)
    node(("python3", SCRIPT, HOLDS))
    assert (the_one().addresses, dict(the_one().variables)) == ((IPV4,), {})


@pytest.mark.parametrize(
    ("given", "name", "text"),
    [
        (instance(), "port", "443"),
        (instance(), "ip-address", ""),
        (instance(), "setup-iptables", "false"),
        (instance(SIDECAR_PORT="8443"), "port", "8443"),
        (instance("--port=9443", SIDECAR_PORT="8443"), "port", "9443"),
        (instance("--port=9443", "--port", "9444"), "port", "9444"),
        (instance("--setup_iptables"), "setup-iptables", "true"),
        (instance("--ip-address=10.96.0.2", "--ip-address=fd00::2,fd00::3"), "ip-address", "10.96.0.2,fd00::2,fd00::3"),
        (instance("--interface=x\ny\x1b[2J"), "interface", "x\\ny\\x1b[2J"),
        (instance(SIDECAR_ENV_FILE="a\udcff"), "env-file", "a\\udcff"),
    ],
)
def test_the_value_of_a_setting(given: Instance, name: str, text: str) -> None:
    assert given.value(name) == text


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("10.96.0.2", ["10.96.0.2"]),
        ("10.96.0.2, FD00:10:96:0::2", ["10.96.0.2", "fd00:10:96::2"]),
        ("10.96.0.2,,kubernetes,10.96.0.3/32,10.96.0.4", ["10.96.0.2", "10.96.0.4"]),
        ("", []),
    ],
)
def test_its_addresses_as_far_as_they_are_some(text: str, addresses: list[str]) -> None:
    assert list(instance(f"--ip-address={text}").addresses) == [ip_address(each) for each in addresses]
    assert list(instance(SIDECAR_IP_ADDRESS=text).addresses) == [ip_address(each) for each in addresses]


@pytest.mark.parametrize("is_python", [True, False])
def test_what_it_needs_is_what_a_cleanup_would_take_away(is_python: bool) -> None:  # noqa: FBT001 - a parameter
    words = ("--ip-address=10.96.0.2,FD00:10:96:0::2", "--interface=dummy0", "--port=9443", "--setup-iptables")
    both = desired([IPV4, IPV6], interface="dummy0", port=9443, setup_iptables=True)
    needed = instance(*words, is_python=is_python).claims()
    assert needed == {claim for claim in claims(both, 9443) if not isinstance(claim, Interface)}
    assert instance().claims() == frozenset()


def test_rules_are_needed_only_by_an_instance_that_sets_them_up() -> None:
    address = Address(IPV4, 32, "lo")
    assert instance(HOLDS).claims() == {address}
    assert instance(HOLDS, "--setup-iptables").claims() == {address, RuleSet(IPV4, 443)}
    assert instance(HOLDS, "--setup-iptables", "--port=0443").claims() == {address, RuleSet(IPV4, 443)}
    assert instance(HOLDS, "--setup-iptables", "--port=https").claims() == {address}
    assert instance(HOLDS, "--setup-iptables", "--port=" + 5000 * "9").claims() == {address}
    assert instance(HOLDS, "--env-file=/etc/env").claims() == {address, RuleSet(IPV4, 443)}  # which may ask for them


def test_without_a_port_the_go_sidecar_needs_the_rules_of_any_of_its_defaults() -> None:
    flags = (HOLDS, "--setup-iptables")
    rules = {each for each in instance(*flags, is_python=False).claims() if isinstance(each, RuleSet)}
    assert rules == {RuleSet(IPV4, 443), RuleSet(IPV4, 9443)}
    assert RuleSet(IPV4, 443) not in instance(*flags, "--port=9443", is_python=False).claims()


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (instance(HOLDS), True),
        (instance(HOLDS, "--daemon=false"), False),
        (instance(HOLDS, SIDECAR_DAEMON="0"), False),
        (instance(HOLDS, is_python=False), False),
    ],
)
def test_who_repairs_at_once(one: Instance, expected: bool) -> None:  # noqa: FBT001 - a parameter
    assert one.repairs is expected


def test_this_very_process_is_believed_if_it_may_change_its_network(mocker: MockerFixture) -> None:
    argv = ("python3", SCRIPT, HOLDS)
    mocker.patch("sidecar.node.proc.neighbours", return_value=[(Process(os.getpid(), "x", argv), True)])
    (capabilities,) = re.findall(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert len(running()[0]) == int(capabilities, 16) >> 12 & 1
