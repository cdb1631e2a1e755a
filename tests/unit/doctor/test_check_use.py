"""doctor's checks of what uses the address, on recorded answers."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.probe import Answer
from sidecar.node.command import Result
from sidecar.node.proc import Process
from sidecar.node.proc_formats import Listener
from sidecar.state.desired import desired
from sidecar.state.model import Desired, Facts
from support.recorded_node import BOTH, CERTIFICATE, CONNECTION, NO_RULES, ONLY_IPV6, SIDECAR, Change, RecordedNode, ok

WHERE = "10.96.0.2:443"
ADDRESS: Facts = {"address": "10.96.0.2/32", "interface": "lo"}


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


UNSEEN = "a process that cannot be seen from here (other user, or other container)"


def listener(text: str, inode: int) -> Listener:
    host, _, port = text.rpartition(":")
    return Listener(ip_address(host.strip("[]")), int(port), inode)


@pytest.mark.parametrize(
    ("sockets", "owners", "told"),
    [
        (["10.96.0.2:443"], ["proxy"], "pid 1 (proxy)"),
        (["10.96.0.2:443", "0.0.0.0:443"], ["proxy", "nginx"], "pid 1 (proxy), pid 2 (nginx)"),
        (["0.0.0.0:443"], ["proxy"], "pid 1 (proxy)"),
        (["[::]:443"], ["proxy"], "pid 1 (proxy)"),
        (["10.96.0.2:443"], [""], UNSEEN),
    ],
)
def test_who_listens(node: RecordedNode, sockets: Sequence[str], owners: Sequence[str], told: str) -> None:
    node.listeners = [listener(text, number) for number, text in enumerate(sockets, start=1)]
    node.owners = {number: Process(number, name) for number, name in enumerate(owners, start=1) if name}
    assert node.told("listener") == [f"ok: on {WHERE} listens {told}"]
    assert node.told("connect") == [f"ok: {WHERE} answers from this node in 1.2 ms"]


@pytest.mark.parametrize(
    ("sockets", "but", "remedy"),
    [
        ([], "", "start the apiserver-proxy"),
        (["10.96.0.3:8443"], "", "start the apiserver-proxy"),
        (["127.0.0.1:443", "10.0.0.5:443"], ", but on that port of 10.0.0.5 and 127.0.0.1",
         "let the proxy listen on 10.96.0.2"),
        (["10.96.0.2:9443", "10.96.0.2:8443", "127.0.0.1:443"], ", but on port 8443 and 9443 of 10.96.0.2",
         "give the proxy and --port the same port"),
    ],
)  # fmt: skip
def test_nothing_listens(node: RecordedNode, sockets: Sequence[str], but: str, remedy: str) -> None:
    node.listeners = [listener(text, 1) for text in sockets]
    found = Finding(Level.FAULT, "listener", f"nothing listens on {WHERE}{but}", remedy, facts=ADDRESS)
    assert node.findings("listener", "connect", "tls") == [found]


def test_each_address_has_a_listener_of_its_own(node: RecordedNode) -> None:
    node.set(goal=BOTH, listeners=[listener("0.0.0.0:443", 17)])  # which takes no IPv6
    nothing = "fault: nothing listens on [fd00:10:96::2]:443, but on that port of 0.0.0.0"
    assert node.told("listener") == [f"ok: on {WHERE} listens pid 4711 (proxy)", nothing]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.kernel.addresses["lo"].clear(),
        lambda node: node.kernel.links["lo"].update(flags=[]),
        lambda node: node.set(goal=ONLY_IPV6).kernel.states.update({"fd00:10:96::2/128": {"tentative": True}}),
    ],
)
def test_an_address_that_is_not_to_be_used_is_not_tried(node: RecordedNode, change: Change) -> None:
    change(node)
    told = f"note: not tried: {node.goal.addresses[0].ip} is not to be used on this node as it is"
    assert node.told("connect", "tls") == [told]


def test_addresses_for_which_there_is_no_time(node: RecordedNode) -> None:
    node.set(goal=BOTH, seconds=2.0)
    late = "unknown: fd00:10:96::2 was not tried, to be done in time"
    assert node.told("connect") == [f"ok: {WHERE} answers from this node in 1.2 ms", late]


LO_IS_LET_IN = "iptables-nft -w 5 -I INPUT -i lo -j ACCEPT"
OURS = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
REJECT = "-A INPUT -i lo -p tcp -m tcp --dport 443 -j REJECT --reject-with tcp-reset"
NO_REASON = "see what is told above of rules and routes; if the proxy listens, is its queue full?"
TABLES_OF_NFT = "table ip raw\ntable ip6 filter\ntable bridge b\ntable inet filter\ntable ip mine\n"


def policy_of_input(node: RecordedNode) -> None:
    node.chain("filter", "INPUT")[0] = "-P INPUT DROP"


@pytest.mark.parametrize(
    ("change", "reason", "remedy", "commands"),
    [
        (lambda _: None, "", NO_REASON, ()),
        (policy_of_input, "; `-P INPUT DROP` drops the replies, which come in over lo", "pods may not be affected",
         (LO_IS_LET_IN,)),
        (lambda node: node.chain("filter", "INPUT").insert(1, REJECT), f"; perhaps by `{REJECT}`",
         "to keep our rule in front, change what sets up the other one",
         (f"iptables-nft -w 5 -t filter -D {OURS}", f"iptables-nft -w 5 -t filter -I {OURS}")),
        (lambda node: node.answers.update({"nft list tables": ok(TABLES_OF_NFT)}),
         "; perhaps by nft's table inet filter or table ip mine, which iptables does not show",
         "see: nft list table inet filter", ()),
        (lambda node: node.programs.remove("nft"), "", NO_REASON, ()),
    ],
)  # fmt: skip
def test_no_connection(node: RecordedNode, change: Change, reason: str, remedy: str, commands: tuple[str, ...]) -> None:
    change(node)
    node.answer = Answer(1.0, "no answer within 1s")
    text = f"no connection to {WHERE} from this node: no answer within 1s{reason}"
    found = Finding(Level.FAULT, "connect", text, remedy, commands, {**ADDRESS, "seconds": 1.0})
    assert node.findings("connect", "tls") == [found]


def test_no_tls(node: RecordedNode) -> None:
    node.answer = Answer(0.002, tls_failure="wrong version number")
    assert node.told("tls") == [f"warning: {WHERE} does not speak TLS, as an API server would: wrong version number"]
    (found,) = node.findings("tls")
    assert found.remedy == "see the proxy's log: does it reach the API server, and is this its right port?"


NOW = datetime.now(UTC)
PAST, TOMORROW, SOON, LATER = (NOW + timedelta(days=number) for number in (-1, 1, 2, 4))
TIME = "%Y-%m-%d %H:%M UTC"


@pytest.mark.parametrize(
    ("begin", "end", "told", "remedy"),
    [
        (PAST - timedelta(1), PAST, f"fault: the certificate on {WHERE} has expired: {PAST:{TIME}}", "renew it"),
        (TOMORROW, LATER, f"fault: the certificate on {WHERE} is not valid before {TOMORROW:{TIME}}",
         "set the clock of this node, or renew the certificate"),
        (PAST, SOON, f"warning: the certificate on {WHERE} expires soon: {SOON:{TIME}}", "renew it"),
        (PAST, LATER, "", ""),
    ],
    ids=["expired", "not yet valid", "expires soon", "valid"],
)  # fmt: skip
def test_when_the_certificate_is_valid(
    node: RecordedNode, begin: datetime, end: datetime, told: str, remedy: str
) -> None:
    node.answer = Answer(0.001, certificate=replace(CERTIFICATE, not_before=begin, not_after=end))
    *alarms, last = node.findings("tls")
    assert [(f"{each.level.value}: {each.found}", each.remedy) for each in alarms] == [(told, remedy)] * bool(told)
    assert last.facts["not_after"] == end.isoformat()


@pytest.mark.parametrize(
    ("names", "shown", "is_ours"),
    [
        (["kubernetes", "10.96.0.2"], "kubernetes, 10.96.0.2", True),
        (["10.96.0.1", "*.example.org"], "10.96.0.1, *.example.org", False),
        ([f"n{number}" for number in range(8)], "n0, n1, n2, n3, n4, n5 and 2 more", False),
        ([], "nothing", False),
    ],
)
def test_for_whom_the_certificate_is(node: RecordedNode, names: list[str], shown: str, *, is_ours: bool) -> None:
    node.answer = Answer(0.001, certificate=replace(CERTIFICATE, names=tuple(names)))
    note = "note: the certificate is not for 10.96.0.2: clients have to use one of its names"
    told = f"ok: certificate for {shown}, until 2099-01-01 00:00 UTC; its trust was not verified"
    assert node.told("tls") == [told, *([] if is_ours else [note])]


TO_US = CONNECTION.format("10.96.0.2", 443)
IN_VAIN = "are tracked, though our rules should keep them out"
AS_IT_SHOULD_BE = "without --setup-iptables that is as it should be"
NONE = f"ok: no connection to {WHERE} is tracked"
UNSEEN_CONNECTIONS = "unknown: the tracked connections: "
REFUSED = "conntrack v1.4.7 (conntrack-tools): Operation failed: sorry, you must be root or get CAP_NET_ADMIN"
NOT_INSTALLED = "there is no /proc/net/nf_conntrack, and no program conntrack: apt-get install conntrack"


@pytest.mark.parametrize(
    ("goal", "lines", "told"),
    [
        (BOTH, [CONNECTION.format("10.96.0.2", 8443)], NONE),
        (BOTH, [TO_US, TO_US], f"warning: 2 connections to {WHERE} {IN_VAIN}"),
        (NO_RULES, [TO_US, TO_US], f"note: 2 connections to {WHERE} are tracked: {AS_IT_SHOULD_BE}"),
    ],
)
@pytest.mark.parametrize("source", ["file", "program"])
def test_tracked_connections(node: RecordedNode, source: str, goal: Desired, lines: list[str], told: str) -> None:
    node.set(goal=goal, files={})
    if source == "program":
        node.answers["conntrack -L -p tcp"] = ok("".join(line.removeprefix("ipv4     2 ") for line in lines))
    else:
        node.files["/proc/net/nf_conntrack"] = "".join(lines)
    assert node.told("conntrack")[0] == told
    commands = node.findings("conntrack")[0].commands
    assert commands == (("conntrack -D -p tcp -d 10.96.0.2 --dport 443",) if IN_VAIN in told else ())


@pytest.mark.parametrize(
    ("programs", "files", "told"),
    [
        (set(), {"/proc/net/nf_conntrack": PermissionError(13, "Permission denied")},
         f"{UNSEEN_CONNECTIONS}Permission denied"),
        ({"conntrack"}, {}, f"{UNSEEN_CONNECTIONS}`conntrack -L -p tcp` exited with 1: {REFUSED}"),
        (set(), {"/proc/sys/net/netfilter/nf_conntrack_count": "7\n"}, UNSEEN_CONNECTIONS + NOT_INSTALLED),
        (set(), {}, NONE),
    ],
)  # fmt: skip
def test_tracked_connections_that_cannot_be_looked_at(
    node: RecordedNode, programs: set[str], files: dict[str, str | OSError], told: str
) -> None:
    node.programs = node.programs - {"conntrack"} | programs
    node.set(files=files).answers["conntrack"] = Result(1, "", f"{REFUSED}\n")
    assert node.told("conntrack") == [told]


@pytest.mark.parametrize(("number", "told"), [(0, []), (2, [f"warning: 2 connections to {WHERE} {IN_VAIN}"])])
def test_tracked_connections_that_are_too_many(
    node: RecordedNode, mocker: MockerFixture, number: int, told: list[str]
) -> None:
    mocker.patch("sidecar.node.proc.lines", return_value=([*[TO_US] * number, *["udp\n"] * (9 - number)], False))
    left = "unknown: only the first 9 tracked connections were looked at, to be done in time"
    assert node.told("conntrack") == [*told, left]


PID = os.getpid()
GO = Process(PID, "apiserver-proxy", ("/usr/bin/apiserver-proxy-sidecar", "--ip-address=10.96.0.2"))
OTHER = replace(SIDECAR, argv=("python3", "-m", "sidecar", "--ip-address=10.96.0.9"))
ON_ETH0 = replace(SIDECAR, argv=(*SIDECAR.argv, "--interface=eth0", "--port=8443"))
DOCTOR = replace(SIDECAR, argv=("python3", "-m", "sidecar", "doctor", "--ip-address=10.96.0.2"))
ON_OTHERS = "--interface=eth0 --port=8443; this look is for --interface=lo --port=443"
ONLY_ROOT = "only root can see its network"
CONTAINED = "unknown: whether another instance holds 10.96.0.2: only the processes of this container can be seen"
NOBODY = "no instance is running for 10.96.0.2: nothing repairs what is taken away"


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        ([(SIDECAR, True)], [f"ok: pid {PID} (this program) holds 10.96.0.2"]),
        ([(GO, True)], [f"ok: pid {PID} (not Python: the Go sidecar?) holds 10.96.0.2"]),
        ([(ON_ETH0, True)], [f"warning: pid {PID} (this program) holds 10.96.0.2 with {ON_OTHERS}"]),
        ([(OTHER, True)], [f"note: {NOBODY}", f"note: pid {PID} (this program) runs on this node for 10.96.0.9"]),
        ([(SIDECAR, False)], [f"note: {NOBODY}"]),
        ([(DOCTOR, True)], [f"note: {NOBODY}"]),
        ([], [f"note: {NOBODY}"]),
        ([(SIDECAR, None)], [f"unknown: whether pid {PID} (this program) holds 10.96.0.2: {ONLY_ROOT}"]),
    ],
)  # fmt: skip
def test_who_else_looks_after_the_address(
    node: RecordedNode, processes: list[tuple[Process, bool | None]], told: list[str]
) -> None:
    node.processes = processes
    assert node.told("instances") == told


def test_what_to_do_about_instances(node: RecordedNode) -> None:
    node.processes = [(ON_ETH0, True)]
    assert node.findings("instances")[0].remedy == "give both the same flags, or stop one of them"
    node.set(processes=[]).kernel.addresses["lo"].clear()  # and nobody puts it back
    remedy = "start apiserver-proxy-sidecar as a service or a pod"
    assert node.findings("instances") == [Finding(Level.WARNING, "instances", NOBODY, remedy)]


@pytest.mark.parametrize(
    ("claimed", "told"),
    [
        (frozenset(["10.96.0.2@lo"]), ["ok: an instance that cannot be seen from here holds 10.96.0.2"]),
        (frozenset(["10.96.0.2@eth0"]), [CONTAINED]),
        (PermissionError(13, "Permission denied"), ["unknown: who claims the addresses: Permission denied"]),
    ],
)  # fmt: skip
def test_from_within_a_container(
    node: RecordedNode, mocker: MockerFixture, claimed: frozenset[str] | OSError, told: list[str]
) -> None:
    mocker.patch("sidecar.node.proc.sees_all_processes", return_value=False)
    node.set(processes=[], claimed=claimed)
    assert node.told("instances") == told


def test_very_many_addresses_are_not_all_named(node: RecordedNode) -> None:
    node.goal = desired([ip_address(f"10.96.1.{number}") for number in range(9)], interface="lo", port=443)
    first = node.told("instances")[0]
    assert first.startswith("warning: no instance is running for 10.96.1.0, 10.96.1.1, ")
    assert "10.96.1.5 and 3 more: " in first
