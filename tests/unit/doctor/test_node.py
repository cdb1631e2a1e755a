"""doctor's checks of the node itself, on recorded answers."""

import os
import stat
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar import __version__
from sidecar.doctor.findings import Finding, Level
from sidecar.errors import CommandTimeout
from sidecar.node.command import Result
from sidecar.node.proc import Process
from sidecar.state.desired import desired
from support.findings import finding
from support.namespace import IPV4
from support.recorded_node import BOTH, NO_RULES, Change, RecordedNode, ok

OK, WARNING, FAULT = Level.OK, Level.WARNING, Level.FAULT


UID = os.geteuid()
OURS = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
LO = "-A INPUT -i lo -j ACCEPT"


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def test_what_runs_on_what(node: RecordedNode, mocker: MockerFixture) -> None:
    for name, value in (("python_version", "3.13.1"), ("release", "6.1.0-30-amd64"), ("machine", "x86_64")):
        mocker.patch(f"platform.{name}", return_value=value)
    (found,) = node.findings("program")
    assert found.found == f"apiserver-proxy-sidecar {__version__}, Python 3.13.1, kernel 6.1.0-30-amd64 (x86_64)"
    assert found.facts == {"version": __version__, "python": "3.13.1", "kernel": "6.1.0-30-amd64"}


def lacks(name: str, step: str) -> Finding:
    remedy = f"run as root (uid 0, here {UID}), or add {name.removeprefix('CAP_')} to the container's capabilities"
    return finding(FAULT, "privileges", f"{name} is missing: {step} need it", remedy, node_lacks=True)


def holds(names: str) -> Finding:
    return finding(OK, "privileges", f"uid {UID}, {names}", facts={"uid": UID})


LACKS_ADMIN = lacks("CAP_NET_ADMIN", "addresses and rules")
LACKS_RAW = lacks("CAP_NET_RAW", "rules of the legacy backend")


@pytest.mark.parametrize(
    ("change", "lacking", "expected"),
    [
        (lambda _: None, "CAP_NET_RAW", [holds("CAP_NET_ADMIN")]),
        (lambda _: None, "CAP_NET_ADMIN", [LACKS_ADMIN]),
        (RecordedNode.use_legacy, "", [holds("CAP_NET_ADMIN and CAP_NET_RAW")]),
        (RecordedNode.use_legacy, "CAP_NET_RAW", [LACKS_RAW, holds("CAP_NET_ADMIN")]),
        (RecordedNode.use_legacy, "CAP_NET_ADMIN CAP_NET_RAW", [LACKS_ADMIN, LACKS_RAW]),
        (lambda node: node.set(desired=NO_RULES, backend="legacy"), "CAP_NET_RAW", [holds("CAP_NET_ADMIN")]),
        (lambda node: node.programs.discard("iptables-nft"), "CAP_NET_RAW", [LACKS_RAW, holds("CAP_NET_ADMIN")]),
    ],
    ids=["nft", "no admin", "legacy", "legacy, no raw", "neither", "no rules", "legacy found out"],
)
def test_privileges(node: RecordedNode, change: Change, lacking: str, expected: list[Finding]) -> None:
    change(node)
    node.lacking = set(lacking.split())
    assert node.findings("privileges") == expected


IP = "/usr/sbin/ip (iproute2-6.1.0)"
NFT, LEGACY = ("/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy")


@pytest.mark.parametrize(
    ("backend", "missing", "expected"),
    [
        ("nft", "", [f"ok: {IP}, {NFT}, {NFT}-restore"]),
        ("legacy", "", [f"ok: {IP}, {LEGACY}, {LEGACY}-restore"]),
        ("auto", "iptables-nft", [f"ok: {IP}, {LEGACY}, {LEGACY}-restore"]),
        ("nft", "ip", ["fault: ip is not installed", f"ok: {NFT}, {NFT}-restore"]),
        ("nft", "iptables-nft-restore", ["fault: iptables-nft-restore is not installed", f"ok: {IP}, {NFT}"]),
        ("auto", "iptables iptables-nft iptables-legacy-restore",
         ["fault: iptables is not installed", f"ok: {IP}, /usr/sbin/iptables-restore"]),
    ],
)  # fmt: skip
def test_commands(node: RecordedNode, backend: str, missing: str, expected: list[str]) -> None:
    node.backend = backend
    node.programs -= set(missing.split())
    assert node.texts("commands") == expected


