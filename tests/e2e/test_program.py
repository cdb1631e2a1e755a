"""The installed program as its user meets it: flags in; state of the node, text and exit code out."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.settings import completion, usage
from support.namespace import CIDR, Namespace
from support.program import PROGRAM, Fake, Sidecar, Start
from support.sweep import sweep
from support.waiting import FOREVER, until

FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables")
ONCE = (*FLAGS, "--daemon=false")

any_user = pytest.mark.any_user


# One pass


@any_user
def test_one_pass_and_what_it_says(namespace: Namespace, start: Start, backend: str) -> None:
    first = start(*ONCE, f"--iptables-backend={backend}")
    assert first.end() == 0
    assert namespace.in_place(backend)
    assert {line[0] for line in first.log.splitlines()} <= {"I"}
    messages = [line.split("] ", 1)[1] for line in first.log.splitlines()[1:]]
    assert re.fullmatch(rf"IPv4 rules by iptables-{backend} [0-9.]+: set by --iptables-backend", messages[0])
    assert messages[1] == "added 10.96.0.2/32 to lo"
    assert len([message for message in messages if message.startswith("rule missing, added: -t ")]) == 5
    assert messages[-1] == f"in sync: 10.96.0.2/32 on lo, 5 rules for port 443 by iptables-{backend}"
    second = start(*ONCE, f"--iptables-backend={backend}")
    assert second.end() == 0
    assert len(second.log.splitlines()) == 3


@any_user
def test_hundreds_of_copies_go_in_one_pass_and_are_counted_right(
    namespace: Namespace, start: Start, backend: str
) -> None:
    copies = "-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT\n" * 100
    for _ in range(5):  # an ordinary user's socket buffer does not hold all at once
        namespace.run(f"iptables-{backend}-restore", "--noflush", stdin=f"*filter\n{copies}COMMIT\n")
    sidecar = start(*ONCE, f"--iptables-backend={backend}")
    assert sidecar.end() == 0
    assert re.findall(r"removed \d+ copies", sidecar.log) == ["removed 499 copies"]
    assert namespace.in_place(backend)


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


@any_user
def test_both_families_at_once(namespace: Namespace, start: Start, backend: str) -> None:
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--setup-iptables", f"--iptables-backend={backend}")
    assert start(*flags, "--daemon=false").end() == 0
    assert namespace.addresses() == [CIDR, "fd00:10:96::2/128"]
    assert len(namespace.rules(backend, 4)) == len(namespace.rules(backend, 6)) == 5
    assert start(*flags, "--daemon=false", "--cleanup").end() == 0
    assert namespace.is_clean()
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
    assert namespace.in_place()
    assert "unknown variable SIDECAR_IP_ADRESS is ignored; did you mean SIDECAR_IP_ADDRESS?" in sidecar.log


def test_configured_by_a_file(namespace: Namespace, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_IP_ADDRESS=10.96.0.2\nSIDECAR_SETUP_IPTABLES=true\nSIDECAR_DAEMON=false\n")
    assert start(f"--env-file={file}", "--iptables-backend=nft").end() == 0
    assert namespace.in_place()


# What an operator can get wrong


def test_an_interface_that_does_not_exist(namespace: Namespace, start: Start) -> None:
    sidecar = start(*ONCE, "--interface=eth9", "--create-interface=false", "--iptables-backend=nft")
    assert sidecar.end() == 1
    assert "could not add 10.96.0.2/32: interface eth9 does not exist on this node" in sidecar.log
    assert len(namespace.rules("nft")) == 5


@pytest.mark.parametrize("missing", ["ip", "iptables-nft", "ip6tables-nft", "ip6tables-nft-restore"])
def test_a_missing_command_ends_with_3_and_nothing_is_touched(
    namespace: Namespace, execute: Start, tmp_path: Path, missing: str
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
    sidecar = execute(*flags, prefix=("/usr/bin/env", f"PATH={tmp_path}"))
    assert sidecar.end() == 3
    package = "iproute2" if missing == "ip" else "iptables"
    assert f"] {missing} is not installed: apt-get install {package}" in sidecar.log
    (tmp_path / "ip").unlink(missing_ok=True)
    assert namespace.run("/run/ip", "-oneline", "address", "show", "to", CIDR) == ""


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_a_missing_capability_ends_with_3_and_is_named(namespace: Namespace, execute: Start, capability: str) -> None:
    sidecar = execute(
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


@any_user
def test_an_ordinary_user_is_told_what_is_missing(execute: Start) -> None:
    sidecar = execute(*ONCE, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert sidecar.end() == 3
    assert "missing CAP_NET_ADMIN: run as root" in sidecar.log


@pytest.mark.parametrize("output", ["", "nonsense", "[{}", '[{"ifname": 7}]'])
def test_output_that_cannot_be_read_is_no_absence(namespace: Namespace, start: Start, fake: Fake, output: str) -> None:
    env = fake("ip", f"printf '%s' '{output}'")
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", **env)
    assert sidecar.end() == 1
    assert (
        "could not look at the addresses: `ip -json -details address show` printed output that cannot be parsed"
        in sidecar.log
    )
    assert namespace.is_clean()


#: Links as `ip -json` may print them, in front of the real ones; this kernel has no such types.
ODD_LINKS = {
    "an IPv6 address as hardware address": '{"ifindex":77,"ifname":"t6","flags":[],"link_type":"tunnel6",'
    '"address":"2001:db8:1:2::1","addr_info":[]}',
    "no JSON": '{"ifindex":77,"ifname":"t6","flags":[],"linkinfo":{"info_kind":"ip6tnl" remote any },"addr_info":[]}',
    "no flags": '{"ifindex":77,"ifname":"t6","addr_info":[]}',
    "an address of no kind": '{"ifindex":77,"ifname":"t6","flags":[],"addr_info":[{"family":"inet6","local":"x"}]}',
}


@pytest.mark.parametrize("odd", ODD_LINKS.values(), ids=ODD_LINKS)
def test_a_link_that_cannot_be_read_hides_nothing(
    namespace: Namespace, start: Start, fake: Fake, tmp_path: Path, odd: str
) -> None:
    (tmp_path / "odd").write_text(f"[{odd},")
    env = fake(
        "ip", '[ "$*" = "-json -details address show" ] || exec $real "$@"; cat $here/odd; $real "$@" | cut -c2-'
    )
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--sync-interval=50ms", "--cleanup", "-v2")
    sidecar = start(*flags, **env)
    sidecar.wait_for("] pass: in sync", times=4)
    assert namespace.addresses() == [CIDR, "fd00:10:96::2/128"]
    assert sidecar.stop() == 0
    assert namespace.is_clean()
    assert sidecar.log.count("t6 can be read only in part") == ("hardware" not in odd and "tunnel6" not in odd)


def test_what_cannot_be_read_of_the_interface_is_unknown(namespace: Namespace, start: Start, fake: Fake) -> None:
    env = fake("ip", """[ "$*" = "-json -details address show" ] || exec $real "$@"; $real "$@" | sed 's/"flags"/x/'""")
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", **env)
    assert sidecar.end() == 1
    assert "could not look for 10.96.0.2/32 on lo: `ip` prints no JSON for it" in sidecar.log
    assert namespace.is_clean()


def test_an_ip_that_is_not_that_of_iproute2_is_what_the_node_lacks(start: Start, fake: Fake) -> None:
    """BusyBox's prints its whole usage, whatever it does not know."""
    env = fake(
        "ip", "printf 'BusyBox v1.35.0 multi-call binary.\\n\\nUsage: ip [OPTIONS] address|route\\n' >&2; exit 1"
    )
    for flags in (["--daemon=false"], [], ["--daemon=false", "--cleanup"]):
        sidecar = start("--ip-address=10.96.0.2", *flags, **env)
        assert sidecar.end() == 3
        said = "not that of iproute2 (BusyBox v1.35.0 multi-call binary.): needs iproute2: apt-get install iproute2"
        assert said in sidecar.log
        assert "Usage" not in sidecar.log


