"""status, plan and cleanup, as installed: what they print, that it is true, and that following it helps."""

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.node.claims import Claims
from sidecar.state.model import Address
from support import program
from support.in_sync import put_in_place
from support.namespace import CIDR, IPV4, Namespace
from support.program import PROGRAM, Fake, Sidecar, Start
from support.waiting import FOREVER, HANG, no_hang, until

FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables")
ROOT = Path(__file__).parents[2]
LOCAL = "-s 10.96.0.2/32 -p tcp -m tcp --sport 443"
SEES_LEGACY = pytest.mark.skipif(
    os.geteuid() != 0, reason="which legacy tables there are, only root of the node can read"
)
INPUT = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443"


@dataclass(frozen=True)
class Answer:
    text: str
    code: int

    @property
    def first(self) -> str:
        return self.text.splitlines()[0]

    def json(self) -> Any:  # noqa: ANN401 - JSON is anything
        return json.loads(self.text)


#: What looks like the Go sidecar, before its flags.
GO = ("bash", "-c", 'exec -a apiserver-proxy-sidecar sh -c "while :; do sleep 1; done" "$@"', "sh")


Ask = Callable[..., Answer]


@pytest.fixture
def ask(namespace: Namespace) -> Ask:
    """Run a command of the program in the namespace; nothing may be said on standard error."""

    def ask(*argv: str, stderr: str = "", prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> Answer:
        if prefix:
            process = program.execute(namespace, *argv, prefix=tuple(prefix), env=env)
        else:
            process = program.fork(namespace, *argv, env=env)
        out, err = process.communicate(timeout=HANG)
        assert "Traceback" not in out + err
        assert re.search(stderr, err) if stderr else err == ""
        return Answer(out, process.returncode)

    return ask


def state(namespace: Namespace) -> object:
    links = namespace.run("ip", "-details", "address")
    tables = namespace.run("cat", "/proc/net/ip_tables_names", check=False)
    nft = namespace.run("nft", "list", "ruleset")
    saved = [namespace.run("iptables-legacy-save", "-t", table) for table in tables.split()]
    legacy = [line for text in saved for line in text.splitlines() if not line.startswith("#")]  # but for the time
    return links, tables, nft, legacy, sorted(namespace.run("find", "/run").splitlines())


#: How a node in sync is broken → what `status` says first, and of what.
BROKEN: dict[str, tuple[Sequence[str], str, str]] = {
    "address deleted": (["ip address delete 10.96.0.2/32 dev lo"], "1 missing, of 7", "missing    10.96.0.2/32 on lo"),
    "address elsewhere": (
        [
            "ip address delete 10.96.0.2/32 dev lo",
            "ip link add v0 type veth peer v1",
            "ip address add 10.96.0.2/32 dev v0",
        ],
        "1 on another interface, of 7",
        "elsewhere  10.96.0.2/32 on lo (it is on v0)",
    ),
    "link down": (["ip link set lo down"], "1 down, of 7", "down       interface lo"),
    "rule deleted": ([f"iptables-B -D INPUT {INPUT} -j ACCEPT"], "1 missing, of 7", "missing    -t filter -A INPUT"),
    "a table flushed": (["iptables-B -t raw -F"], "3 missing, of 7", "missing    -t raw -A PREROUTING"),
    "all flushed": (["iptables-B -t raw -F", "iptables-B -F"], "5 missing, of 7", "missing    -t filter -A OUTPUT"),
    "copies": (
        [f"iptables-B -A OUTPUT {LOCAL} -j ACCEPT"] * 2,
        "1 with copies, of 7",
        "3 copies   -t filter -A OUTPUT",
    ),
    "hundreds of copies": (
        [
            "for i in $(seq 250); do echo '-A INPUT " + INPUT + " -j ACCEPT'; done | sed '1i*filter' | sed '$aCOMMIT' "
            "| iptables-B-restore --noflush"
        ],
        "1 with copies, of 7",
        "251 copies -t filter -A INPUT",
    ),
    "all of it": (
        ["ip address delete 10.96.0.2/32 dev lo", "iptables-B -F", f"iptables-B -t raw -A OUTPUT {LOCAL} -j NOTRACK"],
        "3 missing, 1 with copies, of 7",
        "2 copies   -t raw -A OUTPUT",
    ),
}


@pytest.mark.any_user
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_node_is_told_and_the_plan_mends_it(namespace: Namespace, ask: Ask, backend: str, how: str) -> None:
    flags = (*FLAGS, f"--iptables-backend={backend}")
    put_in_place(namespace, *FLAGS, backend=backend)
    faults, first, line = BROKEN[how]
    for fault in faults:
        namespace.run("sh", "-c", fault.replace("iptables-B", f"iptables-{backend}"))
    broken = state(namespace)
    answer = ask("status", *flags)
    assert answer.first.startswith(f"{first}; first ")
    assert line in answer.text
    assert answer.code == 1
    assert max(map(len, answer.text.splitlines())) <= 100
    plan = ask("plan", *flags)
    assert plan.code == 1
    assert state(namespace) == broken  # to look changes nothing
    namespace.run("sh", "-e", "-c", plan.text)
    healthy = ask("status", *flags)
    assert (healthy.first, healthy.code) == ("in sync: 10.96.0.2/32 on lo, 5 rules", 0)
    done = ask("plan", *flags)
    assert (done.text, done.code) == ("# in sync: nothing to do\n", 0)


def test_the_plan_is_what_run_does(namespace: Namespace, ask: Ask, start: Start, backend: str) -> None:
    flags = (*FLAGS, "--ip-address=fd00::2", f"--iptables-backend={backend}", "--rule-position=insert")
    namespace.run(f"iptables-{backend}", "-A", "OUTPUT", "-j", "DROP")
    namespace.run(f"iptables-{backend}", "-A", "OUTPUT", *LOCAL.split(), "-j", "ACCEPT")
    planned = ask("plan", *flags).text
    assert f"-D OUTPUT {LOCAL}" in planned  # it is moved to the front
    namespace.run("sh", "-e", "-c", planned)
    by_plan = namespace.rules(backend), namespace.rules(backend, 6), namespace.addresses()
    with Namespace() as other:
        other.run(f"iptables-{backend}", "-A", "OUTPUT", "-j", "DROP")
        other.run(f"iptables-{backend}", "-A", "OUTPUT", *LOCAL.split(), "-j", "ACCEPT")
        assert Sidecar(program.fork(other, *flags, "--daemon=false")).end() == 0
        assert (other.rules(backend), other.rules(backend, 6), other.addresses()) == by_plan
    assert start(*flags, "--daemon=false").end() == 0


def test_a_plan_goes_to_the_end(namespace: Namespace, ask: Ask) -> None:
    """A duplicate goes once the address works where it belongs: that takes a second pass, and one plan."""
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "v1")
    namespace.run("ip", "address", "add", CIDR, "dev", "v0")
    plan = ask("plan", "--ip-address=10.96.0.2", "--remove-duplicates")
    assert plan.text.splitlines() == [
        "ip address add 10.96.0.2/32 dev lo scope host",
        "ip address delete 10.96.0.2/32 dev v0",
    ]
    namespace.run("sh", "-e", "-c", plan.text)
    assert ask("plan", "--ip-address=10.96.0.2", "--remove-duplicates").code == 0