def test_what_to_install(node: RecordedNode) -> None:
    node.backend = "nft"
    node.programs -= {"ip", "iptables-nft"}
    packages = [each.remedy.partition(" (")[0] for each in node.findings("commands") if each.node_lacks]
    assert packages == ["apt-get install iproute2", "apt-get install iptables"]


def test_iptables_is_not_needed_where_no_rules_are_wanted(node: RecordedNode) -> None:
    node.set(desired=NO_RULES, backend="nft")
    node.programs.remove("iptables-nft-restore")
    note = "note: iptables-nft-restore is not installed, so the rules of other programs cannot be checked"
    assert node.texts("commands") == [note, f"ok: {IP}, {NFT}"]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("BusyBox v1.36.1 multi-call binary.\n\nUsage: ip [OPTIONS] …\n", "BusyBox v1.36.1 multi-call binary."),
        ("ip: unknown option -- V\nBusyBox v1.36.1 multi-call binary.\n", "BusyBox v1.36.1 multi-call binary."),
        ("Usage: ip [OPTIONS] …\n", "Usage: ip [OPTIONS] …"),
    ],
)
def test_an_ip_that_is_not_that_of_iproute2(node: RecordedNode, said: str, named: str) -> None:
    node.answers["ip -V"] = Result(1, "", said)
    fault, told = node.findings("commands")
    assert fault.found == f"/usr/sbin/ip: `ip` on this node is not that of iproute2 ({named})"
    assert fault.remedy.startswith("needs iproute2: apt-get install iproute2")
    assert (fault.level, fault.node_lacks) == (Level.FAULT, True)
    assert told.found == f"{NFT}, {NFT}-restore"


def test_an_ip_that_says_nothing(node: RecordedNode) -> None:
    node.answers["ip -V"] = Result(0, "", "")
    unclear = "unknown: `ip -V` printed output that cannot be parsed: no release of iproute2: it printed nothing"
    assert node.texts("commands") == [unclear, f"ok: /usr/sbin/ip, {NFT}, {NFT}-restore"]


def test_an_ip_that_hangs(node: RecordedNode) -> None:
    node.answers["ip -V"] = CommandTimeout(("ip", "-V"), "", "was killed after 10s")
    killed = "unknown: `ip -V` was killed after 10s"
    assert node.texts("commands") == [killed, f"ok: /usr/sbin/ip, {NFT}, {NFT}-restore"]


BY_NFT = "ok: IPv4 rules by iptables-nft 1.8.9: "
AS_TOLD = "set by --iptables-backend"
KIND = "iptables on this node is {}; use iptables-{} to list the rules that are in use"
CANNOT_TELL_WHICH = "unknown: cannot tell whether iptables on this node is nft or legacy"
EFFECT = "they have an effect there as well"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [f"{BY_NFT}no other rules in either backend"]),
        (lambda node: node.set(backend="nft"), [BY_NFT + AS_TOLD]),
        (lambda node: node.programs.remove("iptables-legacy"), [f"{BY_NFT}the only one that is installed"]),
        (lambda node: node.set(backend="nft").programs.remove("iptables-nft"), []),  # it is told with the commands
        (lambda node: node.chain("mangle", "KUBE-IPTABLES-HINT"),
         [f"{BY_NFT}Kubernetes' chain KUBE-IPTABLES-HINT is there"]),
        (lambda node: node.add("nat", "-A POSTROUTING -j MASQUERADE"),
         [f"{BY_NFT}1 rule is there, 0 in the other backend"]),
        (lambda node: node.add("filter", LO, "-A INPUT -j DROP", program="iptables-legacy"),
         ["ok: IPv4 rules by iptables-legacy 1.8.9: 2 rules are there, 0 in the other backend",
          f"note: {KIND.format('nft', 'legacy')}",
          f"warning: the other backend (iptables-nft) has our rules, too: 5; {EFFECT}"]),
        (lambda node: node.set(backend="nft").add("filter", LO, LO, f"-A {OURS}", program="iptables-legacy"),
         [BY_NFT + AS_TOLD, "note: rules like ours let the traffic pass what iptables-legacy has of other programs: 1",
          "note: iptables-legacy has 2 rules of other programs: the kernel applies both backends' rules"]),
        (lambda node: node.set(backend="system"), ["ok: IPv4 rules by iptables 1.8.9: set by --iptables-backend"]),
        (lambda node: node.set(backend="nft").answers.update({"iptables --version": ok("iptables v1.6.1\n")}),
         [BY_NFT + AS_TOLD, f"note: {KIND.format('legacy', 'nft')}"]),
        (lambda node: node.answers.update({"iptables-nft --version": ok("iptables v1.8.10 (nf_tables)\n")}),
         ["ok: IPv4 rules by iptables-nft 1.8.10: no other rules in either backend",
          "warning: iptables-nft 1.8.10: its -C does not find rules that are there (kube-router#1676)"]),
        (lambda node: node.use_legacy().answers.update({"iptables-legacy --version": ok("iptables v1.8.10 (legacy)")}),
         [f"ok: IPv4 rules by iptables-legacy 1.8.10: {AS_TOLD}",
          "note: iptables-legacy 1.8.10: its -C does not find rules that are there (kube-router#1676)",
          f"note: {KIND.format('nft', 'legacy')}"]),
    ],
)  # fmt: skip
def test_which_backend_is_in_use_and_why(node: RecordedNode, change: Change, expected: list[str]) -> None:
    change(node)
    assert node.texts("backend") == expected


