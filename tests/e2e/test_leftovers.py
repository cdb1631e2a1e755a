"""What an instance leaves in place when it ends, and a successor with other settings removes."""

import json
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from sidecar.node import leftovers
from sidecar.node.record import Entry, Record
from support import program
from support.namespace import CIDR, IPV4, Namespace
from support.program import Sidecar, Start
from support.waiting import HANG, until

DIRECTORY = "/run/apiserver-proxy-sidecar"
FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables")
OLD = "10.96.0.9"
ONCE = "--daemon=false"
SAYS = "may be left on this node"


def record(namespace: Namespace) -> str:
    """Return the path of the record, which has the namespace in its name."""
    (name,) = [each for each in namespace.run("ls", DIRECTORY).split() if each.startswith("set-up.")]
    return f"{DIRECTORY}/{name}"


def recorded(namespace: Namespace) -> list[str]:
    return [each["address"] for each in json.loads(namespace.run("cat", record(namespace)))["set_up"]]


def write(namespace: Namespace, text: str) -> None:
    namespace.run("tee", record(namespace), stdin=text)


def crashed(start: Start, *flags: str) -> None:
    """Let an instance set up what it is told to, and be killed."""
    sidecar = start(*flags)
    sidecar.wait_for("in sync")
    sidecar.kill()


def ends(sidecar: Sidecar) -> str:
    assert sidecar.end() == 0
    return sidecar.log


def replaces(namespace: Namespace, start: Start, *flags: str) -> None:
    """Let an instance run until nothing but what it set up is recorded."""
    sidecar = start(*flags)
    sidecar.wait_for("in sync")
    until(lambda: len(recorded(namespace)) == 1)
    assert sidecar.stop() == 0


@pytest.mark.any_user
def test_what_a_predecessor_with_another_address_left_goes_and_nothing_else(
    namespace: Namespace, start: Start, backend: str
) -> None:
    use = f"--iptables-backend={backend}"
    foreign = [
        f"OUTPUT -d {OLD}/32 -p tcp -m tcp --dport 444 -j NOTRACK",  # for another port
        f"OUTPUT -d {OLD}/32 -p tcp -m tcp --dport 443 -m comment --comment admin -j NOTRACK",
        "OUTPUT -d 10.96.0.8/32 -p tcp -m tcp --dport 443 -j NOTRACK",
    ]
    for rule in foreign:
        namespace.iptables(backend, 4, "-t", "raw", "-A", *rule.split())
    for cidr in ("10.96.0.8/32", f"{OLD}/24"):
        namespace.run("ip", "address", "add", cidr, "dev", "lo")
    crashed(start, f"--ip-address={OLD},fd00::9", "--setup-iptables", use)
    assert len(namespace.rules(backend, 6)) == 5

    successor = start(*FLAGS, use)
    successor.wait_for("in sync")
    until(lambda: recorded(namespace) == [str(IPV4)])
    assert f"removed {OLD}/32 from lo" in successor.log
    assert SAYS not in successor.log
    assert sorted(namespace.addresses()) == [CIDR, "10.96.0.8/32", f"{OLD}/24"]
    assert namespace.rules(backend, 6) == []
    theirs = [each for each in namespace.rules(backend) if CIDR not in each]
    assert len(theirs) == len(foreign)
    assert len(namespace.rules(backend)) == len(foreign) + 5
    assert recorded(namespace) == [str(IPV4)]


def test_a_change_of_the_port_or_the_interface_takes_nothing_away_that_stays(
    namespace: Namespace, start: Start, backend: str
) -> None:
    namespace.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "peer0")
    namespace.run("ip", "link", "set", "up0", "up")
    use = f"--iptables-backend={backend}"
    crashed(start, *FLAGS, use)
    watch = namespace.start("ip", "-oneline", "monitor", "address")
    until(lambda: str(watch.pid) in namespace.run("cat", "/proc/net/netlink"))
    replaces(namespace, start, *FLAGS, use, "--port=8443")
    assert len(namespace.rules(backend)) == 5
    assert all("8443" in each for each in namespace.rules(backend))
    replaces(namespace, start, *FLAGS, use, "--port=8443", "--interface=up0")
    assert namespace.addresses() == []
    assert CIDR in namespace.addresses("up0")
    assert len(namespace.rules(backend)) == 5
    replaces(namespace, start, FLAGS[0], "--interface=up0")
    assert CIDR in namespace.addresses("up0")
    assert namespace.rules(backend) == []
    watch.terminate()
    told = watch.communicate()[0].splitlines()
    events = [("Deleted" in line, " up0 " in line) for line in told if "10.96.0.2" in line and " inet " in line]
    assert events == [(False, True), (True, False)]  # on the one interface before it went from the other


