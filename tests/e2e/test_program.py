"""The installed program as its user meets it: flags in; state of the node, text and exit code out."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from sidecar import __version__, flags
from support.namespace import Namespace
from support.program import PROGRAM, Sidecar

Start: TypeAlias = Callable[..., Sidecar]

CIDR = "10.96.0.2/32"
FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables")
ONCE = (*FLAGS, "--daemon=false")


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_place(namespace: Namespace, backend: str = "nft") -> bool:
    return namespace.addresses() == [CIDR] and len(namespace.rules(backend)) == len(set(namespace.rules(backend))) == 5


def is_clean(namespace: Namespace) -> bool:
    return not (namespace.addresses() or namespace.rules("nft") or namespace.rules("legacy"))


# One pass


def test_one_pass_and_what_it_says(namespace: Namespace, start: Start, backend: str) -> None:
    first = start(*ONCE, f"--iptables-backend={backend}")
    assert first.end() == 0
    assert in_place(namespace, backend)
    assert {line[0] for line in first.log.splitlines()} <= {"I"}
    messages = [line.split("] ", 1)[1] for line in first.log.splitlines()[1:]]
    assert re.fullmatch(rf"IPv4 rules by iptables-{backend} [0-9.]+: as --iptables-backend says", messages[0])
    assert messages[1] == "added 10.96.0.2/32 to lo"
    assert len([message for message in messages if message.startswith("rule missing, added: -t ")]) == 5
    assert messages[-1] == f"in sync: 10.96.0.2/32 on lo, 5 rules for port 443 by iptables-{backend}"
    second = start(*ONCE, f"--iptables-backend={backend}")
    assert second.end() == 0
    assert len(second.log.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ip-address=240.0.0.10", "--daemon=false", "--interface=lo"),
        ("--ip-address=240.0.0.10", "--interface=lo"),
        ("--ip-address=10.96.0.2", "--setup-iptables=true", "--cleanup=true", "-v=2", "--logtostderr=true"),
    ],
)
def test_the_manifests_of_the_go_sidecar(namespace: Namespace, start: Start, arguments: tuple[str, ...]) -> None:
    sidecar = start(*arguments)
    sidecar.wait_for("in sync: ")
    cidr = f"{arguments[0].partition('=')[2]}/32"
    assert namespace.addresses() == [cidr]
    assert len(namespace.rules("nft")) == 5 * ("--setup-iptables=true" in arguments)
    assert (sidecar.end() if "--daemon=false" in arguments else sidecar.stop()) == 0
    assert namespace.addresses() == ([] if "--cleanup=true" in arguments else [cidr])
    assert namespace.rules("nft") == []


def test_both_families_at_once(namespace: Namespace, start: Start, backend: str) -> None:
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--setup-iptables", f"--iptables-backend={backend}")
    assert start(*flags, "--daemon=false").end() == 0
    assert namespace.addresses() == [CIDR, "fd00:10:96::2/128"]
    assert len(namespace.rules(backend, 4)) == len(namespace.rules(backend, 6)) == 5
    assert start(*flags, "--daemon=false", "--cleanup").end() == 0
    assert is_clean(namespace)
    assert namespace.rules(backend, 6) == []


def test_an_ipv6_address_can_be_used_at_once(namespace: Namespace, start: Start) -> None:
    namespace.run(
        "sh", "-c", "ip link add link0 type veth peer name link1 && ip link set link0 up && ip link set link1 up"
    )
    assert start("--ip-address=fd00:10:96::2", "--interface=link0", "--daemon=false").end() == 0
    shown = namespace.run("ip", "address", "show", "to", "fd00:10:96::2/128")
    assert "fd00:10:96::2/128" in shown
    assert "tentative" not in shown


def test_the_address_gets_the_scope_that_was_asked_for(namespace: Namespace, start: Start) -> None:
    assert start("--ip-address=10.96.0.2", "--daemon=false").end() == 0
    assert "scope host" in namespace.run("ip", "address", "show", "to", CIDR)
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    assert start("--ip-address=10.96.0.2", "--daemon=false", "--address-scope=global").end() == 0
    assert "scope global" in namespace.run("ip", "address", "show", "to", CIDR)


def test_the_rules_go_in_front_if_so_asked(namespace: Namespace, start: Start, backend: str) -> None:
    namespace.iptables(backend, 4, "-A", "INPUT", "-j", "DROP")
    assert start(*ONCE, f"--iptables-backend={backend}", "--rule-position=insert").end() == 0
    assert namespace.rules(backend)[1] == "-t filter -A INPUT -j DROP"


def test_configured_by_variables_alone(namespace: Namespace, start: Start) -> None:
    sidecar = start(
        SIDECAR_IP_ADDRESS="10.96.0.2",
        SIDECAR_SETUP_IPTABLES="true",
        SIDECAR_DAEMON="false",
        SIDECAR_IPTABLES_BACKEND="nft",
        SIDECAR_IP_ADRESS="10.96.0.3",
    )
    assert sidecar.end() == 0
    assert in_place(namespace)
    assert "variable SIDECAR_IP_ADRESS is not known and ignored; did you mean SIDECAR_IP_ADDRESS?" in sidecar.log


def test_configured_by_a_file(namespace: Namespace, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_IP_ADDRESS=10.96.0.2\nSIDECAR_SETUP_IPTABLES=true\nSIDECAR_DAEMON=false\n")
    assert start(f"--env-file={file}", "--iptables-backend=nft").end() == 0
    assert in_place(namespace)


# What an operator can get wrong


def test_an_interface_that_does_not_exist(namespace: Namespace, start: Start) -> None:
    sidecar = start(*ONCE, "--interface=eth9", "--create-interface=false", "--iptables-backend=nft")
    assert sidecar.end() == 1
    assert "could not add 10.96.0.2/32: interface eth9 does not exist on this node" in sidecar.log
    assert len(namespace.rules("nft")) == 5


@pytest.mark.parametrize("missing", ["ip", "iptables-nft", "ip6tables-nft", "ip6tables-nft-restore"])
def test_a_missing_command_ends_with_3_and_nothing_is_touched(
    namespace: Namespace, start: Start, tmp_path: Path, missing: str
) -> None:
    # A search path on which there is nothing but what is put there. The real programs move out of sight.
    namespace.run("sh", "-c", "cp $(readlink -f $(command -v ip)) /run/ip && cp -dR /usr/sbin /run/")
    namespace.run("mount", "--bind", "/dev/null", namespace.run("readlink", "-f", "/usr/bin/ip").strip())
    namespace.run("mount", "-t", "tmpfs", "tmpfs", "/usr/sbin")
    for name in ("iptables-nft", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-restore"):
        if name != missing:
            (tmp_path / name).symlink_to("/run/sbin/xtables-nft-multi")
    if missing != "ip":
        (tmp_path / "ip").symlink_to("/run/ip")
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--setup-iptables", "--iptables-backend=nft")
    sidecar = start(*flags, prefix=("/usr/bin/env", f"PATH={tmp_path}"))
    assert sidecar.end() == 3
    package = "iproute2" if missing == "ip" else "iptables"
    assert f"] {missing} is not installed: apt-get install {package}" in sidecar.log
    (tmp_path / "ip").unlink(missing_ok=True)
    assert namespace.run("/run/ip", "-oneline", "address", "show", "to", CIDR) == ""


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_a_missing_capability_ends_with_3_and_is_named(namespace: Namespace, start: Start, capability: str) -> None:
    sidecar = start(
        *FLAGS,
        "--iptables-backend=legacy",
        "--cleanup",
        prefix=("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"),
    )
    assert sidecar.end() == 3
    assert f"missing CAP_{capability.upper()}" in sidecar.log
    assert "`iptables-legacy -w 5 -t filter -S INPUT` exited with 3" in sidecar.log
    assert namespace.rules("legacy") == []
    assert namespace.addresses() == []


def test_an_ordinary_user_is_told_what_is_missing(start: Start) -> None:
    sidecar = start(*ONCE, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert sidecar.end() == 3
    assert "missing CAP_NET_ADMIN: run as root" in sidecar.log


@pytest.mark.parametrize("output", ["", "nonsense", "[{}", '[{"ifname": 7}]'])
def test_output_that_cannot_be_read_is_no_absence(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]], output: str
) -> None:
    env = fake("ip", f"printf '%s' '{output}'")
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", **env)
    assert sidecar.end() == 1
    assert "could not look at the addresses: `ip -json -details address show` cannot be understood" in sidecar.log
    assert is_clean(namespace)


def test_a_release_that_is_known_to_be_bad_is_named_once(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]]
) -> None:
    env = fake("iptables-nft", '[ "$1" = --version ] && exec echo "iptables v1.8.10 (nf_tables)"; exec $real "$@"')
    sidecar = start(*FLAGS, "--sync-interval=50ms", "--iptables-backend=nft", **env)
    sidecar.wait_for("in sync")
    time.sleep(0.3)
    assert sidecar.stop() == 0
    assert sidecar.log.count("iptables-nft 1.8.10: its -C does not find rules that are there (kube-router#1676)") == 1
    assert in_place(namespace)


def test_the_backend_is_found_out_by_itself(namespace: Namespace, start: Start, backend: str) -> None:
    if backend == "legacy" and os.geteuid() != 0:
        pytest.skip("which legacy tables there are, the kernel tells to root of the node only")
    namespace.iptables(backend, 4, "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    namespace.iptables("nft" if backend == "legacy" else "legacy", 4, "-A", "INPUT", "-j", "ACCEPT")
    sidecar = start(*ONCE)
    assert sidecar.end() == 0
    assert f"IPv4 rules by iptables-{backend}" in sidecar.log
    assert "Kubernetes' chain KUBE-KUBELET-CANARY is there" in sidecar.log
    assert len(namespace.rules(backend)) == 5


def test_one_pass_with_cleanup_cleans_both_backends(namespace: Namespace, start: Start) -> None:
    assert start(*ONCE, "--iptables-backend=nft").end() == 0
    assert start(*ONCE, "--iptables-backend=legacy", "--cleanup").end() == 0
    assert is_clean(namespace)


def test_a_hung_command_is_killed_and_named(start: Start, fake: Callable[[str, str], dict[str, str]]) -> None:
    env = fake("ip", "sleep 60")
    started = time.monotonic()
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", "--command-timeout=1s", "--iptables-wait=500ms", **env)
    assert sidecar.end() == 1
    assert time.monotonic() - started < 5
    assert "`ip -json -details address show` was killed after 1s" in sidecar.log


def test_a_network_that_belongs_to_another_user_is_a_missing_capability(start: Start) -> None:
    sidecar = start(*ONCE, "--iptables-backend=nft", prefix=("unshare", "--user", "--map-root-user"))
    assert sidecar.end() == 3
    assert "missing CAP_NET_ADMIN" in sidecar.log


def test_an_interface_by_another_of_its_names(namespace: Namespace, start: Start) -> None:
    namespace.run("ip", "link", "add", "link0", "type", "veth")
    namespace.run("ip", "link", "property", "add", "dev", "link0", "altname", "other0")
    for _ in range(2):
        assert start("--ip-address=10.96.0.2", "--daemon=false", "--interface=other0").end() == 0
    assert namespace.addresses("link0") == [CIDR]


def test_a_name_that_is_no_text_does_not_matter(namespace: Namespace, start: Start) -> None:
    namespace.run("sh", "-c", "ip link add $(printf 'a\\351') type veth")
    assert start("--ip-address=10.96.0.2", "--daemon=false").end() == 0
    assert namespace.addresses() == [CIDR]


def test_a_few_descriptors_are_told_to_be_too_few(namespace: Namespace, start: Start) -> None:
    sidecar = start(*ONCE, prefix=("sh", "-c", 'ulimit -n 5; exec "$@"', "sh"))
    assert sidecar.end() == 3
    assert "cannot start: Too many open files: see `ulimit -n`" in sidecar.log
    assert is_clean(namespace)


def test_it_works_with_its_log_closed(namespace: Namespace, start: Start) -> None:
    assert start(*ONCE, "--iptables-backend=nft", prefix=("sh", "-c", 'exec "$@" 2>&- <&- >&-', "sh")).end() == 0
    assert in_place(namespace)


def test_it_works_where_children_were_to_be_ignored(namespace: Namespace, start: Start) -> None:
    script = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert start(*ONCE, "--iptables-backend=nft", prefix=(sys.executable, "-c", script)).end() == 0
    assert in_place(namespace)


# The daemon


def test_what_read_the_settings_is_not_in_its_memory(start: Start) -> None:
    sidecar = start(*FLAGS)
    sidecar.wait_for("in sync")
    assert "pydantic" not in Path(f"/proc/{sidecar.process.pid}/maps").read_text()


def test_a_program_that_cannot_be_executed_does_not_wear_it_out(
    start: Start, fake: Callable[[str, str], dict[str, str]], tmp_path: Path
) -> None:
    env = fake("ip", "")
    (tmp_path / "ip").write_text("#!/nonexistent\n")
    sidecar = start("--ip-address=10.96.0.2", "--sync-interval=20ms", **env)
    sidecar.wait_for("could not be started: FileNotFoundError")
    process = Path(f"/proc/{sidecar.process.pid}")
    before = len(list((process / "fd").iterdir()))
    time.sleep(1)
    assert len(list((process / "fd").iterdir())) <= before + 12  # what one command in flight takes
    assert len((process / "task" / str(sidecar.process.pid) / "children").read_text().split()) <= 1
    assert sidecar.stop() == 0


def test_it_repairs_at_the_interval(namespace: Namespace, start: Start, backend: str) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--sync-interval=300ms")
    sidecar.wait_for("in sync")
    sidecar.log = ""
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    namespace.iptables(backend, 4, "-t", "raw", "-F")
    sidecar.wait_for("-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK\n", 5)
    deadline = time.monotonic() + 5
    while not in_place(namespace, backend):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sidecar.stop() == 0
    assert in_place(namespace, backend)


def test_it_repairs_at_once(namespace: Namespace, start: Start, backend: str) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--sync-interval=1h")
    sidecar.wait_for("in sync")
    time.sleep(4)  # until the looks after the first change are farther apart than this test takes
    sidecar.log = ""
    damages = [
        (("ip", "address", "delete", CIDR, "dev", "lo"), "added 10.96.0.2/32 to lo"),
        ((f"iptables-{backend}", "-t", "raw", "-F", "PREROUTING"), "NOTRACK"),
        ((f"iptables-{backend}", "-F"), "ACCEPT"),
        (("ip", "link", "set", "lo", "down"), "interface lo was down, set up"),
    ]
    for command, said in damages:
        namespace.run(*command)
        started = time.monotonic()
        sidecar.wait_for(said, 1.8)
        while not in_place(namespace, backend):
            assert time.monotonic() - started < 1.8
        sidecar.log = ""
    assert sidecar.stop() == 0


def test_an_opponent_neither_wears_it_out_nor_fills_its_log(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=1h")
    sidecar.wait_for("in sync")
    script = f"while :; do ip address delete {CIDR} dev lo; iptables-nft -t raw -F; sleep 0.1; done 2>/dev/null"
    opponent = namespace.start("sh", "-c", script)
    time.sleep(8)
    opponent.kill()
    opponent.communicate()
    ended = time.monotonic()
    while not in_place(namespace, "nft"):
        assert time.monotonic() - ended < 3
        time.sleep(0.05)
    assert sidecar.stop() == 0
    assert len(sidecar.log.splitlines()) < 40
    assert "something keeps changing it back, counted from now on: added 10.96.0.2/32 to lo" in sidecar.log


def test_a_hangup_makes_it_look_at_once(namespace: Namespace, start: Start) -> None:
    sidecar = start("--ip-address=10.96.0.2", "--sync-interval=1h")
    sidecar.wait_for("in sync")
    time.sleep(0.3)
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    sidecar.log = ""
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.wait_for("added 10.96.0.2/32 to lo", 5)
    assert sidecar.stop() == 0


def test_it_waits_for_an_interface_and_says_so_once(namespace: Namespace, start: Start) -> None:
    sidecar = start("--ip-address=10.96.0.2", "--interface=later", "--create-interface=false", "--sync-interval=200ms")
    sidecar.wait_for("interface later does not exist")
    time.sleep(1.5)
    namespace.run("ip", "link", "add", "later", "type", "veth")
    sidecar.wait_for("added 10.96.0.2/32 to later", 5)
    sidecar.wait_for("in sync after")
    assert sidecar.stop() == 0
    assert sidecar.log.count("does not exist") == 1


def test_in_sync_it_says_nothing_and_sleeps_without_waking_up(start: Start) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=1h")
    sidecar.wait_for("in sync")
    time.sleep(3.5)  # the looks after 1 and 2 s

    def switches() -> str:
        status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
        return str(re.findall(r"ctxt_switches:\s+(\d+)", status))

    before, said = switches(), len(sidecar.log)
    time.sleep(0.4)  # the next look comes 7 s after the start
    assert switches() == before
    assert sidecar.stop() == 0
    assert len(sidecar.log) == said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_everything_in_place(namespace: Namespace, start: Start, number: int) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft")
    sidecar.wait_for("in sync")
    assert sidecar.stop(number) == 0
    assert in_place(namespace)


# Cleanup


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_with_cleanup_takes_everything_away(
    namespace: Namespace, start: Start, backend: str, number: int
) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--cleanup")
    sidecar.wait_for("in sync")
    assert sidecar.stop(number) == 0
    assert is_clean(namespace)
    assert "cleanup done" in sidecar.log


@pytest.mark.parametrize("milliseconds", range(0, 260, 20))
def test_a_stop_at_any_moment_of_a_pass_cleans_up(
    namespace: Namespace, start: Start, backend: str, milliseconds: int
) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--cleanup")
    sidecar.wait_for(" --ip-address=")
    time.sleep(milliseconds / 1000)
    assert sidecar.stop() == 0
    assert is_clean(namespace)


def test_killed_at_any_moment_the_next_run_puts_everything_right(
    namespace: Namespace, start: Start, backend: str
) -> None:
    for milliseconds in range(0, 200, 15):
        sidecar = start(*FLAGS, f"--iptables-backend={backend}")
        sidecar.wait_for(" --ip-address=")
        time.sleep(milliseconds / 1000)
        assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL
        assert start(*ONCE, f"--iptables-backend={backend}").end() == 0
        assert in_place(namespace, backend)
        assert start(*ONCE, f"--iptables-backend={backend}", "--cleanup").end() == 0
        assert is_clean(namespace)


def test_a_stop_while_a_command_hangs_cleans_up_what_it_can_in_time(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]], tmp_path: Path
) -> None:
    env = fake("iptables-nft-restore", f'test -e {tmp_path}/hang && sleep 60; exec $real "$@"')
    sidecar = start(
        *FLAGS, "--iptables-backend=nft", "--cleanup", "--cleanup-timeout=4s", "--sync-interval=100ms", **env
    )
    sidecar.wait_for("in sync")
    (tmp_path / "hang").touch()
    time.sleep(0.5)
    started = time.monotonic()
    assert sidecar.stop() == 1
    assert time.monotonic() - started < 1 + 4 + 1  # the grace of the hung command, the cleanup, and some
    assert namespace.addresses() == []
    assert re.search(r"could not look at the IPv4 rules: `printf .*` was killed after", sidecar.log)
    assert len(namespace.rules("nft")) == 5


def test_what_cannot_be_removed_is_listed(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]]
) -> None:
    env = fake("iptables-nft", 'case "$*" in *-D*PREROUTING*) echo no >&2; exit 2;; esac; exec $real "$@"')
    sidecar = start(*ONCE, "--iptables-backend=nft", "--cleanup", **env)
    assert sidecar.end() == 1
    (rule,) = namespace.rules("nft")
    assert f"cleanup is not done, perhaps left to do: remove rule: {rule}" in sidecar.log
    assert "-D PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK` exited with 2: no" in sidecar.log
    assert namespace.addresses() == []


def test_a_second_signal_ends_it_at_once_and_says_what_may_be_left(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]]
) -> None:
    env = fake("iptables-nft", 'case "$*" in *-D*) sleep 60;; esac; exec $real "$@"')
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--cleanup", **env)
    sidecar.wait_for("in sync")
    sidecar.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    started = time.monotonic()
    assert sidecar.stop() == 1
    assert time.monotonic() - started < 1
    assert sidecar.log.count("perhaps left to do: remove") == 6
    assert len(namespace.rules("nft")) == 5


def test_a_cleanup_happens_also_if_the_pass_found_that_the_node_lacks_something(
    namespace: Namespace, start: Start
) -> None:
    assert start(*ONCE, "--iptables-backend=legacy").end() == 0
    without_raw = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    sidecar = start(*ONCE, "--iptables-backend=legacy", "--cleanup", prefix=without_raw)
    assert sidecar.end() == 3
    assert namespace.addresses() == []
    assert sidecar.log.count("perhaps left to do: remove rule") == 5


def test_two_signals_in_a_row_end_it_in_any_case(namespace: Namespace, start: Start) -> None:
    for milliseconds in (0, 5, 20, 50, 100, 200):
        sidecar = start(*FLAGS, "--iptables-backend=nft", "--cleanup")
        sidecar.wait_for("in sync")
        sidecar.process.send_signal(signal.SIGTERM)
        time.sleep(milliseconds / 1000)
        code = sidecar.stop()
        assert code == (0 if "cleanup done" in sidecar.log else 1)
        assert start(*ONCE, "--iptables-backend=nft", "--cleanup").end() == 0
        assert is_clean(namespace)


def test_a_one_shot_that_is_stopped_is_not_taken_for_done(
    start: Start, fake: Callable[[str, str], dict[str, str]]
) -> None:
    env = fake("ip", 'sleep 3; exec $real "$@"')
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", **env)
    sidecar.wait_until_it_handles(signal.SIGHUP)
    assert sidecar.stop() == 1
    assert "stopped by a signal before the pass was done" in sidecar.log


def test_a_signal_does_not_stop_a_cleanup_that_is_under_way(
    namespace: Namespace, start: Start, fake: Callable[[str, str], dict[str, str]]
) -> None:
    env = fake("iptables-nft", 'case "$*" in *-D*) sleep 0.3;; esac; exec $real "$@"')
    sidecar = start(*ONCE, "--iptables-backend=nft", "--cleanup", **env)
    sidecar.wait_for("removed rule")
    assert sidecar.stop() == 0
    assert is_clean(namespace)


def test_the_address_stays_until_the_lock_lets_the_rules_go(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=legacy", "--cleanup", "--iptables-wait=1s")
    sidecar.wait_for("in sync")
    with namespace.lock_held(3):
        sidecar.process.send_signal(signal.SIGTERM)
        time.sleep(2)
        assert namespace.addresses() == [CIDR]
    assert sidecar.end() == 0
    assert is_clean(namespace)


@pytest.mark.parametrize("milliseconds", [0, 40, 80, 120, 160, 200])
def test_as_the_first_process_of_a_container_it_hears_an_early_signal(
    namespace: Namespace, start: Start, milliseconds: int
) -> None:
    """The kernel drops signals that the first process of a pid namespace has no handler for."""
    in_container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--cleanup", prefix=in_container)
    child = sidecar.first_child()
    sidecar.wait_until_it_handles(signal.SIGTERM, child)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGTERM)
    assert sidecar.end(10) in (0, 128 + signal.SIGTERM)
    assert is_clean(namespace)


def test_a_signal_ends_it_while_it_waits_for_its_settings(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "env")
    sidecar = start(f"--env-file={tmp_path}/env")
    sidecar.wait_until_it_handles(signal.SIGTERM)
    time.sleep(0.3)
    assert sidecar.stop() == 128 + signal.SIGTERM


# With others on the node


def test_several_started_at_once_end_with_one_copy(namespace: Namespace, start: Start, backend: str) -> None:
    for _ in range(8):
        together = [start(*ONCE, f"--iptables-backend={backend}") for _ in range(4)]
        assert [sidecar.end() for sidecar in together] == [0] * 4
        assert in_place(namespace, backend)
        assert start(*ONCE, f"--iptables-backend={backend}", "--cleanup").end() == 0


def test_a_held_lock_is_waited_for_and_said_once(namespace: Namespace, start: Start) -> None:
    with namespace.lock_held(4):
        sidecar = start(*FLAGS, "--iptables-backend=legacy", "--iptables-wait=1s")
        sidecar.wait_for("in sync after", 15)
    assert sidecar.stop() == 0
    assert in_place(namespace, "legacy")
    assert sidecar.log.count("could not look at the IPv4 rules") == 1


# The rest


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("help",), ("run", "--help"), ("--nonsense", "-h")])
def test_help(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == flags.usage() + "\n"
    assert done.stderr == ""


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version(argument: str) -> None:
    done = subprocess.run([PROGRAM, argument], capture_output=True, text=True, check=True)
    assert done.stdout == f"apiserver-proxy-sidecar {__version__}\n"


@pytest.mark.parametrize("argument", ["help", "version"])
def test_help_and_version_load_nothing_that_they_do_not_need(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, argument], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sidecar.flags" in loaded
    assert not loaded & {"pydantic", "sh", "loguru", "asyncio"}


def test_interrupted_while_it_loads_it_ends_without_a_traceback(start: Start) -> None:
    for milliseconds in (0, 20, 60, 100):
        sidecar = start("status", "--ip-address=10.96.0.2")
        sidecar.wait_until_it_handles(signal.SIGTERM)  # before that it is the interpreter that answers
        time.sleep(milliseconds / 1000)
        assert sidecar.stop(signal.SIGINT) in (1, 128 + signal.SIGINT)