def test_a_release_that_is_known_to_be_bad_is_named_once(namespace: Namespace, start: Start, fake: Fake) -> None:
    env = fake("iptables-nft", '[ "$1" = --version ] && exec echo "iptables v1.8.10 (nf_tables)"; exec $real "$@"')
    sidecar = start(*FLAGS, "--sync-interval=50ms", "--iptables-backend=nft", "-v2", **env)
    sidecar.wait_for("] pass: in sync", times=4)
    assert sidecar.stop() == 0
    assert sidecar.log.count("iptables-nft 1.8.10: its -C does not find rules that are there (kube-router#1676)") == 1
    assert namespace.in_place()


@any_user
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
    assert namespace.is_clean()


def test_a_hung_command_is_killed_and_named(start: Start, fake: Fake) -> None:
    env = fake("ip", f"sleep {FOREVER}")
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", "--command-timeout=1s", "--iptables-wait=500ms", **env)
    assert sidecar.end() == 1
    assert "`ip -json -details address show` was killed after 1s" in sidecar.log


def test_a_network_that_belongs_to_another_user_is_a_missing_capability(execute: Start) -> None:
    sidecar = execute(*ONCE, "--iptables-backend=nft", prefix=("unshare", "--user", "--map-root-user"))
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


def test_a_few_descriptors_are_told_to_be_too_few(namespace: Namespace, execute: Start) -> None:
    sidecar = execute(*ONCE, prefix=("sh", "-c", 'ulimit -n 5; exec "$@"', "sh"))
    assert sidecar.end() == 3
    assert "cannot start: Too many open files: see `ulimit -n`" in sidecar.log
    assert namespace.is_clean()


