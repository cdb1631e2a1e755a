"""Rules as the kernel tells them; recorded (kernel 6.18, nft 1.0.6) as payloads of NFT_MSG_NEWRULE, in hexadecimal."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.node.netlink import attribute, attributes
from sidecar.node.nft_expressions import handle, is_as_listed
from sidecar.state.desired import desired
from sidecar.state.model import Rule
from support.namespace import IPV4, IPV6

_FILE = Path(__file__).parents[1] / "recorded" / "nft-rules.txt"


def recorded(line: str) -> tuple[str, str, bytes]:
    """Return whose rule it is, what added it, and the payload."""
    whose, _, rest = line.partition(" ")
    text, _, rule = rest.partition("\t")
    return whose, text, bytes.fromhex(rule)


RECORDED = list(map(recorded, _FILE.read_text().splitlines()))


def like(text: str) -> Rule:
    """Return our rule that iptables lists like a recorded one."""
    ip = IPV6 if "ip6" in text else IPV4
    rules = desired([ip], interface="lo", port=443, setup_iptables=True).rules
    return rules[0 if "NOTRACK" in text else 3]


@pytest.mark.parametrize(("whose", "text", "rule"), RECORDED, ids=lambda each: each if isinstance(each, str) else "")
def test_only_a_rule_without_other_conditions_and_effects_is_ours(whose: str, text: str, rule: bytes) -> None:
    assert is_as_listed(rule, like(text)) == (whose == "ours")
    assert handle(rule) > 1


@pytest.mark.parametrize(("text", "width"), [("iptables 1.8.9", 4), ("ip6tables 1.8.9", 16)])
def test_a_rule_of_an_old_release_has_a_mask_of_ones_behind_the_address(text: str, width: int) -> None:
    """A stand-in for 1.6: a recorded rule, with one more expression."""
    (rule,) = (rule for _, name, rule in RECORDED if name == text)
    assert is_as_listed(with_mask(rule, b"\xff" * width), like(text))
    assert not is_as_listed(with_mask(rule, b"\xff" * (width - 1) + b"\0"), like(text))


def with_mask(rule: bytes, mask: bytes) -> bytes:
    register, nothing = (1).to_bytes(4, "big"), bytes(len(mask))
    values = {1: register, 2: register, 4: attribute(1, mask), 5: attribute(1, nothing)}
    bitwise = attribute(1, b"bitwise\0") + attribute(2, b"".join(map(attribute, values, values.values())))
    parts = dict(attributes(rule, 4))
    expressions = [attribute(1, each) for _, each in attributes(parts[4])]
    expressions.insert(3, attribute(1, bitwise))  # behind the protocol, and what loads the address
    return rule[:4] + b"".join(map(attribute, parts, (parts | {4: b"".join(expressions)}).values()))


@given(st.sampled_from(RECORDED), st.data())
def test_a_damaged_rule_is_read_without_an_exception(recorded: tuple[str, str, bytes], data: st.DataObject) -> None:
    _, text, rule = recorded
    at = data.draw(st.integers(0, len(rule) - 1))
    is_as_listed(rule[:at] + data.draw(st.binary(max_size=8)) + rule[at + 1 :], like(text))