def test_an_iptables_that_talks_nonsense_does_not_hide_what_follows(node: RecordedNode) -> None:
    node.set(backend="nft").answers["iptables --version"] = ok("nonsense")
    node.add("filter", LO, program="iptables-legacy")
    assert node.texts("backend") == [
        BY_NFT + AS_TOLD,
        f"{CANNOT_TELL_WHICH}: not the output of `iptables --version`: 'nonsense'",
        "note: iptables-legacy has 1 rule of other programs: the kernel applies both backends' rules",
    ]


def test_each_family_has_its_own_backend(node: RecordedNode) -> None:
    node.desired = BOTH
    node.chain("mangle", "KUBE-KUBELET-CANARY", "ip6tables-nft")
    first, second = node.findings("backend")
    assert first.facts == {"family": 4, "backend": "iptables-nft", "version": "1.8.9"}
    assert second.found == "IPv6 rules by ip6tables-nft 1.8.9: Kubernetes' chain KUBE-KUBELET-CANARY is there"


def test_what_takes_our_rules_out_of_the_other_backend(node: RecordedNode) -> None:
    node.backend = "nft"
    node.add("filter", f"-A {OURS}", f"-A {OURS}", program="iptables-legacy")
    _, found = node.findings("backend")
    assert found.commands == (
        f"printf '*filter\\n-D {OURS}\\n-D {OURS}\\nCOMMIT\\n' | iptables-legacy-restore --noflush -w 5",
    )


def test_a_backend_that_cannot_be_looked_at(node: RecordedNode) -> None:
    node.answers["iptables-nft-restore"] = CommandTimeout(("iptables-nft-restore",), "", "was killed", "x" * 500)
    (told,) = node.texts("backend")
    assert told.startswith("unknown: cannot tell which is in use for IPv4: `iptables-nft-restore` was killed: xxx")
    assert told.endswith("x…")
    assert len(told) < 350


def test_another_backend_that_cannot_be_looked_at(node: RecordedNode) -> None:
    node.set(backend="nft").add("filter", LO, program="iptables-legacy")
    node.answers["iptables-legacy-restore"] = CommandTimeout(("iptables-legacy-restore",), "", "was killed")
    failure = "unknown: could not list the other backend's IPv4 rules: `iptables-legacy-restore` was killed"
    assert node.texts("backend") == [BY_NFT + AS_TOLD, failure]


@pytest.mark.parametrize(("legacy", "level"), [(True, WARNING), (False, Level.NOTE)])
def test_who_holds_the_lock(node: RecordedNode, mocker: MockerFixture, legacy: bool, level: Level) -> None:  # noqa: FBT001 - a table
    if legacy:
        node.use_legacy()
    passing, staying = Process(812, "iptables"), Process(4712, "flock")
    mocker.patch("sidecar.node.proc.holders", side_effect=[[passing, staying, None], [staying, None]])
    found = f"{node.lock} is held by"
    remedy = "if it does not release the lock, end it: kill 4712"
    assert node.findings("lock") == [
        finding(
            level,
            "lock",
            f"{found} pid 4712 (flock); iptables commands are waiting for it",
            remedy,
            facts={"pid": 4712},
        ),
        finding(
            level, "lock", f"{found} a process that cannot be seen from here; iptables commands are waiting for it"
        ),
    ]