@pytest.mark.parametrize("zone", ["UTC+99", "UTC-99", "A-23:30B-24:30", "AAA+24", "nonsense"])
def test_a_time_zone_that_python_does_not_take_is_utc(namespace: Namespace, execute: Start, zone: str) -> None:
    assert execute(*ONCE, TZ=zone).end() == 0
    assert namespace.addresses() == [CIDR]


@pytest.mark.parametrize("command", ["run", "status", "plan", "doctor", "cleanup", "anonymous status"])
def test_without_proc_it_says_so(execute: Start, command: str) -> None:
    without = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc; exec "$@"', "sh")
    word = command.rsplit(maxsplit=1)[-1]
    sidecar = execute(word, *(() if " " in command else ONCE if word == "run" else FLAGS), prefix=without)
    assert sidecar.end() == (2 if " " in command else 3)
    assert ": mount /proc" in sidecar.log
    assert "ulimit" not in sidecar.log


def test_it_works_with_its_log_closed(namespace: Namespace, execute: Start) -> None:
    assert execute(*ONCE, "--iptables-backend=nft", prefix=("sh", "-c", 'exec "$@" 2>&- <&- >&-', "sh")).end() == 0
    assert namespace.in_place()


def test_it_works_where_children_were_to_be_ignored(namespace: Namespace, execute: Start) -> None:
    script = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert execute(*ONCE, "--iptables-backend=nft", prefix=(sys.executable, "-c", script)).end() == 0
    assert namespace.in_place()


# The daemon


def test_what_read_the_settings_is_not_in_its_memory(execute: Start) -> None:
    sidecar = execute(*FLAGS)
    sidecar.wait_for("in sync")
    assert "pydantic" not in Path(f"/proc/{sidecar.process.pid}/maps").read_text()


def test_a_program_that_cannot_be_executed_does_not_wear_it_out(start: Start, fake: Fake, tmp_path: Path) -> None:
    env = fake("ip", "")
    (tmp_path / "ip").write_text("#!/nonexistent\n")
    sidecar = start("--ip-address=10.96.0.2", "--sync-interval=20ms", "-v2", **env)
    sidecar.wait_for("could not be started: FileNotFoundError")
    process = Path(f"/proc/{sidecar.process.pid}")
    before = len(list((process / "fd").iterdir()))
    sidecar.wait_for("] pass: not in sync", times=30)
    assert len(list((process / "fd").iterdir())) <= before + 12  # what one command in flight takes
    assert len((process / "task" / str(sidecar.process.pid) / "children").read_text().split()) <= 1
    assert sidecar.stop() == 0


