"""doctor and status on nodes where a sidecar runs, has run, or should run: whose settings they take, whom they name."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from support import program
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.program import Fake, Sidecar, Start
from support.waiting import FOREVER, HANG, until

FLAGS: Final = ("--ip-address=10.96.0.2", "--setup-iptables")
LINKS: Final = "ip link add link0 type veth peer name link1; ip link set link1 up; ip link set link0 up"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="which legacy tables there are, only root of the node can read"
)


def ask(namespace: Namespace, *words: str) -> str:
    process = program.fork(namespace, *words)
    stdout, stderr = process.communicate(timeout=HANG)
    assert stderr == ""
    return stdout


def doctor(namespace: Namespace, *flags: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the summary, and the findings that are not good."""
    shown = json.loads(ask(namespace, "doctor", *flags, "--output=json"))
    about_the_proxy = ("listener", "connect", "tls")
    found = [each for each in shown["findings"] if each["level"] != "ok" and each["topic"] not in about_the_proxy]
    return shown["summary"], found


def topic(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in found if each["topic"] == name]


@contextmanager
def go_sidecar(namespace: Namespace, *flags: str, prefix: str = "") -> Iterator[int]:
    """Run what looks like the Go sidecar from outside, and return its process id."""
    sleep = f"import time; print('ready', flush=True); time.sleep({FOREVER})"
    script = f"""exec -a apiserver-proxy-sidecar {sys.executable} -c "{sleep}" {" ".join(flags)}"""
    process = namespace.start(*prefix.split(), "bash", "-c", script)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@contextmanager
def opponent(namespace: Namespace, command: str) -> Iterator[None]:
    """Run a command again and again."""
    process = namespace.start("sh", "-c", f"while :; do {command} 2>/dev/null; sleep 0.02; done")
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def state(namespace: Namespace) -> list[str]:
    looks = (
        "ip address",
        "nft list ruleset",
        "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names",
        "ls -lR /run",
    )
    return [namespace.run("sh", "-c", look) for look in looks]


# Settings from what one has left