def test_a_plan_makes_an_interface(namespace: Namespace, ask: Ask) -> None:
    plan = ask("plan", "--ip-address=10.96.0.2", "--interface=proxy0")
    create, add = plan.text.splitlines()
    lines = r"link add name proxy0 type dummy\nlink set dev proxy0 alias apiserver-proxy-sidecar up\n"
    assert create == f"printf '{lines}' | ip -batch -"
    assert add == "ip address add 10.96.0.2/32 dev proxy0 scope host"
    namespace.run("sh", "-e", "-c", plan.text.replace("type dummy", "type ifb"))  # this kernel may have no dummy
    assert ask("status", "--ip-address=10.96.0.2", "--interface=proxy0").first == "in sync: 10.96.0.2/32 on proxy0"


def test_what_no_plan_can_change_is_told(ask: Ask) -> None:
    flags = ("--ip-address=10.96.0.2", "--interface=eth7", "--create-interface=false")
    plan = ask("plan", *flags)
    assert plan.text.startswith("# error: could not add 10.96.0.2/32: interface eth7 does not exist on this node")
    assert plan.code == 1
    status = ask("status", *flags)
    assert status.first == "2 missing, of 2; first missing: eth7"
    assert status.code == 1


def test_a_rule_without_effect_is_told_first(namespace: Namespace, ask: Ask) -> None:
    namespace.run("iptables-nft", "-A", "INPUT", "-j", "DROP")
    put_in_place(namespace, *FLAGS)
    answer = ask("status", *FLAGS)
    assert answer.first == "in sync: 10.96.0.2/32 on lo, 5 rules; but 1 without effect"
    assert "no effect  -t filter -A INPUT" in answer.text
    assert "--rule-position=insert puts it in front" in answer.text
    assert answer.code == 0  # it is what `run` made, and would not change