def test_it_repairs_at_the_interval_what_no_event_tells(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=100ms")
    sidecar.wait_for("in sync")
    rule = namespace.rules("nft")[0]
    namespace.iptables("nft", 4, *rule.split())  # a second copy
    sidecar.wait_for("copy too many: ")
    until(namespace.in_place)
    assert sidecar.stop() == 0
    assert namespace.in_place()


@pytest.fixture
def asleep(start: Start) -> Start:
    """Start a daemon on a node in sync: it has changed nothing, and its next look by the clock is hours away."""

    def asleep(*flags: str, **env: str) -> Sidecar:
        assert start(*flags, "--daemon=false").end() == 0
        sidecar = start(*flags, "--sync-interval=12h", **env)
        sidecar.wait_for("in sync")
        return sidecar

    return asleep


@any_user
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (f"ip address delete {CIDR} dev lo", "added 10.96.0.2/32 to lo"),
        ("iptables-B -t raw -F PREROUTING", "rule missing, added: -t raw -A PREROUTING"),
        ("iptables-B -F", "rule missing, added: -t filter -A OUTPUT"),
        ("ip link set lo down", "interface lo was down, set up"),
    ],
)
def test_it_repairs_at_once(namespace: Namespace, asleep: Start, backend: str, damage: str, said: str) -> None:
    sidecar = asleep(*FLAGS, f"--iptables-backend={backend}")
    for _ in range(2):
        sidecar.log = ""
        namespace.run(*damage.replace("iptables-B", f"iptables-{backend}").split())
        sidecar.wait_for(said)
        until(lambda: namespace.in_place(backend))
    assert sidecar.stop() == 0