def test_who_holds_the_lock_for_a_moment_only_is_not_told(node: RecordedNode, mocker: MockerFixture) -> None:
    mocker.patch("sidecar.node.proc.holders", side_effect=[[Process(812, "iptables")], []])
    assert node.texts("lock") == [f"ok: {node.lock} is not held by any process"]


def no_directory(node: RecordedNode) -> None:
    os.environ["XTABLES_LOCKFILE"] = str(node.lock / "missing" / "lock")


def directory(node: RecordedNode) -> None:
    node.lock.unlink()
    node.lock.mkdir()


def socket_(node: RecordedNode) -> None:
    node.lock.unlink()
    os.mknod(node.lock, stat.S_IFSOCK | 0o600)


MAKES = " does not exist; iptables-legacy creates it"


@pytest.mark.parametrize(
    ("change", "by_nft", "by_legacy", "remedy"),
    [
        (lambda node: node.lock.unlink(), f"ok: {{}}{MAKES}", f"ok: {{}}{MAKES}", ""),
        (no_directory, f"ok: {{}}/missing/lock{MAKES}", "fault: {}/missing/lock does not exist and cannot be created",
         "mount the node's (type FileOrCreate)"),
        (directory, "warning: {} is a directory", "fault: {} is a directory", "remove it, and mount it as a file"),
        (socket_, "note: {} cannot be opened (No such device or address)",
         "fault: {} cannot be opened (No such device or address)", "mount the node's, or set XTABLES_LOCKFILE"),
    ],
)  # fmt: skip
def test_a_lock_that_cannot_be_had(
    node: RecordedNode, change: Change, by_nft: str, by_legacy: str, remedy: str
) -> None:
    change(node)
    assert node.texts("lock") == [by_nft.format(node.lock)]
    assert not node.findings("lock")[0].node_lacks
    node.use_legacy()
    assert node.texts("lock") == [by_legacy.format(node.lock)]
    (found,) = node.findings("lock")
    assert found.remedy.startswith(remedy)
    assert found.node_lacks == by_legacy.startswith("fault")


def rules_missing(node: RecordedNode, program: str = "iptables-nft") -> None:
    for chain in ("PREROUTING", "OUTPUT"):
        del node.chain("raw", chain, program)[1:]


def no_tables_of_legacy(node: RecordedNode) -> None:
    node.use_legacy().tables["iptables-legacy"].clear()


def no_interface(node: RecordedNode) -> None:
    node.desired = desired([IPV4], interface="proxy0", port=443)


RULES_BY_NFT = "has NOTRACK, nftables, NOTRACK in nftables"
CANNOT_TELL_WHETHER = "unknown: cannot tell whether it has"
NO_WAY = "neither the kernel's configuration nor its modules can be read here"


@pytest.mark.parametrize(
    ("change", "modules", "expected"),
    [
        (lambda _: None, {"xt_CT": False}, ["ok: has IPv4 NOTRACK (a rule uses it)"]),
        (lambda node: node.set(desired=NO_RULES), {"xt_CT": False},
         ["ok: nothing more is needed: there are no rules to add, and no interface to create"]),
        (rules_missing, {}, [f"ok: {RULES_BY_NFT}"]),
        (rules_missing, {"xt_CT": False, "nft_compat": None},
         ["fault: does not have NOTRACK", f"{CANNOT_TELL_WHETHER} NOTRACK in nftables (nft_compat): {NO_WAY}",
          "ok: has nftables"]),
        (lambda node: rules_missing(node.use_legacy(), "iptables-legacy"), {"iptable_raw": False},
         ["ok: has NOTRACK"]),
        (no_tables_of_legacy, {"iptable_raw": False},
         ["fault: does not have the IPv4 table raw", "ok: has NOTRACK, the IPv4 table filter"]),
        (no_interface, {}, ["ok: has dummy interfaces, to create proxy0"]),
        (no_interface, {"dummy": False}, ["fault: does not have dummy interfaces, to create proxy0"]),
    ],
)  # fmt: skip
def test_what_the_kernel_has(
    node: RecordedNode, change: Change, modules: dict[str, bool | None], expected: list[str]
) -> None:
    change(node)
    node.modules = modules
    assert node.texts("kernel") == expected


def test_what_the_kernel_lacks_is_to_be_loaded(node: RecordedNode) -> None:
    rules_missing(node)
    node.modules = {"xt_CT": False}
    found = node.findings("kernel")[0]
    assert found.remedy == "modprobe xt_CT, or use a kernel with CONFIG_NETFILTER_XT_TARGET_CT"
    assert found.node_lacks