@SEES_LEGACY
def test_legacy_tables_are_not_made_by_looking(namespace: Namespace, ask: Ask) -> None:
    before = state(namespace)
    for command in ("status", "plan"):
        assert ask(command, *FLAGS, "--iptables-backend=legacy").code == 1
    assert ask("cleanup", *FLAGS, "--dry-run").text == "# none of it is on this node: nothing to do\n"
    assert state(namespace) == before


# Who looks without knowing the settings


def test_the_settings_are_those_of_the_running_sidecar(ask: Ask, execute: Start) -> None:
    daemon = execute("--setup-iptables", "-v=2", SIDECAR_IP_ADDRESS="10.96.0.2,fd00::2", SIDECAR_PORT="9443")
    daemon.wait_for("in sync")
    answer = ask("status")
    assert answer.first == "in sync: 10.96.0.2/32 on lo, fd00::2/128 on lo, 10 rules"
    flags = "--ip-address=10.96.0.2,fd00::2 --port=9443 --setup-iptables=true"
    assert re.search(rf"{flags} +\(of pid \d+ \(this program\),? +running", re.sub(r"\s+", " ", answer.text))
    assert ask("plan").text.endswith("\n# in sync: nothing to do\n")
    other = ask("status", "--port=443")  # what is asked for wins
    assert other.code == 1
    assert "--dport 443 " in other.text


