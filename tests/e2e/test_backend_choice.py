"""Which backend the daemon uses when evidence comes late, and that the commands that look look there, too."""

import os
import signal

import pytest

from support import program
from support.namespace import IPV6, RULES, Namespace
from support.program import Start
from support.waiting import HANG, until

ADDRESSES = f"--ip-address=10.96.0.2,{IPV6}"
FLAGS = (ADDRESSES, "--setup-iptables")
SEES_LEGACY = pytest.mark.skipif(
    os.geteuid() != 0, reason="which legacy tables there are, only root of the node can read"
)


def ask(namespace: Namespace, *argv: str, prefix: tuple[str, ...] = ()) -> str:
    """Run the installed program, which finds the running one in /proc; return what it prints."""
    return program.execute(namespace, *argv, prefix=prefix).communicate(timeout=HANG)[0]


def numbers(namespace: Namespace) -> list[int]:
    return [len(namespace.rules(backend, family)) for backend in ("nft", "legacy") for family in (4, 6)]


def hint(namespace: Namespace, backend: str) -> None:
    for family in (4, 6):
        namespace.iptables(backend, family, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")


@SEES_LEGACY
def test_rules_move_once_the_kubelet_shows_its_backend(namespace: Namespace, execute: Start) -> None:
    """docs/field.md, C3: on an empty node nft is chosen, and the kubelet comes later with legacy and its hint."""
    sidecar = execute(*FLAGS)
    sidecar.wait_for("in sync")
    assert numbers(namespace) == [RULES, RULES, 0, 0]
    hint(namespace, "legacy")
    sidecar.process.send_signal(signal.SIGHUP)
    until(lambda: numbers(namespace) == [0, 0, RULES, RULES])
    for words in (("status",), ("status", *FLAGS)):
        text = ask(namespace, *words)
        assert text.startswith("in sync")
        assert "iptables-legacy 1.8.9: Kubernetes' chain KUBE-IPTABLES-HINT is there" in text
    assert sidecar.stop() == 0
    assert "IPv4 rules move from iptables-nft to iptables-legacy 1.8.9: Kubernetes' chain" in sidecar.log
    assert "IPv6 rules move from ip6tables-nft to ip6tables-legacy" in sidecar.log


@SEES_LEGACY
@pytest.mark.parametrize("own_run", [False, True], ids=["same /run", "a /run of its own"])
def test_who_looks_looks_where_the_running_sidecar_works(namespace: Namespace, execute: Start, own_run: bool) -> None:  # noqa: FBT001 - a parameter
    """docs/field.md, C3: the hint is for the other backend, and a second sidecar for another address uses that one."""
    prefix = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs t /run; exec "$0" "$@"') if own_run else ()
    execute(*FLAGS, "--iptables-backend=nft", prefix=prefix).wait_for("in sync")
    hint(namespace, "legacy")
    execute("--ip-address=10.96.0.3", "--setup-iptables", "--iptables-backend=legacy").wait_for("in sync")
    for words in (("status", *FLAGS), ("status", *FLAGS, "--output=json")):
        text = ask(namespace, *words)
        assert "iptables-nft" in text
        assert "iptables-legacy" not in text
        assert "the sidecar that runs here uses it" in text
    assert "in sync: nothing to do" in ask(namespace, "plan", *FLAGS)
    found = ask(namespace, "doctor", *FLAGS, "--output=json")
    assert "5 of 5 IPv6 rules are in place" in found
    assert "the node's other components use the other backend (Kubernetes' chain KUBE-IPTABLES-HINT is there)" in found
    assert "not clean" in ask(namespace, "cleanup", *FLAGS)
    assert "iptables-legacy" in ask(namespace, "status", "--ip-address=10.96.0.3", "--setup-iptables")
    assert "iptables-legacy" in ask(namespace, "status", *FLAGS, "--iptables-backend=legacy")


@SEES_LEGACY
def test_of_another_network_namespace_nothing_is_taken(namespace: Namespace, execute: Start) -> None:
    """The claims file is shared, the network is not."""
    with Namespace() as other:
        hint(other, "legacy")
        enter = ("nsenter", f"--net=/proc/{other.pid}/ns/net", "--")
        execute(*FLAGS, prefix=enter).wait_for("in sync")
        assert "iptables-nft" in ask(namespace, "status", *FLAGS)
        assert "iptables-legacy" in ask(namespace, "status", *FLAGS, prefix=enter)


@SEES_LEGACY
def test_without_the_whole_of_proc_legacy_is_seen_all_the_same(namespace: Namespace, execute: Start) -> None:
    """docs/field.md, C1."""
    hint(namespace, "legacy")
    prefix = ("unshare", "-m", "sh", "-c", 'mount -t proc -o subset=pid proc /proc && exec "$0" "$@"')
    sidecar = execute(*FLAGS, "--daemon=false", prefix=prefix)
    assert sidecar.end() == 0
    assert numbers(namespace) == [0, 0, RULES, RULES]


@pytest.mark.parametrize("ip", ["10.96.0.2", str(IPV6)])
def test_a_dormant_table_has_no_effect(namespace: Namespace, start: Start, ip: str) -> None:
    """docs/field.md, C6."""
    flags = (f"--ip-address={ip}", "--setup-iptables", "--iptables-backend=nft")
    assert start(*flags, "--daemon=false").end() == 0
    table = ("ip" if "." in ip else "ip6", "filter")
    namespace.run("nft", "add", "table", *table, "{ flags dormant; }")
    again = start(*flags, "--daemon=false")
    assert again.end() == 0
    family = 4 if "." in ip else 6
    waking = f"nft add table {' '.join(table)}"
    assert f"the nft table {' '.join(table)} has `flags dormant`, so its rules have no effect: `{waking}`" in again.log
    text = ask(namespace, "status", *flags)
    assert "but 2 without effect" in text
    assert text.count("\nno effect") == 2
    found = ask(namespace, "doctor", *flags, "--output=json")
    assert f"the nft table {' '.join(table)} has `flags dormant`, so its rules have no effect" in found
    assert f"3 of 5 IPv{family} rules are in place" in found
    namespace.run(*waking.split())
    assert "no effect" not in ask(namespace, "status", *flags)
    assert "dormant" not in ask(namespace, "doctor", *flags)
