"""What the kernel tells, and what of it concerns us: in a process of its own within a namespace."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from support.namespace import Namespace

#: Listens as the daemon does; for each command on standard input says whether it was told of anything that concerns us.
LISTENER = """
import select, subprocess, sys
sys.path[:0] = [sys.argv[1]]
from ipaddress import ip_address
from sidecar.state.desired import desired
from sidecar.node.events import Events
from sidecar.node.netlink import Watch
ips = [ip_address("10.96.0.2"), ip_address("fd00:10:96::2")]
goal = desired(ips, interface=sys.argv[2], port=443, setup_iptables=True)
families = [4, 6] if sys.argv[3] == "legacy" else []
events = Events(Watch.of(goal))
events.watch_legacy(families)
events.take_sizes()
for command in sys.stdin:
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    poll = select.poll()
    for descriptor in events.descriptors:
        poll.register(descriptor, select.POLLIN)
    told = [events.arrived(descriptor) for descriptor, _ in poll.poll(0)]
    print("told" if any(told) else "found" if events.probe() else "no", events.take_part(), flush=True)
    events.forget()
    events.take_sizes()
"""

ROOT = Path(__file__).parents[2]
OURS = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443"


class Listener:
    def __init__(self, namespace: Namespace, interface: str = "lo", backend: str = "nft") -> None:
        self._process = subprocess.Popen(
            [*namespace.prefix, sys.executable, "-c", LISTENER, str(ROOT), interface, backend],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hears(self, command: str) -> bool:
        return self.answer(command)[0] != "no"

    def answer(self, command: str) -> list[str]:
        """Return how it noticed the command (it was told, it found it by a probe, no), and of what part that was."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().split()

    def end(self) -> None:
        self._process.communicate()


@pytest.mark.parametrize(
    ("prepare", "change", "concerns"),
    [
        ("true", "ip address add 10.96.0.2/32 dev lo", False),
        ("ip address add 10.96.0.2/32 dev lo", "ip address delete 10.96.0.2/32 dev lo", True),
        ("ip address add fd00:10:96::2/128 dev lo", "ip address delete fd00:10:96::2/128 dev lo", True),
        ("true", "ip address add fd00:10:96::2/128 dev lo nodad preferred_lft 0", False),
        (
            "ip address add fd00:10:96::2/128 dev lo nodad preferred_lft 0",
            "ip address change fd00:10:96::2/128 dev lo nodad",
            True,
        ),
        (
            "ip address add fd00:10:96::2/128 dev lo",
            "ip address change fd00:10:96::2/128 dev lo preferred_lft 0",
            False,
        ),
        ("ip address add 10.96.0.3/32 dev lo", "ip address delete 10.96.0.3/32 dev lo", False),
        ("true", "ip link set lo down", True),
        ("ip link set lo down", "ip link set lo up", False),
        ("ip link add v0 type veth", "ip link delete v0", False),
        ("iptables-nft -A INPUT -j ACCEPT", "iptables-nft -D INPUT -j ACCEPT", True),
        ("iptables-nft -A FORWARD -j ACCEPT", "iptables-nft -D FORWARD -j ACCEPT", False),
        ("iptables-nft -t nat -A OUTPUT -j ACCEPT", "iptables-nft -t nat -F", False),
        ("true", f"iptables-nft -t raw -A OUTPUT {OURS} -j NOTRACK", False),
        (f"iptables-nft -t raw -A OUTPUT {OURS} -j NOTRACK", "iptables-nft -t raw -F", True),
        ("ip6tables-nft -t raw -A OUTPUT -j NOTRACK", "ip6tables-nft -t raw -F OUTPUT", True),
        ("iptables-nft -t raw -A OUTPUT -j NOTRACK", "nft flush ruleset", True),
        ("nft add table ip other", "nft flush ruleset", False),
        ("iptables-nft -A INPUT -j ACCEPT", "nft delete table ip filter", True),
        (
            "iptables-nft -A INPUT -j ACCEPT",
            "printf '*filter\\n-S INPUT\\n-C INPUT -j ACCEPT\\nCOMMIT\\n' | iptables-nft-restore --noflush",
            False,
        ),
    ],
)
def test_what_is_told(namespace: Namespace, prepare: str, change: str, concerns: bool) -> None:  # noqa: FBT001 - a parameter
    listener = Listener(namespace)
    listener.hears(prepare)
    assert listener.hears(change) is concerns
    listener.end()


@pytest.mark.parametrize(
    ("change", "concerns"), [("ip link set v0 down", True), ("ip link delete v0", True), ("ip link set v0 up", False)]
)
def test_an_interface_by_each_of_its_names(namespace: Namespace, change: str, concerns: bool) -> None:  # noqa: FBT001 - a parameter
    namespace.run(
        "sh", "-c", "ip link add v0 type veth && ip link set v0 up && ip link property add dev v0 altname other0"
    )
    for name in ("v0", "other0"):
        listener = Listener(namespace, name)
        if name == "other0" and "delete" in change:
            namespace.run("sh", "-c", "ip link add v0 type veth && ip link property add dev v0 altname other0")
        assert listener.hears(change) is concerns
        listener.hears("ip link set v0 up 2>/dev/null || true")
        listener.end()