@pytest.mark.any_user
def test_a_successor_waits_until_its_predecessor_has_gone(namespace: Namespace, start: Start) -> None:
    old = start(f"--ip-address={OLD}", "--setup-iptables", "--iptables-backend=nft")
    old.wait_for("in sync")
    new = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=100ms", "-v=2")
    new.wait_for("in sync")
    new.wait_for("pass: in sync", times=new.log.count("pass: in sync") + 3)
    assert sorted(namespace.addresses()) == [CIDR, f"{OLD}/32"]
    assert len(namespace.rules("nft")) == 10
    assert old.stop() == 0
    until(namespace.in_place)
    assert new.stop() == 0
    assert namespace.in_place()  # it was not told to clean up


def test_what_a_younger_instance_or_another_installation_has_set_up_stays(namespace: Namespace, start: Start) -> None:
    neighbour = start(f"--ip-address={OLD}", "--health-address=127.0.0.1:9181")
    neighbour.wait_for("in sync")
    sidecar = start(FLAGS[0], "--health-address=127.0.0.1:9180", "--sync-interval=100ms", "-v=2")
    sidecar.wait_for("in sync")
    neighbour.kill()  # it will be started again
    ends(start("--ip-address=10.96.0.7", "--health-address=127.0.0.1:9180", ONCE))  # as in an init container
    sidecar.wait_for("pass: in sync", times=sidecar.log.count("pass: in sync") + 3)
    assert sorted(namespace.addresses()) == [CIDR, "10.96.0.7/32", f"{OLD}/32"]
    assert sidecar.stop() == 0
    later = start(FLAGS[0], "--health-address=127.0.0.1:9180")
    until(lambda: sorted(namespace.addresses()) == [CIDR, f"{OLD}/32"])
    assert later.stop() == 0


def test_a_pass_by_hand_takes_nothing_away(namespace: Namespace, start: Start) -> None:
    for ip in (OLD, "10.96.0.7", str(IPV4)):
        ends(start(f"--ip-address={ip}", ONCE))
    assert sorted(namespace.addresses()) == [CIDR, "10.96.0.7/32", f"{OLD}/32"]


def test_what_a_younger_instance_has_set_up_goes_when_it_does_not_come_back(
    namespace: Namespace, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "RETURN", 0.5)
    old = start(FLAGS[0], "--sync-interval=100ms")
    old.wait_for("in sync")
    crashed(start, f"--ip-address={OLD}")  # as in an update that is undone before its pods are ready
    until(lambda: namespace.addresses() == [CIDR])
    until(lambda: recorded(namespace) == [str(IPV4)])
    assert old.stop() == 0


def record_many(number: int) -> None:
    for last in range(1, 51):
        Record().change(added=[Entry(ip_address(f"10.96.{number}.{last}"), "lo", 443, 0)])


@pytest.mark.any_user
def test_of_several_that_write_at_once_everything_is_recorded(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.node.record.PATIENCE", HANG)
    writers = [namespace.fork(partial(record_many, number)) for number in range(4)]
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    assert len(recorded(namespace)) == 200


ENTRY = {"address": OLD, "interface": "lo", "port": 443, "health_port": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\x00\xff",
        "[" * 100_000,
        " " * 2**20 + "{}",
        json.dumps({"schema": "set-up/v2", "set_up": []}),
        json.dumps({"schema": "set-up/v1", "set_up": [ENTRY, None]}),
        *(
            json.dumps({"schema": "set-up/v1", "set_up": [ENTRY | {name: value}]})
            for name, value in (
                ("address", "127.0.0.1"),
                ("address", f"{OLD}/24"),
                ("address", f"{OLD},10.96.0.8"),
                ("interface", "lo; reboot"),
                ("interface", "-all"),
                ("port", 65536),
                ("port", "443"),
                ("port", True),
                ("health_port", -1),
            )
        ),
    ],
    ids=range(16),
)
def test_of_a_record_that_cannot_be_understood_nothing_is_believed(
    namespace: Namespace, start: Start, text: str
) -> None:
    crashed(start, f"--ip-address={OLD}")
    write(namespace, text)
    sidecar = start(FLAGS[0], ONCE)
    assert "cannot be understood" in ends(sidecar)
    assert sidecar.log.count(SAYS) == 1
    assert sorted(namespace.addresses()) == [CIDR, f"{OLD}/32"]
    assert recorded(namespace) == [str(IPV4)]
    assert SAYS not in ends(start(FLAGS[0], ONCE))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("chmod 666 {record}", "others can write"),
        ("chmod 757 {folder}", "others can write"),
        ("chown 65534 {record}", "belongs to user 65534"),
        ("chown 65534 {folder}", "belongs to user 65534"),
        ("mv {record} /run/moved; ln -s /run/moved {record}", "symbolic links"),
        ("rm {record}; mkfifo {record}", "is not a regular file"),
        ("rm {record}; mkdir {record}", "is not a regular file"),
        ("mv {folder} /run/moved; ln -s /run/moved {folder}", ""),
        ("mount -t tmpfs -o ro tmpfs {folder}", "Read-only file system"),
    ],
)
def test_a_record_that_another_user_could_have_written_is_not_believed(
    namespace: Namespace, start: Start, damage: str, why: str
) -> None:
    crashed(start, f"--ip-address={OLD}")
    namespace.run("sh", "-c", damage.format(record=record(namespace), folder=DIRECTORY))
    sidecar = start(FLAGS[0], ONCE)
    assert why in ends(sidecar)
    assert SAYS in sidecar.log
    assert sorted(namespace.addresses()) == [CIDR, f"{OLD}/32"]