def test_an_opponent_neither_wears_it_out_nor_fills_its_log(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=1h")
    sidecar.wait_for("in sync")
    script = f"while :; do ip address delete {CIDR} dev lo; iptables-nft -t raw -F; sleep 0.1; done 2>/dev/null"
    opponent = namespace.start("sh", "-c", script)
    sidecar.wait_for("something keeps changing it back, only counted from now on: added 10.96.0.2/32 to lo")
    opponent.kill()
    opponent.communicate()
    until(namespace.in_place)
    assert sidecar.stop() == 0
    assert len(sidecar.log.splitlines()) < 40


def test_a_hangup_makes_it_look_at_once(namespace: Namespace, asleep: Start) -> None:
    sidecar = asleep(*FLAGS, "--iptables-backend=nft")
    namespace.iptables("nft", 4, *namespace.rules("nft")[0].split())  # a second copy, of which no event tells
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.wait_for("copy too many: ")
    assert sidecar.stop() == 0


def test_it_waits_for_an_interface_and_says_so_once(namespace: Namespace, start: Start) -> None:
    flags = ("--ip-address=10.96.0.2", "--interface=later", "--create-interface=false", "--sync-interval=100ms", "-v2")
    sidecar = start(*flags)
    sidecar.wait_for("] pass: not in sync", times=4)
    namespace.run("ip", "link", "add", "later", "type", "veth")
    sidecar.wait_for("added 10.96.0.2/32 to later")
    sidecar.wait_for("in sync after")
    assert sidecar.stop() == 0
    assert sidecar.log.count("does not exist") == 1


def test_in_sync_it_says_nothing_and_sleeps_without_waking_up(asleep: Start) -> None:
    sidecar = asleep(*FLAGS, "--iptables-backend=nft")
    process = Path(f"/proc/{sidecar.process.pid}")

    def switches() -> str:
        return str(re.findall(r"ctxt_switches:\s+(\d+)", (process / "status").read_text()))

    def is_quiet() -> bool:
        before = switches()
        time.sleep(0.2)
        return switches() == before

    until(is_quiet)  # it has gone to sleep
    before, said = switches(), len(sidecar.log)
    time.sleep(0.5)
    assert switches() == before
    assert sidecar.stop() == 0
    assert len(sidecar.log) == said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_everything_in_place(namespace: Namespace, start: Start, number: int) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft")
    sidecar.wait_for("in sync")
    assert sidecar.stop(number) == 0
    assert namespace.in_place()


# Cleanup


@any_user
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_with_cleanup_takes_everything_away(
    namespace: Namespace, start: Start, backend: str, number: int
) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--cleanup")
    sidecar.wait_for("in sync")
    assert sidecar.stop(number) == 0
    assert namespace.is_clean()
    assert "cleanup done" in sidecar.log


@pytest.mark.parametrize("milliseconds", sweep(range(0, 260, 20), (0, 60, 140)))
def test_a_stop_at_any_moment_of_a_pass_cleans_up(
    namespace: Namespace, start: Start, backend: str, milliseconds: int
) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--cleanup")
    sidecar.wait_for(" --ip-address=")
    time.sleep(milliseconds / 1000)
    assert sidecar.stop() == 0
    assert namespace.is_clean()


@pytest.mark.parametrize("milliseconds", sweep(range(0, 200, 15), (0, 45, 90)))
def test_killed_at_any_moment_the_next_run_puts_everything_right(
    namespace: Namespace, start: Start, backend: str, milliseconds: int
) -> None:
    sidecar = start(*FLAGS, f"--iptables-backend={backend}")
    sidecar.wait_for(" --ip-address=")
    time.sleep(milliseconds / 1000)
    assert sidecar.stop(signal.SIGKILL) == -signal.SIGKILL
    assert start(*ONCE, f"--iptables-backend={backend}").end() == 0
    assert namespace.in_place(backend)


def test_a_stop_while_a_command_hangs_cleans_up_what_it_can_in_time(
    namespace: Namespace, start: Start, fake: Fake, tmp_path: Path
) -> None:
    hang = f"test -e $here/hang && touch $here/hanging && sleep {FOREVER}"
    env = fake("iptables-nft-restore", f'{hang}; exec $real "$@"')
    sidecar = start(
        *FLAGS, "--iptables-backend=nft", "--cleanup", "--cleanup-timeout=3s", "--sync-interval=100ms", **env
    )
    sidecar.wait_for("in sync")
    (tmp_path / "hang").touch()
    until((tmp_path / "hanging").exists)
    assert sidecar.stop() == 1
    assert namespace.addresses() == []
    assert re.search(r"could not look at the IPv4 rules: `printf .*` was killed after", sidecar.log)
    assert len(namespace.rules("nft")) == 5


def test_what_cannot_be_removed_is_listed(namespace: Namespace, start: Start, fake: Fake) -> None:
    fake("iptables-nft-restore", 'in=$(cat); case $in in *-D*) exit 126;; esac; echo "$in" | $real "$@"')
    env = fake("iptables-nft", 'case "$*" in *-D*PREROUTING*) echo no >&2; exit 126;; esac; exec $real "$@"')
    sidecar = start(*ONCE, "--iptables-backend=nft", "--cleanup", **env)
    assert sidecar.end() == 1
    (rule,) = namespace.rules("nft")
    assert f"cleanup is incomplete, possibly left to do: remove rule: {rule}" in sidecar.log
    assert "-D PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK` exited with 126: no" in sidecar.log
    assert namespace.addresses() == []


def test_a_second_signal_ends_it_at_once_and_says_what_may_be_left(
    namespace: Namespace, start: Start, fake: Fake, tmp_path: Path
) -> None:
    hang = f"in=$(cat); case $in in *-D*) touch $here/hanging; sleep {FOREVER};; esac"
    env = fake("iptables-nft-restore", f'{hang}; echo "$in" | $real "$@"')
    hours = ("--command-timeout=1h", "--cleanup-timeout=1h")
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--cleanup", *hours, **env)
    sidecar.wait_for("in sync")
    sidecar.process.send_signal(signal.SIGTERM)
    until((tmp_path / "hanging").exists)
    assert sidecar.stop() == 1
    assert sidecar.log.count("possibly left to do: remove") == 6
    assert len(namespace.rules("nft")) == 5


def test_a_cleanup_happens_also_if_the_pass_found_that_the_node_lacks_something(
    namespace: Namespace, execute: Start
) -> None:
    assert execute(*ONCE, "--iptables-backend=legacy").end() == 0
    without_raw = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    sidecar = execute(*ONCE, "--iptables-backend=legacy", "--cleanup", prefix=without_raw)
    assert sidecar.end() == 3
    assert namespace.addresses() == []
    assert sidecar.log.count("possibly left to do: remove rule") == 5


@pytest.mark.parametrize("milliseconds", sweep((0, 5, 20, 50, 100, 200), (0, 20)))
def test_two_signals_in_a_row_end_it_in_any_case(namespace: Namespace, start: Start, milliseconds: int) -> None:
    sidecar = start(*FLAGS, "--iptables-backend=nft", "--cleanup")
    sidecar.wait_for("in sync")
    sidecar.process.send_signal(signal.SIGTERM)
    time.sleep(milliseconds / 1000)
    code = sidecar.stop()
    assert code == (0 if "cleanup done" in sidecar.log else 1)
    assert start(*ONCE, "--iptables-backend=nft", "--cleanup").end() == 0
    assert namespace.is_clean()


def test_a_one_shot_that_is_stopped_is_not_taken_for_done(start: Start, fake: Fake, tmp_path: Path) -> None:
    env = fake("ip", f"touch $here/hanging; sleep {FOREVER}")
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", **env)
    until((tmp_path / "hanging").exists)
    assert sidecar.stop() == 1
    assert "stopped by a signal before the pass was done" in sidecar.log


def test_a_signal_does_not_stop_a_cleanup_that_is_under_way(namespace: Namespace, start: Start, fake: Fake) -> None:
    env = fake("iptables-nft", 'case "$*" in *-D*) sleep 0.3;; esac; exec $real "$@"')
    sidecar = start(*ONCE, "--iptables-backend=nft", "--cleanup", **env)
    sidecar.wait_for("removed rule")
    assert sidecar.stop() == 0
    assert namespace.is_clean()


def test_the_address_stays_until_the_lock_lets_the_rules_go(namespace: Namespace, start: Start) -> None:
    flags = (*FLAGS, "--iptables-backend=legacy", "--cleanup", "--iptables-wait=100ms", "--cleanup-timeout=10m", "-v4")
    sidecar = start(*flags)
    sidecar.wait_for("in sync: ")
    with namespace.lock_held():
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.wait_for("exited with 4", times=2)
        assert namespace.addresses() == [CIDR]
    assert sidecar.end() == 0
    assert namespace.is_clean()


@pytest.mark.parametrize("milliseconds", sweep((0, 40, 80, 120, 160, 200), (0, 80)))
def test_as_the_first_process_of_a_container_it_hears_an_early_signal(
    namespace: Namespace, execute: Start, milliseconds: int
) -> None:
    """The kernel drops signals that the first process of a pid namespace has no handler for."""
    in_container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    sidecar = execute(*FLAGS, "--iptables-backend=nft", "--cleanup", prefix=in_container)
    child = sidecar.first_child()
    sidecar.wait_until_it_handles(signal.SIGTERM, child)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGTERM)
    assert sidecar.end() in (0, 128 + signal.SIGTERM)
    assert namespace.is_clean()


