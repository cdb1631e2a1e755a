"""doctor on nodes with a pod: those on which the pod, the node or both do not reach the API server, and healthy ones.

The traffic is real (support/pod_node.py): a connection with TLS from the node and one from the pod, before the node is
broken, while it is, and once the remedy has been followed.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest

from support import program, proxy
from support.pod_node import BOTH, NODE, POD, PodNode, Pods
from support.waiting import HANG

NODES: Final = Path(__file__).parent / "nodes" / "with_pods"

IPV4: Final = ("--ip-address=10.96.0.2", "--setup-iptables")
IPV6: Final = ("--ip-address=fd00:10:96::2", "--setup-iptables")
WITHOUT_RULES: Final = IPV4[:1]

BACKENDS: Final = ("nft", "legacy")

NOBODY: Final = frozenset[str]()
ONLY_POD: Final = frozenset((POD,))
ONLY_NODE: Final = frozenset((NODE,))

#: What the program that was not asked to set up rules is to be run with.
SET_UP: Final = ("--setup-iptables", "--rule-position=insert")


@dataclass
class Report:
    exit: int
    summary: str
    findings: list[dict[str, Any]]

    @property
    def first(self) -> str:
        """What the first line says, but for the numbers."""
        return self.summary.partition("; first: ")[2]

    def cause(self) -> dict[str, Any]:
        """Return the finding that the first line is about."""
        return next(each for each in self.findings if f"{each['topic']}: {each['found']}" == self.first)

    def noise(self) -> list[str]:
        """Return what a healthy node must not show."""
        alarming = [each for each in self.findings if each["level"] in ("fault", "warning", "unknown")]
        vague = [each for each in self.findings if re.search("perhaps|may |without effect", each["found"])]
        return [f"{each['topic']}: {each['found']}" for each in (*alarming, *vague)]


def doctor(node: PodNode, *flags: str) -> Report:
    process = program.fork(node.node, "doctor", *flags, f"--iptables-backend={node.backend}", "--output=json")
    stdout, stderr = process.communicate(timeout=HANG)
    assert stderr == ""
    shown = json.loads(stdout)
    assert shown["exit"] == process.returncode
    return Report(shown["exit"], shown["summary"], shown["findings"])


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    proxy.make_certificate(folder / "valid", names="DNS:kubernetes,IP:10.96.0.2,IP:fd00:10:96::2")
    proxy.make_certificate(folder / "other", names="DNS:www.example.org")
    return folder


@pytest.fixture
def node_with(_namespaces: None, certificates: Path) -> Iterator[Callable[..., PodNode]]:
    """Return what makes a node with a pod."""
    with ExitStack() as stack:

        def made(backend: str, pods: Pods = "cali0") -> PodNode:
            return stack.enter_context(PodNode(certificates / "valid", backend, pods))

        yield made


# Broken nodes


def guard(chains: str, family: str = "inet") -> str:
    """Return the script that adds a table `guard` of nft's own, with these chains, sets and maps."""
    return f"nft -f - <<'END'\ntable {family} guard {{\n{chains}\n}}\nEND\n"


@dataclass(frozen=True)
class Broken:
    """On a node in sync `how` cuts somebody off; doctor's first line says why, and what to do about it mends it."""

    name: str
    how: str
    cut: frozenset[str]
    says: str
    """What is in the first line: the cause, in words that do not depend on how it is put."""

    undo: str = ""
    """What a person does whom a remedy tells it in words; by default, the rule or the table of `how` is removed."""

    exit: int = 1
    flags: tuple[str, ...] = IPV4
    then: tuple[str, ...] = ()
    """Flags that are part of the remedy."""

    before: str = ""
    pods: Pods = "cali0"
    both: bool = False
    """Whether it depends on the backend."""

    def undone(self) -> str:
        """Return the script that a remedy in words amounts to."""
        if self.undo:
            return self.undo
        if tables := re.findall(r"table (\w+) guard", self.how):
            return "\n".join(f"nft delete table {family} guard" for family in tables)
        return re.sub(" -[IA] ", " -D ", self.how)


NODES_THAT_ARE_BROKEN: Final = (
    # Rules of iptables before ours that are for pods only
    Broken("drop by source", "$ipt -I INPUT -s 10.244.0.0/16 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-s 10.244.0.0/16 .*-j DROP", both=True),
    Broken("drop by interface", "$ipt -I INPUT -i cali0 -j DROP", ONLY_POD, "-i cali0 -j DROP", both=True),
    Broken("drop in raw", "$ipt -t raw -I PREROUTING -i cali0 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-A PREROUTING -i cali0 .*-j DROP.* in raw", both=True),
    # Tables of nft itself
    Broken("nft policy drop but for lo", guard("""chain input { type filter hook input priority filter; policy drop;
           iifname lo accept; ct state established,related accept; }"""), ONLY_POD, "inet guard", both=True),
    # Routes
    Broken("local table behind others", "ip rule add pref 32770 lookup local; ip rule del pref 0", BOTH,
           "(table|lookup) local", "ip rule add pref 0 lookup local"),
)  # fmt: skip

#: Those on both backends by turns, on each with --thorough.
CASES: Final = [
    pytest.param(
        each,
        backend,
        id=f"{each.name}-{backend}",
        marks=[pytest.mark.thorough] if each.both and backend != turn else [],
    )
    for each, turn in zip(NODES_THAT_ARE_BROKEN, cycle(BACKENDS), strict=False)
    for backend in (BACKENDS if each.both else BACKENDS[:1])
]


@pytest.mark.parametrize(("broken", "backend"), CASES)
def test_who_is_cut_off_is_named_first_and_the_remedy_mends_it(
    node_with: Callable[..., PodNode], broken: Broken, backend: str
) -> None:
    node = node_with(backend, broken.pods)
    node.sh(broken.before)
    node.put_in_place(*broken.flags)
    assert node.reaches() == BOTH
    node.sh(broken.how, *broken.flags)
    assert node.reaches(broken.cut) == BOTH - broken.cut
    report = doctor(node, *broken.flags)
    assert re.search(broken.says, report.first), report.summary
    assert report.exit == broken.exit
    cause = report.cause()
    if cause["commands"]:
        node.sh("\n".join(cause["commands"]))
    else:
        assert cause["remedy"]
        node.sh(broken.undone(), *broken.flags)
    assert node.reaches() == BOTH
    mended = doctor(node, *broken.flags, *broken.then)
    assert (mended.noise(), mended.exit) == ([], 0)
