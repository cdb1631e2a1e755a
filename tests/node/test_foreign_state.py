"""What is not ours stays as it is: generated surroundings, on the real kernel, before set-up and after cleanup."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.node.backends import Backend
from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.state.desired import desired
from sidecar.state.model import Family
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands

pytestmark = pytest.mark.usefixtures("privileged", "_namespaces")

BACKENDS = ("nft", "legacy")
TABLES = ("raw", "mangle", "nat", "filter")
RULES = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True).rules


def almost(words: Sequence[str]) -> list[str]:
    """Return rules that differ from one of ours in one field."""
    rule = " ".join(words)
    other_target = rule.replace("ACCEPT", "DROP").replace("NOTRACK", "CT --notrack")
    return [
        rule.replace("443", "444"),
        rule.replace("10.96.0.2/32", "10.96.0.3/32").replace("::2/128", "::3/128"),
        rule.replace("10.96.0.2/32", "10.96.0.2/31").replace("::2/128", "::2/127"),
        rule.replace("-p tcp -m tcp", "-p udp -m udp"),
        rule.replace("-p tcp", "-i lo -p tcp" if "-d" in rule and "OUTPUT" not in rule else "-o lo -p tcp"),
        rule.replace("-j", "-m comment --comment ours -j"),
        other_target,
        rule.replace("-m tcp", "-m tcp ! --syn -m tcp"),
        f"! {rule}",
    ]  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    addresses: list[tuple[str, str]]
    rules: list[tuple[str, Family, str]]
    policies: list[tuple[str, Family, str]]
    chains: list[tuple[str, Family, str]]


def family_of(rule: str) -> Family:
    return 6 if "::" in rule else 4


rules = st.sampled_from(
    [(rule.table, f"{rule.chain} {variant}") for rule in RULES for variant in almost(rule.match)]
    + [("filter", "INPUT -i lo -j ACCEPT"), ("nat", "PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 8443")]
    + [("mangle", "OUTPUT -j MARK --set-mark 7"), ("raw", "PREROUTING -p icmp -j NOTRACK")]
)
surroundings = st.builds(
    Surroundings,
    addresses=st.lists(
        st.sampled_from(
            [
                ("10.96.0.3/32", "lo"),
                ("10.96.0.2/24", "lo"),
                ("10.96.0.2/32", "v0"),
                ("10.96.0.1/16", "v0"),
                ("fd00:10:96::3/128", "lo"),
                ("fd00:10:96::2/128", "v0"),
                ("fd00:10:96::2/64", "v0"),
            ]
        ),
        unique_by=lambda each: (each[0].split("/")[0] if "::" in each[0] else each[0], each[1]),
    ),
    rules=st.lists(
        st.tuples(st.sampled_from(BACKENDS), rules).map(
            lambda each: (each[0], family_of(each[1][1]), f"-t {each[1][0]} -A {each[1][1]}")
        ),
        max_size=8,
    ),
    policies=st.lists(
        st.tuples(
            st.sampled_from(BACKENDS),
            st.sampled_from([4, 6]),
            st.sampled_from(["INPUT DROP", "FORWARD DROP", "OUTPUT DROP"]),
        ),
        max_size=2,
    ),
    chains=st.lists(
        st.tuples(st.sampled_from(BACKENDS), st.sampled_from([4, 6]), st.sampled_from(["OURS", "KUBE-FIREWALL"])),
        max_size=2,
        unique=True,
    ),
)


def make(namespace: Namespace, around: Surroundings) -> None:
    namespace.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for cidr, link in around.addresses:
        namespace.run("ip", "address", "add", cidr, "dev", link, *(["nodad"] if "::" in cidr else []))
    for backend, family, name in around.chains:
        namespace.iptables(backend, family, "-N", name)
        namespace.iptables(backend, family, "-A", "INPUT", "-j", name)
    for backend, family, rule in around.rules:
        namespace.iptables(backend, family, *rule.split(), check=False)  # not every variant is a rule
    for backend, family, policy in around.policies:
        namespace.iptables(backend, family, "-P", *policy.split())


def state(namespace: Namespace) -> dict[str, object]:
    """Return addresses and every table, as the programs show them; a table that is empty is none."""
    shown: dict[str, object] = {"ip": json.loads(namespace.run("ip", "-json", "address"))}
    saves = [f"{program}-{backend}-save -t" for backend in BACKENDS for program in ("iptables", "ip6tables")]
    looks = [f"echo '# {save} {table}'; {save} {table}" for save in saves for table in TABLES]
    for text in namespace.run("sh", "-e", "-c", "; ".join(looks)).split("# ip")[1:]:
        name, *rest = text.splitlines()
        lines = [line.partition(" [")[0] for line in rest if line[:1] in (":", "-")]
        if any(line.startswith("-") or not line.endswith("ACCEPT") for line in lines):
            shown[name] = lines
    return shown


@pytest.mark.parametrize("backend", BACKENDS)
@given(around=surroundings, insert=st.booleans(), again=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_set_up_and_cleanup_everything_else_is_as_it_was(
    backend: str, around: Surroundings, *, insert: bool, again: bool
) -> None:
    goal = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True, insert=insert)
    with Namespace() as namespace:
        make(namespace, around)
        before = state(namespace)
        run = NamespaceCommands(namespace).run
        families: tuple[Family, ...] = (4, 6)
        backends = {family: Backend(run, family, backend, 5.0, legacy_tables=lambda _: TABLES) for family in families}
        reconciler = Reconciler(goal, IpRoute(run), backends)
        assert reconciler.reconcile().in_sync
        if again:
            assert reconciler.reconcile().changed == ()
        for_cleanup = {family: each.for_cleanup() for family, each in backends.items()}
        assert Reconciler(goal, IpRoute(run), for_cleanup).cleanup(float("inf")).in_sync
        assert state(namespace) == before