def test_the_settings_may_come_from_its_env_file(ask: Ask, execute: Start, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("SIDECAR_IP_ADDRESS=10.96.0.7\n")
    execute(f"--env-file={tmp_path}/env").wait_for("in sync")
    assert ask("status").first == "in sync: 10.96.0.7/32 on lo"


def test_without_any_sidecar_the_address_is_asked_for(ask: Ask) -> None:
    for command in ("status", "plan", "cleanup", "doctor"):
        stderr = (
            "--ip-address or SIDECAR_IP_ADDRESS is required: (?s:.*)"
            "no running sidecar was found whose settings could be used"
        )
        assert ask(command, stderr=stderr).code == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes a second user")
def test_a_process_that_could_do_nothing_is_not_believed(namespace: Namespace, ask: Ask, execute: Start) -> None:
    execute(*FLAGS).wait_for("in sync")
    nobody = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    liar = namespace.start(*nobody, *GO, "--ip-address=192.0.2.1")
    try:
        assert ask("status").first == "in sync: 10.96.0.2/32 on lo, 5 rules"
    finally:
        liar.kill()
        liar.communicate()


def test_the_go_sidecar_is_asked_for_its_port(namespace: Namespace, ask: Ask) -> None:
    go = namespace.start(*GO, *FLAGS)
    try:
        assert ask("status", stderr="--port is required: pid").code == 2
        assert ask("status", "--port=9443").code == 1
    finally:
        go.kill()
        go.communicate()


def test_nothing_but_what_the_node_should_be_like_is_taken_over(ask: Ask, execute: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "env").write_text(
        f"SIDECAR_IP_ADDRESS=10.96.0.2\nSIDECAR_LOG_FILE={log}\nSIDECAR_LOGTOSTDERR=false\nSIDECAR_V=6\n"
        "SIDECAR_OUTPUT=json\n"
    )
    daemon = execute(f"--env-file={tmp_path}/env", "--alsologtostderr")
    daemon.wait_for("in sync")
    assert ask("status").first == "in sync: 10.96.0.2/32 on lo"
    writers = {line.split()[2] for line in log.read_text().splitlines() if re.match(r"[IWE]\d{4} ", line)}
    assert writers == {str(daemon.process.pid)}
    assert ask("plan").text.startswith("# settings of pid ")


def test_of_two_sidecars_it_must_be_said_which(ask: Ask, execute: Start) -> None:
    for number in (2, 3):
        execute(f"--ip-address=10.96.0.{number}").wait_for("in sync")
    answer = ask(
        "status", stderr=r"sidecars with different settings run here: pid \d+ .*: --ip-address=10\.96\.0\.[23]"
    )
    assert answer.code == 2
    assert ask("status", "--ip-address=10.96.0.3").code == 0


# JSON, watching, signals


def test_watch_tells_each_change_and_ends_in_order(namespace: Namespace, start: Start) -> None:
    watch = program.fork(namespace, "status", "--watch", "--output=json", *FLAGS)
    assert watch.stdout
    assert json.loads(watch.stdout.readline())["exit"] == 1
    assert start(*FLAGS, "--daemon=false").end() == 0
    line = json.loads(watch.stdout.readline())
    while not line["in_sync"]:
        line = json.loads(watch.stdout.readline())
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    line = json.loads(watch.stdout.readline())
    assert line["summary"] == "1 missing, of 7; first missing: 10.96.0.2/32 on lo"
    assert datetime.fromisoformat(line["time"]).tzinfo
    watch.send_signal(signal.SIGTERM)
    assert watch.communicate(timeout=HANG) == ("", "")
    assert watch.returncode == 0


def test_watch_ends_in_order_in_the_middle_of_a_look(namespace: Namespace, fake: Fake, tmp_path: Path) -> None:
    env = fake("ip", f"touch $here/hanging; sleep {FOREVER}")
    watch = program.fork(namespace, "status", "--watch", *FLAGS, "--command-timeout=1h", env=env)
    until((tmp_path / "hanging").exists)
    watch.send_signal(signal.SIGTERM)
    assert watch.communicate(timeout=HANG) == ("", "")
    assert watch.returncode == 0


def test_watch_shows_the_time_of_each_look(namespace: Namespace) -> None:
    watch = program.fork(namespace, "status", "--watch", *FLAGS)
    assert watch.stdout
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", watch.stdout.readline())
    assert "missing, of 7" in watch.stdout.readline()
    namespace.run("ip", "address", "add", CIDR, "dev", "lo")
    while not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", line := watch.stdout.readline()):
        assert line, "it ended"
    watch.send_signal(signal.SIGTERM)
    watch.communicate(timeout=HANG)
    assert watch.returncode == 0


def test_watch_ends_when_nobody_reads_it(namespace: Namespace) -> None:
    watch = program.fork(namespace, "status", "--watch", *FLAGS)
    assert watch.stdout
    watch.stdout.readline()
    watch.stdout.close()  # and nothing happens on the node
    assert watch.wait(timeout=HANG) == 0
    assert watch.stderr
    assert watch.stderr.read() == ""
    watch.stderr.close()


def test_colour_is_for_terminals_only(namespace: Namespace, ask: Ask) -> None:
    assert "\x1b" not in ask("status", *FLAGS).text
    command = ["script", "--quiet", "--return", "--command", f"{PROGRAM} status {' '.join(FLAGS)}", "/dev/null"]
    on_a_terminal = namespace.run(*command, check=False)
    assert "\x1b[31mmissing    \x1b[0m10.96.0.2/32 on lo" in on_a_terminal
    assert "\x1b" not in namespace.run("env", "NO_COLOR=1", *command, check=False)


# cleanup


@SEES_LEGACY
def test_cleanup_removes_everything_and_says_what(namespace: Namespace, ask: Ask, start: Start, backend: str) -> None:
    flags = (*FLAGS, f"--iptables-backend={backend}")
    other = {"nft": "legacy", "legacy": "nft"}[backend]
    assert start(*FLAGS, f"--iptables-backend={other}", "--daemon=false").end() == 0
    assert start(*flags, "--daemon=false").end() == 0
    namespace.run(f"iptables-{backend}", "-A", "INPUT", *INPUT.split(), "-j", "ACCEPT")
    namespace.run(f"iptables-{backend}", "-D", "OUTPUT", *LOCAL.split(), "-j", "ACCEPT")
    namespace.run(f"iptables-{other}", "-D", "OUTPUT", *LOCAL.split(), "-j", "ACCEPT")
    planned = ask("cleanup", "--dry-run", *flags)
    assert planned.code == 1
    assert len(namespace.rules(backend)) == 5
    assert f"iptables-{other}" in planned.text
    done = ask("cleanup", *flags)
    assert done.first == "clean: nothing is left on this node"
    assert done.code == 0
    assert f"removed    -t filter -A INPUT {INPUT} -j ACCEPT (3 copies)" in done.text
    assert "removed    10.96.0.2/32 on lo" in done.text
    assert f"not there  -t filter -A OUTPUT {LOCAL} -j ACCEPT" in done.text
    assert namespace.rules(backend) == namespace.rules(other) == namespace.addresses() == []
    again = ask("cleanup", *flags)
    assert again.code == 0
    assert "removed" not in again.text


def test_the_commands_of_a_dry_run_clean_up(namespace: Namespace, ask: Ask) -> None:
    put_in_place(namespace, *FLAGS)
    namespace.run("sh", "-e", "-c", ask("cleanup", "--dry-run", *FLAGS).text)
    assert namespace.rules("nft") == namespace.addresses() == []
    assert ask("cleanup", "--dry-run", *FLAGS).code == 0


@pytest.mark.parametrize("run", ["shared", "its own"])
def test_cleanup_leaves_what_a_running_sidecar_wants(namespace: Namespace, ask: Ask, execute: Start, run: str) -> None:
    # In a container without the node's /run it can claim nothing, but can be seen to run.
    own_run = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run; exec "$@"', "sh")
    daemon = execute(*FLAGS, prefix=own_run if run == "its own" else ())
    daemon.wait_for("in sync")
    for flags in ((), ("--dry-run",)):
        answer = ask("cleanup", *FLAGS, *flags)
        assert answer.code == 1
        assert "running on this node needs it" in answer.text
    assert namespace.addresses() == [CIDR]
    assert len(namespace.rules("nft")) == 5
    bare = ask("cleanup", stderr=r"--ip-address is required: pid \d+ .* runs here with --ip-address=10\.96\.0\.2")
    assert bare.code == 2


def test_cleanup_takes_its_own_away_beside_another_sidecar(namespace: Namespace, ask: Ask, start: Start) -> None:
    start("--ip-address=10.96.0.2").wait_for("in sync")
    assert start("--ip-address=10.96.0.7", "--daemon=false").end() == 0
    assert ask("cleanup", "--ip-address=10.96.0.7").code == 0
    assert namespace.addresses() == [CIDR]
    assert ask("cleanup", "--dry-run", "--ip-address=10.96.0.7").code == 0


def test_a_cleanup_that_a_signal_ends_claims_nothing_of_what_it_did_not_see(
    namespace: Namespace, fake: Fake, tmp_path: Path
) -> None:
    put_in_place(namespace, *FLAGS)
    env = fake("ip", f"touch $here/hanging; sleep {FOREVER}")
    process = program.fork(namespace, "cleanup", *FLAGS, "--command-timeout=1h", "--cleanup-timeout=1h", env=env)
    until((tmp_path / "hanging").exists)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert out.startswith("not clean: ")
    assert "not there" not in out
    assert "Traceback" not in err


def hold_a_cleanup() -> None:
    """Be somebody who cleans up the address, and does not come to an end."""
    claims = Claims()
    claims.take([Address(IPV4, 32, "lo")], is_over=lambda: False)
    claims.claimed_by_others()
    print(flush=True)
    signal.pause()


def test_cleanup_does_not_wait_for_another_ones_beyond_its_time(namespace: Namespace, ask: Ask) -> None:
    holder = namespace.fork(hold_a_cleanup)
    assert holder.stdout
    holder.stdout.readline()
    try:
        assert ask("cleanup", "--ip-address=10.96.0.2", "--cleanup-timeout=1s").code == 1
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("command", ["status", "plan", "cleanup", "cleanup --dry-run"])
def test_what_is_wrong_with_the_settings_is_told_by_all(ask: Ask, command: str) -> None:
    answer = ask(*command.split(), env={"SIDECAR_IP_ADDRESS": "10.96.0.2", "SIDECAR_SETUP_IPTABLE": "true"})
    assert "unknown variable SIDECAR_SETUP_IPTABLE is ignored" in " ".join(answer.text.split())


def test_cleanup_ends_in_time_and_tells_what_is_left(namespace: Namespace, ask: Ask, start: Start) -> None:
    flags = (*FLAGS, "--iptables-backend=legacy", "--iptables-wait=100ms", "--cleanup-timeout=1s")
    assert start(*flags, "--daemon=false").end() == 0
    with namespace.lock_held(), no_hang():
        answer = ask("cleanup", *flags)
    assert answer.first == "not clean: some objects could not be removed"
    assert "left       remove rule: -t filter -A INPUT" in answer.text
    assert answer.code == 1


# JSON is what docs/json.md says


@pytest.mark.parametrize("command", ["status", "plan", "cleanup --dry-run", "cleanup", "doctor"])
def test_json_has_the_fields_of_its_documentation(ask: Ask, namespace: Namespace, command: str) -> None:
    put_in_place(namespace, *FLAGS)
    namespace.run("iptables-nft", "-F")
    answer = ask(*command.split(), *FLAGS, "--output=json")
    value = answer.json()
    assert value["exit"] == answer.code
    name = value["schema"].replace("/", ".")
    schema = json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text())
    jsonschema.validate(value, schema)
    assert f"`{value['schema']}`" in (ROOT / "docs" / "json.md").read_text()


