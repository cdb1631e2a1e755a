"""Several instances on one node, as in a rolling update; and other programs that change the same rules."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.node.claims import Claims
from sidecar.state.model import Address
from support.in_sync import put_in_place
from support.namespace import CIDR, IPV4, Namespace
from support.program import Fake, Start
from support.sweep import sweep
from support.waiting import until

FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables", "--cleanup")

#: Seconds for which programs work against each other: by default, and with --thorough.
SECONDS, THOROUGH_SECONDS = 3, 60


@contextmanager
def never_gone(namespace: Namespace) -> Iterator[None]:
    """Hold that no address is deleted meanwhile, by what the kernel tells of each change."""
    monitor = namespace.start("ip", "monitor", "address")
    assert monitor.stdout

    def told_so_far() -> str:
        """Make a change of one's own; return all that was told until then."""
        namespace.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        told = ""
        while "192.0.2.1" not in told:
            told += monitor.stdout.readline()  # type: ignore[union-attr] # it is a pipe, see above
        namespace.run("ip", "address", "delete", "192.0.2.1/32", "dev", "lo")
        return told

    until(lambda: str(monitor.pid) in namespace.run("cat", "/proc/net/netlink"))
    yield
    told = told_so_far()
    monitor.kill()
    monitor.communicate()
    assert "Deleted" not in told


def test_a_new_instance_keeps_what_the_old_one_would_clean_up(namespace: Namespace, start: Start, backend: str) -> None:
    flags = (*FLAGS, f"--iptables-backend={backend}")
    old = start(*flags)
    old.wait_for("in sync")
    with never_gone(namespace):
        new = start(*flags)
        new.wait_for("in sync")
        assert old.stop() == 0
        assert namespace.in_place(backend)
    assert (
        "left in place because another instance on this node needs it: 10.96.0.2/32 on lo, the rules for 10.96.0.2:443"
        in old.log
    )
    assert new.stop() == 0
    assert "another instance" not in new.log
    assert namespace.is_clean()


@pytest.mark.parametrize("milliseconds", sweep(range(0, 300, 25), (0, 75)))
def test_at_whatever_moment_the_old_one_stops_the_new_one_ends_with_everything_in_place(
    namespace: Namespace, start: Start, milliseconds: int
) -> None:
    flags = (*FLAGS, "--iptables-backend=nft", "--sync-interval=1h")
    old = start(*flags)
    old.wait_for("in sync")
    new = start(*flags)
    time.sleep(milliseconds / 1000)
    assert old.stop() == 0
    new.wait_for("in sync")
    assert namespace.in_place("nft")
    assert new.stop() == 0
    assert namespace.is_clean()


def test_what_only_the_old_one_wants_goes(namespace: Namespace, start: Start) -> None:
    old = start(*FLAGS, "--iptables-backend=nft", "--port=9443")
    new = start(*FLAGS, "--iptables-backend=nft")
    for each in (old, new):
        each.wait_for("in sync")
    with never_gone(namespace):
        assert old.stop() == 0
        assert namespace.in_place("nft")
    assert new.stop() == 0
    assert namespace.is_clean()