def test_the_rules_of_a_sidecar_that_has_ended_tell_what_it_was_for(namespace: Namespace, backend: str) -> None:
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--port=8443", "--setup-iptables")
    put_in_place(namespace, *flags, backend=backend)
    other = "legacy" if backend == "nft" else "nft"
    namespace.iptables(other, 4, "-A", "FORWARD", "-p", "udp", "-j", "ACCEPT")  # what `auto` would go by
    namespace.iptables(backend, 4, "-A", "INPUT", "-d", "192.0.2.9/32", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    before = state(namespace)
    status = json.loads(ask(namespace, "status", "--output=json"))
    settings = [*flags[:2], "--setup-iptables=true", f"--iptables-backend={backend}", "--output=json"]
    assert status["settings"] == settings
    assert status["in_sync"]
    assert status["settings_of"] == {
        "kind": "rules", "pid": None, "detail": "from the rules on this node; no sidecar runs here",
    }  # fmt: skip
    assert ask(namespace, "plan").startswith("# settings from the rules on this node; no sidecar runs here\n")
    _, found = doctor(namespace)
    assert topic(found, "settings")[0]["found"].endswith(" (from the rules on this node; no sidecar runs here)")
    assert not topic(found, "rules")
    assert state(namespace) == before


def test_where_nothing_is_left_looking_leaves_nothing(namespace: Namespace) -> None:
    before = state(namespace)
    process = program.fork(namespace, "status")
    assert "no running sidecar was found whose settings could be used\n" in process.communicate(timeout=HANG)[1]
    assert process.returncode == 2
    assert state(namespace) == before


def test_the_go_sidecar_has_the_port_and_the_backend_of_its_rules(namespace: Namespace, backend: str) -> None:
    put_in_place(namespace, *FLAGS, "--port=9443", backend=backend)
    other = "legacy" if backend == "nft" else "nft"
    namespace.iptables(other, 4, "-A", "FORWARD", "-p", "udp", "-j", "ACCEPT")
    with go_sidecar(namespace, *FLAGS) as pid:
        status = json.loads(ask(namespace, "status", "--output=json"))
    assert "--port=9443" in status["settings"]
    assert (status["settings_of"]["kind"], status["settings_of"]["pid"]) == ("other", pid)
    assert [each["command"] for each in status["backends"]] == [f"iptables-{backend}"]
    assert status["in_sync"]


# One that runs, and does not repair


def in_sync(execute: Start, backend: str, *flags: str, **variables: str) -> Sidecar:
    sidecar = execute(*FLAGS, f"--iptables-backend={backend}", *flags, **variables)
    sidecar.wait_for("in sync")
    return sidecar


def test_one_that_is_stopped_comes_before_what_is_missing(namespace: Namespace, execute: Start, backend: str) -> None:
    sidecar = in_sync(execute, backend)
    pid = sidecar.process.pid
    sidecar.process.send_signal(signal.SIGSTOP)
    namespace.run("ip", "address", "delete", "10.96.0.2/32", "dev", "lo")
    namespace.iptables(backend, 4, "-F", "INPUT")
    summary, found = doctor(namespace)
    assert (
        f"first: sidecar: pid {pid} (this program) runs here, but is stopped (SIGSTOP): it repairs nothing" in summary
    )
    assert topic(found, "sidecar")[0]["commands"] == [f"kill -CONT {pid}"]
    for name in ("address", "rules"):
        (missing,) = topic(found, name)
        assert (missing["level"], missing["commands"]) == ("fault", [])
        assert missing["remedy"] == f"pid {pid} (this program) does this by itself, see `sidecar` above"
    assert not topic(found, "instances")
    namespace.run("sh", "-c", *topic(found, "sidecar")[0]["commands"])
    until(lambda: namespace.in_place(backend))
    assert not topic(doctor(namespace)[1], "sidecar")
    assert sidecar.stop() == 0


def test_of_two_one_that_is_stopped_is_a_warning(namespace: Namespace, execute: Start) -> None:
    stopped, other = in_sync(execute, "nft"), in_sync(execute, "nft")
    stopped.process.send_signal(signal.SIGSTOP)
    (found,) = topic(doctor(namespace)[1], "sidecar")
    assert (found["level"], found["facts"]["pid"]) == ("warning", stopped.process.pid)
    stopped.process.send_signal(signal.SIGCONT)
    assert (stopped.stop(), other.stop()) == (0, 0)


def test_one_whose_command_hangs_says_so_itself(namespace: Namespace, execute: Start, fake: Fake) -> None:
    env = fake("ip", f'test ! -e /run/hang || sleep {FOREVER}; exec $real "$@"')
    sidecar = in_sync(
        execute, "nft", "--health-address=127.0.0.1:9180", "--command-timeout=1200ms", "--iptables-wait=1s", **env
    )
    namespace.run("touch", "/run/hang")
    namespace.run("ip", "address", "delete", "10.96.0.2/32", "dev", "lo")
    sidecar.wait_for("was killed after")
    summary, found = doctor(namespace)
    assert f"first: sidecar: pid {sidecar.process.pid} (this program) runs here, but hangs: it says " in summary
    assert "was killed after" in topic(found, "sidecar")[0]["found"]
    assert topic(found, "address")[0]["commands"] == []
    namespace.run("rm", "/run/hang")
    assert sidecar.stop() == 0


@pytest.mark.parametrize("what", ["address", "rules"])
def test_one_that_is_fought_is_not_helped_by_doing_its_work(
    namespace: Namespace, execute: Start, backend: str, what: str
) -> None:
    sidecar = in_sync(execute, backend, "--health-address=127.0.0.1:9180")
    flush = f"iptables-{backend} -F INPUT"
    with opponent(namespace, "ip address delete 10.96.0.2/32 dev lo" if what == "address" else flush):
        sidecar.wait_for("only counted from now on")
        summary, found = doctor(namespace)
    (finding,) = topic(found, "sidecar")
    assert f"first: sidecar: {finding['found']}" in summary
    assert finding["found"].startswith(
        f"pid {sidecar.process.pid} (this program) repairs, and something removes it again"
    )
    by_rules = {"nft": "`nft monitor` names", "legacy": "`ausearch -m NETFILTER_CFG"}[backend]
    assert ("`bpftrace -e " if what == "address" else by_rules) in finding["remedy"]
    assert not [each for name in ("address", "rules") for each in topic(found, name) if each["commands"]]
    until(lambda: namespace.in_place(backend))
    assert sidecar.stop() == 0


def test_one_without_the_capability_is_named(namespace: Namespace) -> None:
    without = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin"
    with go_sidecar(namespace, *FLAGS, "--port=443", prefix=without) as pid:
        summary, found = doctor(namespace, *FLAGS)
    assert f"first: sidecar: pid {pid} (not Python: the Go sidecar?) runs here, but lacks CAP_NET_ADMIN" in summary
    assert "add NET_ADMIN" in topic(found, "sidecar")[0]["remedy"]
    assert topic(found, "address")[0]["commands"]
    assert not topic(found, "instances")


# What a sidecar that runs would undo


def test_rules_in_the_backend_that_it_uses_are_not_taken_away(
    namespace: Namespace, execute: Start, backend: str
) -> None:
    other = "legacy" if backend == "nft" else "nft"
    sidecar = in_sync(execute, backend)
    _, found = doctor(namespace, f"--iptables-backend={other}")
    (both,) = [each for each in topic(found, "backend") if "has our rules, too" in each["found"]]
    assert both["commands"] == []
    assert both["remedy"] == (
        f"pid {sidecar.process.pid} (this program) keeps them there: run this check with --iptables-backend={backend}, "
        f"or set its --iptables-backend={other} and restart it"
    )
    assert not topic(found, "sidecar")  # it does not repair there: nobody expects it to
    elsewhere = f"pid {sidecar.process.pid} (this program) keeps its rules in the other backend, see `backend` above"
    assert {(each["remedy"], *each["commands"]) for each in topic(found, "rules")} == {(elsewhere,)}
    assert sidecar.stop() == 0


def test_rules_for_the_port_of_another_sidecar_are_not_left_over(namespace: Namespace, backend: str) -> None:
    flags = (*FLAGS, f"--iptables-backend={backend}")
    put_in_place(namespace, *flags, backend=backend)
    namespace.run("sh", "-c", f"iptables-{backend}-save | sed s/443/9443/ | iptables-{backend}-restore --noflush")
    assert "left for 10.96.0.2 and port 9443" in str(topic(doctor(namespace, *flags)[1], "rules"))
    with go_sidecar(namespace, *FLAGS, "--port=9443"):
        assert not topic(doctor(namespace, *flags)[1], "rules")


def test_an_address_that_another_sidecar_keeps_is_not_taken_away(namespace: Namespace, execute: Start) -> None:
    namespace.run("sh", "-c", LINKS)
    put_in_place(namespace, *FLAGS)
    other = in_sync(execute, "nft", "--interface=link0")
    (found,) = topic(doctor(namespace, *FLAGS)[1], "address")
    assert found["found"] == "10.96.0.2/32 is on link0 as well"
    assert found["commands"] == []
    assert found["remedy"] == (
        f"pid {other.process.pid} (this program) needs 10.96.0.2/32 on link0 and would add it again: "
        "change its --ip-address or --interface, or stop it first"
    )
    assert other.stop() == 0


def test_the_scope_is_changed_without_taking_the_address_away(namespace: Namespace, execute: Start) -> None:
    namespace.run("ip", "address", "add", "10.96.0.2/32", "dev", "lo", "scope", "global")
    for runs in (False, True):
        sidecar = in_sync(execute, "nft") if runs else None
        (found,) = topic(doctor(namespace, *FLAGS)[1], "address")
        assert len(found["commands"]) == 4
        for command in found["commands"]:
            namespace.run(*command.split())
            assert namespace.run("ip", "route", "get", "10.96.0.2").startswith("local ")
        assert "scope host lo" in until(lambda: namespace.run("ip", "-oneline", "address", "show", "to", "10.96.0.2"))
        assert not topic(doctor(namespace, *FLAGS)[1], "address")
        if sidecar:
            assert sidecar.stop() == 0
        namespace.run("ip", "address", "delete", "10.96.0.2/32", "dev", "lo")
        namespace.run("ip", "address", "add", "10.96.0.2/32", "dev", "lo", "scope", "global")


def test_a_scope_that_the_sidecar_sets_is_changed_there(namespace: Namespace, execute: Start) -> None:
    sidecar = in_sync(execute, "nft", "--address-scope=global")
    (found,) = topic(doctor(namespace, "--address-scope=host")[1], "address")
    assert found["commands"] == []
    assert found["remedy"] == (
        f"pid {sidecar.process.pid} (this program) has --address-scope=global: restart it with the other one first"
    )
    assert sidecar.stop() == 0