@pytest.mark.any_user
def test_as_an_ordinary_user_it_says_what_it_could_not_see(namespace: Namespace, ask: Ask) -> None:
    user = ("--reuid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    nobody = ("setpriv", *user, "--bounding-set=-all", "--inh-caps=-all")
    answer = ask("status", *FLAGS, prefix=nobody)
    assert answer.code == 3
    assert answer.first.startswith(
        "missing CAP_NET_ADMIN: run as root, or add it to the container's capabilities; 1 mis"
    )
    assert "; 1 missing, 5 unknown, of 7 settings " in " ".join(answer.text.split())
    assert "missing CAP_NET_ADMIN: run as root" in answer.text
    plan = ask("plan", *FLAGS, prefix=nobody)
    assert plan.code == 3
    assert "# error: could not look at the IPv4 rules: missing CAP_NET_ADMIN" in plan.text
    cleanup = ask("cleanup", "--dry-run", *FLAGS, prefix=nobody)
    assert cleanup.code == 3
    assert cleanup.text.startswith("# error: could not look at the IPv4 rules: missing CAP_NET_ADMIN")
    assert namespace.addresses() == []


def test_another_ip_is_the_first_line(ask: Ask, fake: Fake) -> None:
    env = fake("ip", "echo 'BusyBox v1.36.1 multi-call binary.' >&2; exit 1")
    answer = ask("status", *FLAGS, "--output=json", env=env)
    summary = answer.json()["summary"]
    assert summary.startswith(
        "`ip` on this node is not that of iproute2 (BusyBox v1.36.1 multi-call binary.): needs ip"
    )
    assert summary.endswith("; 5 missing, 2 unknown, of 7")
    assert answer.code == 3


def test_a_program_that_is_missing_is_the_first_line(namespace: Namespace, ask: Ask) -> None:
    namespace.run("sh", "-c", "cp -dR /usr/sbin /run/ && rm /run/sbin/iptables-nft-restore")
    namespace.run("mount", "--bind", "/run/sbin", "/usr/sbin")
    answer = ask("status", *FLAGS, "--iptables-backend=nft", prefix=("env", "--"))
    assert answer.first.startswith("iptables-nft-restore is not installed: apt-get install iptables")
    assert "5 unknown, of 7" in " ".join(answer.text.split())
    assert answer.code == 3


def test_an_ipv6_address_that_may_become_a_source_is_told_and_put_right(namespace: Namespace, ask: Ask) -> None:
    flag = "--ip-address=fd00:10:96::2"
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", "lo", "nodad")
    answer = ask("status", flag)
    assert answer.code == 1
    assert "preferred  fd00:10:96::2/128 on lo (not deprecated, so it may become a source" in answer.text
    answer = ask("plan", flag)
    assert (answer.code, answer.first) == (1, "ip address change fd00:10:96::2/128 dev lo nodad preferred_lft 0")
    namespace.run("sh", "-c", answer.text)
    assert ask("status", flag).code == 0


# What cannot be known


@pytest.fixture
def narrower(namespace: Namespace) -> Callable[[], str]:
    """Let an administrator have a rule of which iptables-nft sees only a part; return what shows the chain."""
    table = "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }; "
    namespace.run("nft", f"{table} add rule ip filter INPUT ip daddr {IPV4} tcp dport 443 ct state new accept")
    return lambda: namespace.run("nft", "list", "chain", "ip", "filter", "INPUT")


def test_a_rule_that_cannot_be_told_from_a_narrower_one_is_unknown(
    ask: Ask, start: Start, narrower: Callable[[], str]
) -> None:
    before, flags = narrower(), (*FLAGS, "--iptables-backend=nft")
    once = start(*flags, "--daemon=false")
    assert once.end() == 0  # an init container must not hold up the node
    unknown = f"unknown whether it is there: -t filter -A INPUT {INPUT} -j ACCEPT: `iptables-nft "
    assert [unknown in line for line in once.log.splitlines() if line[0] in "WE"] == [True]
    assert "in sync: 10.96.0.2/32 on lo, 5 rules for port 443 by iptables-nft (1 unknown)" in once.log
    status = ask("status", *flags)
    assert status.code == 1
    assert status.first.startswith("1 unknown, of 7; first unknown: -t filter -A INPUT ")
    assert "see `nft list chain ip filter INPUT`" in " ".join(status.text.split())
    plan = ask("plan", *flags)
    assert plan.code == 0
    assert plan.text.startswith(f"# warning: {unknown}")
    assert plan.text.endswith("# nothing to do\n")
    dry_run = ask("cleanup", *flags, "--dry-run")
    assert dry_run.code == 1
    assert f"-D INPUT {INPUT}" not in dry_run.text
    assert f"# error: could not remove rule: -t filter -A INPUT {INPUT} -j ACCEPT: " in dry_run.text
    cleanup = ask("cleanup", *flags)
    assert cleanup.code == 1
    assert cleanup.first == "not clean: some objects could not be removed"
    assert f"left       remove rule: -t filter -A INPUT {INPUT} -j ACCEPT" in cleanup.text
    assert "see `nft list chain ip filter INPUT`" in " ".join(cleanup.text.split())
    assert narrower() == before


def test_a_rule_that_cannot_be_known_in_the_other_backend_does_not_pass_for_removed(
    ask: Ask, start: Start, narrower: Callable[[], str]
) -> None:
    before, flags = narrower(), (*FLAGS, "--iptables-backend=legacy")
    assert start(*flags, "--daemon=false").end() == 0
    assert ask("status", *flags).code == 0
    assert ask("cleanup", *flags).code == 1
    assert narrower() == before