#: Sends bytes (in hexadecimal) to the process whose child runs this: by netlink, as anybody with CAP_NET_ADMIN may.
FORGE = """
import os, socket, sys
for protocol in (0, 12):
    forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    forger.sendto(bytes.fromhex(sys.argv[1]), (int(sys.argv[2]), 0))
"""


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("=IHHII", 16, 16, 0, 0, 0),  # RTM_NEWLINK without a payload
        struct.pack("=IHHII", 16, 10 << 8 | 8, 0, 0, 0),  # NFT_MSG_DELRULE without one
        struct.pack("=IHHIIBBBBIHH", 32, 21, 0, 0, 0, 2, 32, 0, 0, 1, 8, 2) + bytes([10, 96, 0, 2]),  # our RTM_DELADDR
        b"\0",
    ],
)
def test_only_the_kernel_is_believed(namespace: Namespace, tmp_path: Path, sent: bytes) -> None:
    forge = tmp_path / "forge.py"
    forge.write_text(FORGE)
    listener = Listener(namespace)
    assert not listener.hears(f"{sys.executable} {forge} {sent.hex()} $PPID")
    assert not listener.hears("ip address add 10.96.0.2/32 dev lo")
    assert listener.hears("ip address delete 10.96.0.2/32 dev lo")
    listener.end()


@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
def test_legacy_tells_by_the_size_of_its_tables(namespace: Namespace, family: str) -> None:
    tool = f"{family}-legacy -w 5"
    listener = Listener(namespace, backend="legacy")
    assert listener.hears(f"{tool} -A INPUT -j ACCEPT")
    assert not listener.hears("true")
    assert listener.hears(f"{tool} -D INPUT -j ACCEPT")
    assert listener.hears(f"{tool} -t raw -A OUTPUT -j ACCEPT")
    assert listener.hears(f"{tool} -t raw -F")
    assert not listener.hears(f"{tool} -t nat -A OUTPUT -j ACCEPT")
    listener.end()


@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
def test_legacy_tells_at_once_when_its_lock_is_given_back(namespace: Namespace, family: str) -> None:
    rules, nothing = "Part.RULES", ["no", "None"]
    tool = f"{family}-legacy -w 5"
    add, delete = f"{tool} -A INPUT -j ACCEPT", f"{tool} -D INPUT -j ACCEPT"
    listener = Listener(namespace, backend="legacy")
    assert listener.answer(add) == ["found", rules]  # there was no file to watch
    assert listener.answer(delete) == ["told", rules]
    assert listener.answer(f"{tool} -S") == nothing
    assert listener.answer("rm /run/xtables.lock; ip address add 10.96.0.2/32 dev lo") == nothing
    assert listener.answer(add) == ["found", rules]  # it is another file by now
    assert listener.answer(delete) == ["told", rules]
    assert listener.answer(f"XTABLES_LOCKFILE=/run/other {add}") == ["found", rules]
    assert listener.answer("ip address delete 10.96.0.2/32 dev lo") == ["told", "Part.LINKS"]
    assert listener.answer(f"ip address add 10.96.0.2/32 dev lo; {delete}; ip address delete 10.96.0.2/32 dev lo") == [
        "told",
        "None",
    ]
    assert listener.answer("rm /run/xtables.lock; mkdir /run/xtables.lock") == nothing
    assert listener.answer(f"XTABLES_LOCKFILE=/run/other {add}") == ["found", rules]
    assert listener.answer("rmdir /run/xtables.lock") == nothing
    assert listener.answer("touch /run/xtables.lock") == nothing
    assert listener.answer("mv /run/xtables.lock /run/other; touch /run/xtables.lock") == nothing
    assert listener.answer(f"XTABLES_LOCKFILE=/run/other {delete}") == ["found", rules]  # that one is not watched
    assert listener.answer(f"XTABLES_LOCKFILE=/run/other {add}") == ["found", rules]
    assert listener.answer("rm /run/xtables.lock") == nothing
    assert listener.answer(delete) == ["found", rules]
    assert listener.answer(add) == ["told", rules]
    listener.end()


def test_a_flood_that_the_queue_does_not_hold_counts_as_told(namespace: Namespace) -> None:
    listener = Listener(namespace)
    batch = "for i in $(seq 3000); do echo address add 10.1.$((i/250)).$((i%250))/32 dev lo; done | ip -batch -"
    again = batch.replace("address add", "address delete")
    assert not listener.hears(batch)
    assert listener.hears(f"for i in 1 2 3 4 5 6; do {again}; {batch}; done")
    listener.end()
