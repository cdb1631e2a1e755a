"""Each policy rule in words, given back to the kernel: `ip rule delete` takes it away, and `add` makes it again."""

import pytest

from sidecar.node.policy_rules import PolicyRule, policy_rules
from support.namespace import Namespace

RULES = (
    "from all lookup 77",
    "from 10.0.0.0/8 to 10.1.2.3 lookup 77",
    "not from 10.1.0.1 lookup main",
    "from all fwmark 0x1/0xff lookup 77",
    "from all fwmark 0x5 lookup default",
    "from all iif lo unreachable",
    "from all oif lo blackhole",
    "from all to 10.2.0.0/16 prohibit",
    "from all iif gone0 lookup main",
    "from all lookup main suppress_prefixlength 0",
    "from all lookup main suppress_ifgroup 5",
    "from all goto 32766",
    "from all goto 40000",
    "from all ipproto tcp sport 443 lookup 77",
    "from all ipproto udp dport 100-200 lookup 77",
    "from all uidrange 0-0 lookup 77",
    "from all tos 0x10 lookup 77",
    "from all l3mdev",
    "from all tun_id 7 lookup 77",
    "from all nop",
    "from all lookup 77 realms 3/4",
    "from all lookup 1000000",
    "from all iif lo fwmark 0x200/0xf00 uidrange 0-0 ipproto tcp dport 443 lookup 77",
)


def shown(namespace: Namespace) -> list[PolicyRule]:
    return [each for each in policy_rules(namespace.run("ip", "-json", "-N", "rule", "show")) if each.priority < 32766]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_in_words_is_that_rule(namespace: Namespace, rule: str) -> None:
    namespace.run("ip", "rule", "add", "pref", "50", *rule.split())
    before = namespace.run("ip", "rule", "show")
    _, found = shown(namespace)
    namespace.run("ip", "rule", "delete", "pref", "50", *found.text.split())
    assert [each.priority for each in shown(namespace)] == [0]
    namespace.run("ip", "rule", "add", "pref", "50", *found.text.split())
    assert namespace.run("ip", "rule", "show") == before