def test_as_the_first_process_of_a_container_it_reaps_orphans(
    namespace: Namespace, execute: Start, backend: str
) -> None:
    """Orphans of an exec become its children; how its own commands ended, it sees all the same."""
    in_container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    sidecar = execute(*FLAGS, f"--iptables-backend={backend}", "--cleanup", "-v=2", prefix=in_container)
    sidecar.wait_for("in sync: ")
    first = sidecar.first_child()
    children = Path(f"/proc/{first}/task/{first}/children")
    enter = ("nsenter", f"--target={first}", "--pid", "--net", "--mount", "--")
    for _ in range(20):
        subprocess.run([*enter, "sh", "-c", "sleep 0.05 & sleep 0 & exit"], check=True)
        os.kill(first, signal.SIGHUP)  # a pass, while they end
    until(lambda: not children.read_text().split(), children.read_text)
    os.kill(first, signal.SIGTERM)
    assert sidecar.end() == 0
    assert "not in sync" not in sidecar.log
    assert namespace.is_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_was_blocked_at_its_start_ends_it_nevertheless(execute: Start, number: int) -> None:
    sidecar = execute(*FLAGS, prefix=("env", "--block-signal"))
    sidecar.wait_for("in sync: ")
    assert sidecar.stop(number) == 0


def test_a_hangup_that_was_blocked_at_its_start_asks_for_a_pass_nevertheless(execute: Start) -> None:
    sidecar = execute(*FLAGS, "-v=2", prefix=("env", "--block-signal"))
    sidecar.wait_for("pass: in sync", times=2)
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.wait_for("pass: in sync", times=3)
    assert sidecar.stop() == 0


