"""What `ip` prints of routes, on recorded output (iproute2 6.1)."""

import pytest

from sidecar.node.routes import Leads, leads, routes

LOCAL = (
    '[{"type":"local","dst":"10.96.0.2","from":"10.244.0.5","dev":"lo","flags":[],"cache":["local"],"iif":"cali0"}]\n'
)
AWAY = '[{"dst":"10.244.0.5","from":"10.96.0.2","dev":"up0","table":"64","flags":[],"uid":0,"cache":[]}]\n'


def test_answers_and_refusals_in_the_order_of_the_questions() -> None:
    said = (
        "RTNETLINK answers: Invalid argument\nCommand failed -:1\n"
        'Cannot find device "nope"\nCommand failed -:3\nError: any valid prefix is expected\nCommand failed -:5\n'
    )
    assert leads(5, LOCAL + AWAY, said) == (
        Leads("", error="Invalid argument"),
        Leads("local", "lo"),
        Leads("", error='Cannot find device "nope"'),
        Leads("unicast", "up0", "64"),
        Leads("", error="any valid prefix is expected"),
    )


def test_a_refusal_that_ipv6_prints_as_a_route() -> None:
    assert leads(1, '[{"type":"unreachable","dst":"fd00::1","dev":"lo","error":-113}]', "") == (
        Leads("", error="unreachable"),
    )


@pytest.mark.parametrize(("stdout", "stderr"), [("", ""), (LOCAL + AWAY, ""), ("", "Usage: ip route\n"), ("[]", "")])
def test_answers_that_cannot_be_told_apart_are_none(stdout: str, stderr: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them is caught
        leads(1, stdout, stderr)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ('{"dst":"default","gateway":"192.0.2.1","dev":"up0","flags":[]}', "default via 192.0.2.1 dev up0"),
        ('{"type":"6","dst":"default","table":"60","flags":[]}', "blackhole default table 60"),
        ('{"type":"7","dst":"10.244.0.5","metric":9,"flags":[]}', "unreachable 10.244.0.5/32"),
        ('{"type":"2","dst":"10.96.0.2","dev":"lo","table":"255","flags":[]}', "local 10.96.0.2/32 table local"),
        ('{"dst":"10.244.0.0/16","dev":"cni0","table":"100","flags":[]}', "10.244.0.0/16 dev cni0 table 100"),
    ],
)
def test_a_route_in_words(shown: str, words: str) -> None:
    (route,) = routes(f"[{shown}]", 4)
    assert str(route) == words