def test_the_record_is_written_again_if_somebody_empties_the_directory(namespace: Namespace, start: Start) -> None:
    sidecar = start(FLAGS[0], "--sync-interval=100ms")
    sidecar.wait_for("in sync")
    namespace.run("rm", "-r", DIRECTORY)
    until(lambda: namespace.run("sh", "-c", f"cat {DIRECTORY}/set-up.* 2>&1", check=False).startswith("{"))
    assert recorded(namespace) == [str(IPV4)]
    assert sidecar.stop() == 0


def test_if_it_cannot_be_seen_what_others_need_nothing_is_removed(namespace: Namespace, start: Start) -> None:
    old = start(f"--ip-address={OLD}")
    old.wait_for("in sync")
    new = start(FLAGS[0], "--sync-interval=100ms")
    new.wait_for("in sync")
    namespace.run("rm", f"{DIRECTORY}/claims")
    new.wait_for("cannot see whether another instance needs what is left on this node")
    old.kill()
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    new.wait_for(f"added {CIDR}", times=2)
    assert new.stop() == 0
    assert sorted(namespace.addresses()) == [CIDR, f"{OLD}/32"]


def test_a_cleanup_removes_what_is_recorded_and_not_needed(namespace: Namespace, start: Start, backend: str) -> None:
    use = f"--iptables-backend={backend}"
    crashed(start, f"--ip-address={OLD}", "--setup-iptables", use)
    running = start("--ip-address=10.96.0.7", "--health-address=127.0.0.1:9180")
    running.wait_for("in sync")
    namespace.run("ip", "address", "add", f"{OLD}/32", "dev", "lo")
    crashed(start, f"--ip-address={OLD}", "--setup-iptables", use, "--health-address=127.0.0.1:9181")
    plan = start("cleanup", *FLAGS, use, "--dry-run")
    assert plan.process.communicate()[0].count(OLD) == 6
    cleanup = start("cleanup", *FLAGS, use)
    assert f"removed    {OLD}/32 on lo" in cleanup.process.communicate()[0]
    assert cleanup.process.returncode == 0
    assert namespace.addresses() == ["10.96.0.7/32"]
    assert namespace.rules(backend) == []
    assert recorded(namespace) == ["10.96.0.7"]
    assert running.stop() == 0


def test_whoever_cleans_up_on_exit_takes_itself_off_the_record(namespace: Namespace, start: Start) -> None:
    sidecar = start(FLAGS[0], "--cleanup")
    sidecar.wait_for("in sync")
    assert recorded(namespace) == [str(IPV4)]
    assert sidecar.stop() == 0
    assert recorded(namespace) == []


def test_the_record_is_of_one_network(namespace: Namespace, start: Start, tmp_path: Path) -> None:
    """Two nodes that share a directory, as two pods with networks of their own do."""
    with Namespace(beside=namespace) as other:
        for each in (namespace, other):
            each.run("mkdir", DIRECTORY)
            each.run("mount", "--bind", str(tmp_path), DIRECTORY)
        crashed(start, f"--ip-address={OLD}")
        other.run("ip", "address", "add", f"{OLD}/32", "dev", "lo")
        assert Sidecar(program.fork(other, FLAGS[0], ONCE)).end() == 0
        assert sorted(other.addresses()) == [CIDR, f"{OLD}/32"]
