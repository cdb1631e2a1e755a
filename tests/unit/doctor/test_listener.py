"""The checks of who listens and what answers, on recorded answers."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level, exit_code
from sidecar.doctor.probe import Answer, Instead
from sidecar.node.proc import Process
from sidecar.node.proc_formats import Listener
from sidecar.state.model import Facts
from support.findings import finding
from support.recorded_node import BOTH, CERTIFICATE, ONLY_IPV6, Change, RecordedNode

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
        (["10.96.0.2:443"], ["proxy"], "pid 1 (proxy) listens"),
        (["10.96.0.2:443", "0.0.0.0:443"], ["proxy", "nginx"], "pid 1 (proxy), pid 2 (nginx) listen"),
        (["0.0.0.0:443"], ["proxy"], "pid 1 (proxy) listens"),
        (["[::]:443"], ["proxy"], "pid 1 (proxy) listens"),
        (["10.96.0.2:443"], [""], f"{UNSEEN} listens"),
    ],
)
def test_who_listens(node: RecordedNode, sockets: Sequence[str], owners: Sequence[str], told: str) -> None:
    node.listeners = [listener(text, number) for number, text in enumerate(sockets, start=1)]
    node.owners = {number: Process(number, name) for number, name in enumerate(owners, start=1) if name}
    assert node.texts("listener") == [f"ok: {told} on {WHERE}"]
    assert node.texts("connect") == [f"ok: {WHERE} answers from this node in 1.2 ms"]


@pytest.mark.parametrize(
    ("sockets", "but", "remedy"),
    [
        ([], "", "start the apiserver-proxy"),
        (["10.96.0.3:8443"], "", "start the apiserver-proxy"),
        (["127.0.0.1:443", "10.0.0.5:443"], ", only on 10.0.0.5:443 and 127.0.0.1:443",
         "let the proxy listen on 10.96.0.2"),
        (["10.96.0.2:9443", "10.96.0.2:8443", "127.0.0.1:443"], ", only on 10.96.0.2:8443 and 10.96.0.2:9443",
         "give the proxy and --port the same port"),
    ],
)  # fmt: skip
def test_nothing_listens(node: RecordedNode, sockets: Sequence[str], but: str, remedy: str) -> None:
    node.listeners = [listener(text, 1) for text in sockets]
    found = finding(Level.FAULT, "listener", f"nothing listens on {WHERE}{but}", remedy, facts=ADDRESS)
    assert node.findings("listener", "connect", "tls") == [found]


def test_each_address_has_a_listener_of_its_own(node: RecordedNode) -> None:
    node.set(desired=BOTH, listeners=[listener("0.0.0.0:443", 17)])  # which takes no IPv6
    nothing = "fault: nothing listens on [fd00:10:96::2]:443, only on 0.0.0.0:443"
    assert node.texts("listener") == [f"ok: pid 4711 (proxy) listens on {WHERE}", nothing]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.kernel.addresses["lo"].clear(),
        lambda node: node.kernel.links["lo"].update(flags=[]),
        lambda node: node.set(desired=ONLY_IPV6).kernel.states.update({"fd00:10:96::2/128": {"tentative": True}}),
    ],
)
def test_an_address_that_is_not_to_be_used_is_not_tried(node: RecordedNode, change: Change) -> None:
    change(node)
    told = f"note: not tried: {node.desired.addresses[0].ip} cannot be used on this node as it is"
    assert node.texts("connect", "tls") == [told]


def test_addresses_for_which_there_is_no_time(node: RecordedNode) -> None:
    node.set(desired=BOTH, seconds=2.0)
    late = "unknown: fd00:10:96::2 was not tried for lack of time"
    assert node.texts("connect") == [f"ok: {WHERE} answers from this node in 1.2 ms", late]


REJECT = "-A INPUT -i lo -p tcp -m tcp --dport 443 -j REJECT --reject-with tcp-reset"
LIMIT = "-A INPUT -p tcp -m tcp --dport 443 -m connlimit --connlimit-above 4 --connlimit-mask 32 -j DROP"
NO_REASON = (
    "see the findings above on rules and routes; if there are none, check whether the proxy's accept queue is full"
)


def policy_of_input(node: RecordedNode) -> None:
    node.chain("filter", "INPUT")[0] = "-P INPUT DROP"


@pytest.mark.parametrize(
    ("change", "reason", "remedy", "commands"),
    [
        (lambda _: None, "", NO_REASON, ()),
        (policy_of_input, "; because of `-P INPUT DROP` in filter", "see the finding above", ()),
        (lambda node: node.chain("filter", "INPUT").insert(1, REJECT), f"; because of `{REJECT}` in filter",
         "see the finding above", ()),
        (lambda node: node.chain("filter", "INPUT").insert(1, LIMIT), f"; perhaps because of `{LIMIT}` in filter",
         "let the address and port pass before it", ()),
    ],
)  # fmt: skip
def test_no_connection(node: RecordedNode, change: Change, reason: str, remedy: str, commands: tuple[str, ...]) -> None:
    change(node)
    node.answer = Answer(1.0, "no answer within 1s")
    text = f"no connection to {WHERE} from this node: no answer within 1s{reason}"
    found = finding(Level.FAULT, "connect", text, remedy, commands, {**ADDRESS, "seconds": 1.0})
    assert node.findings("connect", "tls") == [found]


SEE_ITS_LOG = "see the log of {}, and whether it can reach the API server"
ENVOY = {17: Process(7, "envoy")}


@pytest.mark.parametrize(
    ("owners", "instead", "said", "remedy"),
    [
        (ENVOY, Instead.SILENCE, "accepts connections, but no TLS answer came within 0.5 s: is its upstream reachable?",
         f"{SEE_ITS_LOG.format('pid 7 (envoy)')}; its connections: ss -tnp | grep pid=7,"),
        ({}, Instead.CLOSE, "accepts connections, but closes them at once: is its upstream reachable?",
         SEE_ITS_LOG.format("the proxy")),
        (ENVOY, Instead.HTTP, "answers in plain HTTP (`x`): is this the right port?",
         "let pid 7 (envoy) pass TLS through on port 443, or set --port to the port where it does"),
    ],
)  # fmt: skip
def test_what_came_instead_of_a_certificate(
    node: RecordedNode, owners: dict[int, Process], instead: Instead, said: str, remedy: str
) -> None:
    node.owners = owners
    node.answer = Answer(0.002, instead=instead, detail="x", waited=0.5)
    facts = {**ADDRESS, "seconds": 0.002, "answer": instead.value}
    fault = finding(Level.FAULT, "tls", f"{WHERE} {said}", remedy, facts=facts)
    assert node.findings("tls") == [replace(fault, leads=True)]


@pytest.mark.parametrize("instead", Instead)
def test_no_certificate_is_a_fault_whatever_came(node: RecordedNode, instead: Instead) -> None:
    node.answer = Answer(0.002, instead=instead)
    (found,) = node.findings("tls")
    assert found.level is Level.FAULT
    assert exit_code(node.findings("tls")) == 1


def test_one_that_answers_without_a_name_only(node: RecordedNode) -> None:
    node.answer = Answer(0.002, certificate=CERTIFICATE, refuses_name=True)
    said = f"note: {WHERE} refuses clients that ask for `kubernetes.default.svc` (SNI), not those without a name"
    assert said in node.texts("tls")


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


NOT_FOR_IT = "note: the certificate is not for 10.96.0.2: clients have to use one of its names"
FOR_NEITHER = "warning: the certificate is neither for 10.96.0.2 nor for `kubernetes`: is this the API server?"


@pytest.mark.parametrize(
    ("names", "shown", "more"),
    [
        (["kubernetes", "10.96.0.2"], "kubernetes, 10.96.0.2", []),
        (["10.96.0.2"], "10.96.0.2", []),
        (["10.96.0.1", "kubernetes"], "10.96.0.1, kubernetes", [NOT_FOR_IT]),
        (["10.96.0.1", "*.example.org"], "10.96.0.1, *.example.org", [FOR_NEITHER]),
        ([f"n{number}" for number in range(8)], "n0, n1, n2, n3, n4, n5 and 2 more", [FOR_NEITHER]),
        ([], "nothing", [FOR_NEITHER]),
    ],
)
def test_for_whom_the_certificate_is(node: RecordedNode, names: list[str], shown: str, more: list[str]) -> None:
    node.answer = Answer(0.001, certificate=replace(CERTIFICATE, names=tuple(names)))
    told = f"ok: certificate for {shown}, until 2099-01-01 00:00 UTC; its chain of trust was not verified"
    assert node.texts("tls") == [told, *more]
