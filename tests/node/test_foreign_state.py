"""What is not ours stays as it is: generated surroundings, on the real kernel, before set-up and after cleanup."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import RuleUnknown
from sidecar.node.backends import Backend
from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.state.actions import RemoveRule, Report
from sidecar.state.desired import desired
from sidecar.state.model import Family, Rule
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands
from support.separators import OF_LINES

pytestmark = pytest.mark.usefixtures("privileged", "_namespaces")

BACKENDS = ("nft", "legacy")
TABLES = ("raw", "mangle", "nat", "filter")
RULES = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True).rules

#: What str.splitlines splits at, and what quoting has to mind; a surrogate stands for a byte that is not UTF-8.
SEPARATORS = (
    *OF_LINES,
    '"\n',
    "\\\n",
    "'\n",
    "\udcff\n",
)
NAMES = ("a\x01b", "\x1b[31m", 'q"', "q'", '"},{"', "ü", "\udcff\udcfe", "\\", "-x", "$(x)", "\x7f")
ALIASES = (*NAMES, "two\nlines", '"}]', '"},{"ifindex":9,"ifname":"lo","addr_info":[]},{"a":"', "\u2028", "\udc80")

#: Links that are always there: one pair for addresses and events, one for links upon links.
PAIRS = (("v0", "v1"), ("p0", "p1"))

#: Kinds of links, and how one is added. That of a tunnel by IPv6 has an IPv6 address as its hardware address.
KINDS = {
    "ifb": "type ifb",
    "bridge": "type bridge",
    "macvlan": "link p0 type macvlan",
    "vxlan": "type vxlan id 7 dstport 4789 remote 2001:db8:1:2::1 local 2001:db8:1:2::2 dev p0",
    "sit": "type sit remote 192.0.2.1 local 192.0.2.2",
    "ipip": "type ipip remote 192.0.2.1 local 192.0.2.2",
    "gre": "type gre remote 192.0.2.1 local 192.0.2.2",
    "ip6tnl": "type ip6tnl mode ip6ip6 remote 2001:db8:1:2::1 local 2001:db8:1:2::2",
    "ip6gre": "type ip6gre remote 2001:db8:1:2::1 local 2001:db8:1:2::2",
    "vti6": "type vti6 remote 2001:db8:1:2::1 local 2001:db8:1:2::2",
    "wireguard": "type wireguard",
    "geneve": "type geneve id 7 remote 2001:db8:1:2::1",
    "dummy": "type dummy",
}
TUN = "tun"  # which `ip link` does not add

#: What makes a rule of nft narrower than one of ours, although iptables may take it for the same. Those that iptables
#: lists in the same words are in tests/e2e/test_narrower_rules.py: the kernel of this process knows nothing of them.
NARROWER = (
    "ct state new",
    "ct mark 1",
    "meta mark 1",
    "quota over 1 mbytes",
    'log prefix "-A INPUT"',
    "fib daddr type local",
    "socket transparent 1",
    "numgen random mod 2 0",
    "ct count over 3",
    "tcp option maxseg size 1000",
    "limit rate 1/second",
    "rt classid 1",
    "meta skuid 0",
    "tcp flags syn / syn,ack",
)

#: What happens to links between two passes, and what undoes it.
EVENTS = {
    "nothing": ("", ""),
    "a bridge comes and goes": (
        "ip link add br9 type bridge && ip link set v1 master br9",
        "ip link delete br9",
    ),
    "a link is renamed": ("ip link set dev v0 name w0", "ip link set dev w0 name v0"),
    "names are swapped": (
        "ip link set dev v0 name t; ip link set dev v1 name v0; ip link set dev t name v1",
        "ip link set dev v0 name t; ip link set dev v1 name v0; ip link set dev t name v1",
    ),
    "a link gets an odd name": ("ip link set dev v0 name \x01\udcff", "ip link set dev \x01\udcff name v0"),
}


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


Words = tuple[str, ...]


@dataclass(frozen=True)
class Surroundings:
    addresses: list[tuple[str, str]]
    links: list[tuple[str, str, str]]
    rules: list[tuple[str, Family, Words]]
    policies: list[tuple[str, Family, str]]
    chains: list[tuple[str, Family, str]]
    narrower: list[tuple[Rule, str]]


def commented(rule: Rule, separator: str) -> tuple[str, Words]:
    """Return a rule with a comment that looks as if a rule of ours stood in the listing."""
    comment = f"x{separator}{rule.line}{separator}#"
    return rule.table, (rule.chain, "-p", "tcp", "--dport", "22", "-m", "comment", "--comment", comment, "-j", "RETURN")


def family_of(words: Words) -> Family:
    return 6 if any("::" in word for word in words) else 4


rules = st.one_of(
    st.sampled_from(
        [(rule.table, (rule.chain, *variant.split())) for rule in RULES for variant in almost(rule.match)]
        + [
            (table, tuple(text.split()))
            for table, text in (
                ("filter", "INPUT -i lo -j ACCEPT"),
                ("nat", "PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 8443"),
                ("mangle", "OUTPUT -j MARK --set-mark 7"),
                ("raw", "PREROUTING -p icmp -j NOTRACK"),
            )
        ]
    ),
    st.builds(commented, st.sampled_from(RULES), st.sampled_from(SEPARATORS)),
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
    links=st.lists(
        st.tuples(st.sampled_from([*KINDS, TUN]), st.sampled_from(NAMES), st.sampled_from(ALIASES)),
        max_size=4,
        unique_by=lambda each: each[1],
    ),
    rules=st.lists(
        st.tuples(st.sampled_from(BACKENDS), rules).map(
            lambda each: (each[0], family_of(each[1][1]), ("-t", each[1][0], "-A", *each[1][1]))
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
    narrower=st.lists(st.tuples(st.sampled_from(RULES), st.sampled_from(NARROWER)), max_size=3),
)


def add_link(kind: str, name: str) -> Words:
    if kind == TUN:
        return ("ip", "tuntap", "add", "dev", name, "mode", "tun")
    return ("ip", "link", "add", "name", name, *KINDS[kind].split())


def place(rule: Rule) -> Words:
    return ("ip" if rule.family == 4 else "ip6", *rule.place)


def nft_rule(rule: Rule, condition: str) -> str:
    """Return what adds a narrower rule to the chain of one of ours, as an administrator does it."""
    family, *_ = place(rule)
    priority = {"raw": -300, "filter": 0}[rule.table]
    chain = " ".join(place(rule))
    direction, port = {"-d": ("daddr", "dport"), "-s": ("saddr", "sport")}[rule.match[0]]
    verdict = "notrack" if rule.table == "raw" else "accept"
    return (
        f"add table {family} {rule.table}; "
        f"add chain {chain} {{ type filter hook {rule.chain.lower()} priority {priority}; policy accept; }}; "
        f"add rule {chain} {family} {direction} {rule.match[1].partition('/')[0]} tcp {port} 443 {condition} {verdict}"
    )


def make(namespace: Namespace, around: Surroundings) -> None:
    """Build it by one shell. Not every variant is a rule, and not every kernel has every kind of link."""
    commands: list[Words] = [("ip", "link", "add", a, "type", "veth", "peer", "name", b) for a, b in PAIRS]
    for cidr, link in around.addresses:
        commands.append(("ip", "address", "add", cidr, "dev", link, *(["nodad"] if "::" in cidr else [])))
    for kind, name, alias in around.links:
        commands += [add_link(kind, name), ("ip", "link", "set", "dev", name, "alias", alias)]
    commands += [("nft", nft_rule(rule, condition)) for rule, condition in around.narrower]
    for backend, family, name in around.chains:
        commands += [program(backend, family, "-N", name), program(backend, family, "-A", "INPUT", "-j", name)]
    commands += [program(*rule[:2], *rule[2]) for rule in around.rules]
    commands += [program(backend, family, "-P", *policy.split()) for backend, family, policy in around.policies]
    namespace.run("sh", stdin="\n".join(map(shlex.join, commands)), check=False)


def program(backend: str, family: Family, *words: str) -> Words:
    return (f"{'iptables' if family == 4 else 'ip6tables'}-{backend}", *words)


#: What changes by itself: packet counters, dates, the timers of a bridge; and IPv4 labels when a link is renamed.
VOLATILE = re.compile(r"^#.*\n|\w+_timer +[\d.]+|^(:.*) \[\d+:\d+\]$|^(    inet .*) \S+$", re.MULTILINE)


def settled(text: str) -> str:
    return VOLATILE.sub(lambda found: found[1] or found[2] or "", text)


def state(namespace: Namespace) -> tuple[dict[str, str], dict[Words, list[str]]]:
    """Return links, addresses and every table, as the programs show them; a table that is empty is none."""
    saves = [
        f"{name}-{backend}-save -t {table}"
        for backend in BACKENDS
        for name in ("iptables", "ip6tables")
        for table in TABLES
    ]
    looks = ["ip -details address", "nft --stateless --json list ruleset", *saves]
    # iptables-nft-save fails in a table in which it does not know a rule: nft shows that one.
    script = "; ".join(f"printf '\\0%s\\0' '{look}'; {look} || echo 'exit status' $?" for look in looks)
    _, *parts = namespace.run("sh", "-c", script).split("\0")
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    of_nft = nft_rules(texts.pop(looks[1]))
    shown = {looks[0]: settled(texts.pop(looks[0]))}
    for look, text in texts.items():
        plain = settled(text)
        if any(line[:1] == "-" or (line[:1] == ":" and not line.endswith("ACCEPT")) for line in plain.split("\n")):
            shown[look] = plain
    return shown, of_nft


def nft_rules(text: str) -> dict[Words, list[str]]:
    """Return the rules of each chain: iptables shows none of a table in which it does not know one."""
    found: dict[Words, list[str]] = {}
    for each in json.loads(text)["nftables"]:
        if rule := each.get("rule"):
            found.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(json.dumps(rule["expr"]))
    return found


def without_unknown(
    after: Mapping[Words, list[str]], before: Mapping[Words, list[str]], unknown: AbstractSet[Rule], *, insert: bool
) -> dict[Words, list[str]]:
    """Return the rules of each chain without ours that were added and then could not be judged."""
    found = dict(after)
    for chain in map(place, unknown):
        lines = found.get(chain, [])
        if len(lines) > len(before.get(chain, [])):
            # Where a rule is put is our own choice: at the end, or with --rule-position=insert in front.
            found[chain] = lines[1:] if insert else lines[:-1]
    return found


def assert_set_up(report: Report, doubtful: AbstractSet[Words]) -> AbstractSet[Rule]:
    """Hold that all is there; return the rules that cannot be judged, which only those of some chains may be."""
    assert report.in_sync, report
    assert report.observed
    unknown = report.observed.unknown.keys()
    assert set(map(place, unknown)) <= doubtful
    assert {rule for rule in RULES if report.observed.copies.get(rule) == 1} == set(RULES) - unknown
    return unknown


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@given(
    around=surroundings,
    interface=st.sampled_from(["lo", "v0"]),
    event=st.sampled_from(list(EVENTS)),
    insert=st.booleans(),
    again=st.booleans(),
    undone_first=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_set_up_and_cleanup_everything_else_is_as_it_was(  # noqa: PLR0913 - each is generated
    backend: str, around: Surroundings, interface: str, event: str, *, insert: bool, again: bool, undone_first: bool
) -> None:
    goal = desired([IPV4, IPV6], interface=interface, port=443, setup_iptables=True, insert=insert)
    around.addresses[:] = [
        each for each in around.addresses if each not in {(own.cidr, interface) for own in goal.addresses}
    ]
    doubtful = {place(rule) for rule, _ in around.narrower}
    happens, undo = EVENTS[event]
    with Namespace() as namespace:
        make(namespace, around)
        before = state(namespace)
        run = NamespaceCommands(namespace).run
        families: tuple[Family, ...] = (4, 6)
        backends = {family: Backend(run, family, backend, 5.0, legacy_tables=lambda _: TABLES) for family in families}
        iproute = IpRoute(run)
        reconciler = Reconciler(goal, iproute, backends)
        unknown = assert_set_up(reconciler.reconcile(), doubtful if backend == "nft" else set())
        if again:
            assert reconciler.reconcile().changed == ()
        namespace.run("sh", "-c", happens)
        report = reconciler.reconcile()
        assert report.in_sync or (interface == "v0" and "v0" in happens), report
        if undone_first:
            namespace.run("sh", "-c", undo)
            assert_set_up(reconciler.reconcile(), doubtful)
        for_cleanup = {family: each.for_cleanup() for family, each in backends.items()}
        cleaned = Reconciler(goal, iproute, for_cleanup).cleanup(float("inf"))
        assert all(isinstance(each, RemoveRule) and place(each.rule) in doubtful for each in cleaned.remaining)
        assert {type(failure.error) for failure in cleaned.failures} <= {RuleUnknown}
        if not undone_first:
            namespace.run("sh", "-c", undo)
        shown, of_nft = state(namespace)
        for look, text in before[0].items():
            assert shown.get(look, "").split("\n") == text.split("\n"), look
        assert shown.keys() == before[0].keys()
        assert without_unknown(of_nft, before[1], unknown, insert=insert) == before[1]


@pytest.mark.parametrize("kind", [*KINDS, TUN])
def test_beside_a_link_of_this_kind_set_up_and_cleanup_work(namespace: Namespace, kind: str) -> None:
    namespace.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    namespace.run(*add_link(kind, "t0"), check=False)
    before = state(namespace)
    if "t0" not in str(before):
        pytest.skip(f"this kernel has no links of kind {kind}")
    goal = desired([IPV4, IPV6], interface="lo", port=443)
    reconciler = Reconciler(goal, IpRoute(NamespaceCommands(namespace).run), {})
    report = reconciler.reconcile()
    assert (report.in_sync, report.notices) == (True, ())
    assert reconciler.cleanup(float("inf")).in_sync
    assert state(namespace) == before
