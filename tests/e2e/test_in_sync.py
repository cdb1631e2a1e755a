"""Holds the shortcut of the other tests against the program."""

import pytest

from support import program
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.program import Sidecar

TWO = "--ip-address=10.96.0.2,fd00:10:96::2"


def shown(namespace: Namespace, backend: str) -> object:
    links = namespace.run("ip", "-brief", "-details", "address", "show", "dev", "lo")
    flags = namespace.run("ip", "-oneline", "address", "show", "dev", "lo")
    return links, flags, namespace.rules(backend), namespace.rules(backend, 6)


@pytest.mark.parametrize(
    "flags", [(TWO,), (TWO, "--setup-iptables", "--port=8443", "--rule-position=insert"), (TWO, "--setup-iptables")]
)
def test_it_is_what_a_run_leaves(namespace: Namespace, backend: str, flags: tuple[str, ...]) -> None:
    put_in_place(namespace, *flags, backend=backend)
    with Namespace() as other:
        assert Sidecar(program.fork(other, *flags, f"--iptables-backend={backend}", "--daemon=false")).end() == 0
        assert shown(namespace, backend) == shown(other, backend)