def test_a_signal_ends_it_while_it_waits_for_its_settings(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "env")
    sidecar = start(f"--env-file={tmp_path}/env")
    sidecar.wait_until_it_handles(signal.SIGTERM)
    time.sleep(0.3)
    assert sidecar.stop() == 128 + signal.SIGTERM


# With others on the node


def test_a_held_lock_is_tried_again_soon_and_said_once(namespace: Namespace, start: Start) -> None:
    with namespace.lock_held():
        sidecar = start(*FLAGS, "--iptables-backend=legacy", "--iptables-wait=100ms", "--sync-interval=12h", "-v2")
        sidecar.wait_for("] pass: not in sync", times=2)
    sidecar.wait_for("in sync after")
    assert sidecar.stop() == 0
    assert namespace.in_place("legacy")
    assert sidecar.log.count("could not look at the IPv4 rules") == 1


# The rest


@pytest.mark.parametrize(
    ("arguments", "topic"),
    [("--help", ""), ("-h", ""), ("help", ""), ("run --help", "run"), ("--nonsense -h", ""), ("help status", "status")],
)
def test_help(arguments: str, topic: str) -> None:
    done = subprocess.run([PROGRAM, *arguments.split()], capture_output=True, text=True, check=True)
    assert done.stdout == usage.usage(topic) + "\n"
    assert done.stderr == ""


def test_the_help_fits_the_terminal() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    subprocess.run([PROGRAM, "help", "completion"], stdout=theirs, check=True)
    shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    os.close(theirs)
    os.close(ours)
    assert shown == usage.usage("completion", 60) + "\n"


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version(argument: str) -> None:
    done = subprocess.run([PROGRAM, argument], capture_output=True, text=True, check=True)
    assert done.stdout == f"apiserver-proxy-sidecar {__version__}\n"


def test_the_version_as_json() -> None:
    done = subprocess.run([PROGRAM, "version", "--output=json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"schema": "version/v1", "exit": 0, "version": __version__}


def test_completion_prints_a_script() -> None:
    done = subprocess.run([PROGRAM, "completion", "bash"], capture_output=True, text=True, check=True)
    assert done.stdout == completion.script("bash") + "\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("help", 0), ("status --help", 0), ("version -ojson", 0), ("completion fish", 0), ("stauts", 2), ("check", 2)],
)
def test_what_needs_no_settings_loads_nothing_that_it_does_not_need(arguments: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *arguments.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sidecar.settings.options" in loaded
    assert not loaded & {"pydantic", "sh", "loguru", "asyncio"}


@pytest.mark.parametrize("milliseconds", sweep((0, 20, 60, 100), (0, 60)))
def test_interrupted_while_it_loads_it_ends_without_a_traceback(execute: Start, milliseconds: int) -> None:
    sidecar = execute("status", "--ip-address=10.96.0.2")
    sidecar.wait_until_it_handles(signal.SIGTERM)  # before that it is the interpreter that answers
    time.sleep(milliseconds / 1000)
    assert sidecar.stop(signal.SIGINT) in (1, 128 + signal.SIGINT)
