"""Rules of an administrator that iptables-nft lists just like ours, though they match less, or do more."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.namespace import IPV4, IPV6, Namespace
from support.program import Start
from support.sweep import sweep

#: One address of each family, and where the administrator's clients are.
NODES = [("ip", "iptables", str(IPV4), "192.0.2.1, 192.0.2.9"), ("ip6", "ip6tables", str(IPV6), "fd00::1, fd00::9")]

OURS = "{family} daddr {ip} tcp dport 443"

#: Of these rules iptables-nft 1.8.9 lists only what ours has, too.
NARROWER = (
    f"{{family}} saddr {{{{ {{clients}} }}}} {OURS} accept",
    f"{OURS} tcp sport {{{{ 1, 2 }}}} accept",
    f"{OURS} @th,96,8 5 accept",
    f"{OURS} @ih,0,8 5 accept",
    f"{OURS} tcp window 5 counter accept",
    f"{OURS} tcp sequence 5 accept",
    f"{OURS} tcp urgptr 5 accept",
    f"{OURS} tcp sport vmap {{{{ 1 : drop }}}} accept",
    f"{OURS} tcp window 5 {{family}} dscp set 5 accept",
    f"tcp dport 444 {OURS} accept",
)

#: How an administrator may spell a rule that is equal to ours.
EQUAL = (
    "{family} daddr {ip} tcp dport 443 accept",
    "{family} daddr {ip} tcp dport 443 counter accept",
    "tcp dport 443 {family} daddr {ip} counter accept",
    "meta protocol {family} {family} daddr {ip} tcp dport 443 accept",
)

CONNECT = """
import socket
family, address = socket.AF_INET6 if ":" in "{ip}" else socket.AF_INET, ("{ip}", 443)
with socket.create_server(address, family=family), socket.create_connection(address, 2):
    print("accepted")
"""


class Administrator:
    """Has a rule in INPUT, which drops all that no rule accepts."""

    def __init__(self, namespace: Namespace, family: str, command: str, ip: str, clients: str) -> None:
        self.namespace, self.family, self.ip = namespace, family, ip
        self.command, self.clients = f"{command}-nft", clients
        self.flags = (f"--ip-address={ip}", "--setup-iptables", "--iptables-backend=nft")
        namespace.run(self.command, "-A", "INPUT", "-p", "tcp", "--sport", "443", "-j", "ACCEPT")
        if family == "ip6":
            namespace.run(self.command, "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT")
        namespace.run(self.command, "-P", "INPUT", "DROP")

    def add(self, rule: str) -> str:
        """Add a rule; return it as nft shows it, with its handle, which changes if the rule is made anew."""
        words = rule.format(family=self.family, ip=self.ip, clients=self.clients)
        self.namespace.run("nft", f"add rule {self.family} filter INPUT {words}")
        return self.rules()[-1]

    def add_ours(self) -> None:
        match = ("-d", self.ip, "-p", "tcp", "--dport", "443")
        self.namespace.run(self.command, "-A", "INPUT", *match, "-j", "ACCEPT")

    def rules(self) -> list[str]:
        lines = self.namespace.run("nft", "-a", "list", "chain", self.family, "filter", "INPUT").splitlines()
        return [line.strip() for line in lines if "dport 443" in line]


@pytest.fixture(params=NODES, ids=["IPv4", "IPv6"])
def administrator(namespace: Namespace, request: pytest.FixtureRequest) -> Administrator:
    return Administrator(namespace, *request.param)


@pytest.fixture
def once(administrator: Administrator, start: Start) -> Callable[..., str]:
    def once(*flags: str) -> str:
        run = start(*administrator.flags, *flags)
        assert run.end() == 0, run.log
        return run.log

    return once


@pytest.mark.parametrize("rule", sweep(NARROWER, NARROWER[::4]))
def test_a_narrower_rule_that_is_listed_like_ours_is_not_ours(
    administrator: Administrator, once: Callable[..., str], rule: str
) -> None:
    before = administrator.add(rule)
    assert "rule missing, added: -t filter -A INPUT " in once("--daemon=false")
    assert administrator.namespace.run("python3", "-c", CONNECT.format(ip=administrator.ip)) == "accepted\n"
    assert "rule missing" not in once("--daemon=false")
    assert administrator.rules()[0] == before
    assert len(administrator.rules()) == 2
    for _ in range(3):
        administrator.add_ours()
    assert "removed 3 copies too many: -t filter -A INPUT " in once("--daemon=false")
    assert administrator.rules()[0] == before
    assert len(administrator.rules()) == 2
    administrator.add_ours()
    once("cleanup")
    assert administrator.rules() == [before]


def test_beside_a_narrower_rule_ours_moves_to_the_front(administrator: Administrator, once: Callable[..., str]) -> None:
    before = administrator.add(f"{OURS} tcp window 5 accept")
    administrator.add("tcp dport 443 drop")
    administrator.add_ours()
    assert "moved to the front" in once("--daemon=false", "--rule-position=insert")
    ours, *others = administrator.rules()
    assert "window" not in ours
    assert others[0] == before
    assert len(others) == 2


def test_what_plan_prints_deletes_the_copy_that_is_ours(
    administrator: Administrator, once: Callable[..., str], start: Start
) -> None:
    before = administrator.add(f"{OURS} tcp window 5 accept")
    once("--daemon=false")
    administrator.add_ours()
    plan = start(*administrator.flags, "plan")
    commands, _ = plan.process.communicate()
    assert commands.startswith(f"nft delete rule {administrator.family} filter INPUT handle ")
    administrator.namespace.run("sh", "-c", commands)
    assert administrator.rules()[0] == before
    assert len(administrator.rules()) == 2


def test_a_copy_beside_a_narrower_rule_that_nft_does_not_delete_is_told(
    administrator: Administrator, once: Callable[..., str], start: Start, tmp_path: Path
) -> None:
    administrator.add(f"{OURS} tcp window 5 accept")
    once("--daemon=false")
    administrator.add_ours()
    before = administrator.rules()
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho it does not work >&2\nexit 1\n")
    broken.chmod(0o755)
    run = start(*administrator.flags, "--daemon=false", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert run.end() == 1
    assert "could not remove 1 copy too many: -t filter -A INPUT " in run.log
    assert f"`nft delete rule {administrator.family} filter INPUT handle " in run.log
    assert "exited with 1: it does not work" in run.log
    assert administrator.rules() == before


@pytest.mark.parametrize("rule", EQUAL)
def test_a_rule_of_nft_that_is_equal_to_ours_is_ours(
    administrator: Administrator, once: Callable[..., str], rule: str
) -> None:
    before = administrator.add(rule)
    once("--daemon=false")
    assert administrator.rules() == [before]
    once("cleanup")
    assert administrator.rules() == []