def state(pid: int) -> str:
    """Return the letter of a process's state (man 5 proc); of one that has gone, that of a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def test_of_two_that_stop_at_once_the_last_one_removes(
    namespace: Namespace, execute: Start, fake: Fake, tmp_path: Path, backend: str
) -> None:
    # The first one has given up its claims, but still runs when the other one asks who needs what.
    held = "touch $here/cleaning; while [ ! -e $here/go-on ]; do sleep 0.02; done"
    env = fake("ip", f'if [ -e $here/hold ]; then case "$*" in *show*) {held};; esac; fi; exec $real "$@"')
    flags = (*FLAGS, f"--iptables-backend={backend}", "--cleanup-timeout=1h", "--command-timeout=1h")
    put_in_place(namespace, *FLAGS, backend=backend)  # neither changes anything, so neither looks again soon
    first = execute(*flags, **env)
    first.wait_for("in sync")
    second = execute(*flags)
    second.wait_for("in sync")
    # Between two commands: what is held must be a look of its cleanup, not of a pass.
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: state(first.process.pid) == "T" and set(map(state, children(first.process.pid))) <= {"Z"})
    (tmp_path / "hold").touch()
    first.process.send_signal(signal.SIGTERM)
    first.process.send_signal(signal.SIGCONT)
    until((tmp_path / "cleaning").exists)
    assert second.stop() == 0
    assert namespace.is_clean()
    (tmp_path / "go-on").touch()
    assert first.end() == 0


def test_one_that_starts_during_a_cleanup_waits_and_then_sets_up(
    namespace: Namespace, start: Start, fake: Fake, tmp_path: Path
) -> None:
    # The cleanup goes on once the other one waits for it.
    held = "touch $here/cleaning; while [ ! -e $here/go-on ]; do sleep 0.02; done"
    env = fake("ip", f'case "$*" in *delete*) {held};; esac; exec $real "$@"')
    flags = ("--ip-address=10.96.0.2", "--cleanup", "--command-timeout=1h", "--cleanup-timeout=1h")
    old = start(*flags, **env)
    old.wait_for("in sync")
    old.process.send_signal(signal.SIGTERM)
    until((tmp_path / "cleaning").exists)
    new = start(*flags)
    new.wait_for("another instance is cleaning up 10.96.0.2/32 on lo: waiting for it")
    (tmp_path / "go-on").touch()
    assert old.end() == 0
    new.wait_for("in sync")
    assert namespace.addresses() == [CIDR]
    assert new.stop() == 0
    assert namespace.is_clean()


def hold_a_cleanup() -> None:
    """Be somebody who cleans up the address, and does not come to an end."""
    claims = Claims()
    claims.take([Address(IPV4, 32, "lo")], is_over=lambda: False)
    assert not claims.claimed_by_others()
    print("held", flush=True)
    signal.pause()


def test_one_that_waits_can_be_stopped(start: Start, namespace: Namespace) -> None:
    holder = namespace.fork(hold_a_cleanup)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    sidecar = start("--ip-address=10.96.0.2")
    sidecar.wait_for("waiting for it")
    assert sidecar.stop() == 0
    assert namespace.addresses() == []
    holder.kill()
    holder.communicate()


def test_where_the_directory_cannot_be_used_it_says_so_and_cleans_up(namespace: Namespace, start: Start) -> None:
    namespace.run("touch", "/run/apiserver-proxy-sidecar")
    first = start(*FLAGS, "--iptables-backend=nft", "--cleanup-timeout=2s")
    second = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=200ms")
    for each in (first, second):
        each.wait_for("cannot use /run/apiserver-proxy-sidecar")
        each.wait_for("in sync")
    first.stop()  # which the other one works against, as it cannot know better
    until(namespace.in_place)
    assert second.stop() == 0
    assert namespace.is_clean()


def test_one_pass_that_cleans_up_leaves_what_a_daemon_wants(namespace: Namespace, start: Start) -> None:
    daemon = start(*FLAGS, "--iptables-backend=nft")
    daemon.wait_for("in sync")
    once = start(*FLAGS, "--iptables-backend=nft", "--daemon=false")
    assert once.end() == 0
    assert "left in place" in once.log
    assert namespace.in_place("nft")
    assert daemon.stop() == 0


# Everybody at once


def test_several_sidecars_and_others_that_add_and_delete_end_with_one_copy_of_each(
    namespace: Namespace,
    start: Start,
    backend: str,
    thorough: bool,  # noqa: FBT001 - a fixture
) -> None:
    flags = (*FLAGS[:2], f"--iptables-backend={backend}", "--sync-interval=50ms")
    rule = f"OUTPUT -d {CIDR} -p tcp --dport 443 -j NOTRACK"
    others = [
        f"while :; do iptables-{backend} -w 5 -t raw -A {rule}; sleep 0.05; done",
        f"while :; do iptables-{backend} -w 5 -t raw -D {rule}; sleep 0.03; done",
        f"while :; do ip address delete {CIDR} dev lo; sleep 0.05; done",
    ]
    sidecars = [start(*flags) for _ in range(4)]
    noise = [namespace.start("sh", "-c", f"exec 2>/dev/null; {script}") for script in others]
    time.sleep(THOROUGH_SECONDS if thorough else SECONDS)
    for each in noise:
        each.kill()
        each.communicate()
    # For several passes: of two that add at the same moment, one takes its copy away in the next.
    until(lambda: all(namespace.in_place(backend) for _ in range(10)), lambda: namespace.rules(backend))
    for sidecar in sidecars:
        assert sidecar.stop() == 0
    assert namespace.in_place(backend)


@pytest.mark.any_user
@pytest.mark.parametrize("count", sweep(range(8), (0,)))
def test_four_that_start_at_once_end_with_one_copy_of_each(
    namespace: Namespace, start: Start, backend: str, count: int
) -> None:
    assert count >= 0  # the same again
    together = [start(*FLAGS[:2], f"--iptables-backend={backend}", "--daemon=false") for _ in range(4)]
    assert [sidecar.end() for sidecar in together] == [0] * 4
    assert namespace.in_place(backend)


# The lock


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("mkdir /run/xtables.lock", "/run/xtables.lock is a directory: remove it"),
        ("ln -s /nonexistent/lock /run/xtables.lock", "/run/xtables.lock cannot be opened (No such file or directory)"),
    ],
)
def test_a_lock_that_cannot_be_had_is_told_as_what_it_is(
    namespace: Namespace, start: Start, prepare: str, said: str
) -> None:
    subprocess.run([*namespace.prefix, "sh", "-c", prepare], check=True)
    sidecar = start(*FLAGS[:2], "--iptables-backend=legacy")
    assert sidecar.end() == 3
    assert said in sidecar.log
    nft = start(*FLAGS[:2], "--iptables-backend=nft", "--daemon=false")  # it has no such lock
    assert nft.end() == 0
