"""Links that others own, from their owners' point of view: their names, their order, their renames."""

import json
import signal

import pytest

from support.namespace import CIDR, Namespace
from support.program import Fake, Sidecar, Start
from support.waiting import until

BOTH = "--ip-address=10.96.0.2,fd00:10:96::2"
CIDRS = [CIDR, "fd00:10:96::2/128"]

#: This kernel may have no links of type dummy: one of another type stands in for it.
STAND_IN = """[ "$1" = -batch ] || exec $real "$@"; sed 's/type dummy/type ifb/' | $real "$@" """


def names(namespace: Namespace) -> set[str]:
    return {link["ifname"] for link in json.loads(namespace.run("ip", "-json", "link", "show"))}


def held(namespace: Namespace, interface: str) -> list[str]:
    """Return the addresses on an interface but for those that the kernel adds."""
    return [cidr for cidr in namespace.addresses(interface) if not cidr.startswith("fe80:")]


def add(namespace: Namespace, name: str) -> None:
    """Add a link of somebody else."""
    namespace.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    for each in (name, f"{name}p"):
        namespace.run("ip", "link", "set", each, "up")


@pytest.mark.parametrize("interface", ["ens5", "eth1", "br0", "wlan0", "bond0", "cni0", "docker0"])
def test_the_name_of_somebody_else_is_not_taken(namespace: Namespace, start: Start, fake: Fake, interface: str) -> None:
    flags = (BOTH, f"--interface={interface}", "--daemon=false")
    env = fake("ip", STAND_IN)
    sidecar = start(*flags, **env)
    assert sidecar.end() == 1
    assert f"interface {interface} does not exist on this node; waiting for it: the system or another" in sidecar.log
    assert names(namespace) == {"lo"}
    assert start(*flags, "--create-interface", **env).end() == 0
    assert held(namespace, interface) == CIDRS


@pytest.mark.parametrize("interface", ["proxy0", "apiserver-proxy"])
def test_an_interface_of_another_name_is_created(
    namespace: Namespace, start: Start, fake: Fake, interface: str
) -> None:
    flags = (BOTH, f"--interface={interface}", "--daemon=false")
    assert start(*flags, **fake("ip", STAND_IN)).end() == 0
    assert held(namespace, interface) == CIDRS


def test_a_card_gets_its_name_and_the_address_at_once(namespace: Namespace, start: Start) -> None:
    add(namespace, "eth0")
    sidecar = start(BOTH, "--interface=ens5", "--sync-interval=1h")
    sidecar.wait_for("waiting for it")
    namespace.run("ip", "link", "set", "eth0", "name", "ens5")
    sidecar.wait_for("in sync after")
    assert held(namespace, "ens5") == CIDRS
    assert sidecar.stop() == 0


@pytest.mark.parametrize("flags", [(), ("--create-interface=true",), ("--create-interface=false",)])
def test_a_link_that_was_not_ours_is_waited_for(
    namespace: Namespace, start: Start, fake: Fake, flags: tuple[str, ...]
) -> None:
    add(namespace, "proxy0")
    env = fake("ip", STAND_IN)
    sidecar = in_sync(start, "proxy0", *flags, **env)
    namespace.run("ip", "link", "delete", "proxy0")
    sidecar.wait_for("waiting for it: it was there, and this program did not create it")
    assert "proxy0" not in names(namespace)
    plan = start("plan", BOTH, "--interface=proxy0", *flags, **env)
    assert plan.process.communicate()[0].splitlines()[0].startswith("# error: could not add 10.96.0.2/32: interface")
    status = start("status", BOTH, "--interface=proxy0", *flags, **env)
    assert "waiting for it" in " ".join(status.process.communicate()[0].split())
    doctor = json.loads(
        start("doctor", BOTH, "--interface=proxy0", "--output=json", *flags, **env).process.communicate()[0]
    )
    found = {each["topic"]: each for each in doctor["findings"]}
    assert found["interface"]["remedy"].startswith("the sidecar waits for it: it was there")
    assert (found["interface"]["commands"], found["kernel"]["level"]) == ([], "ok")
    add(namespace, "proxy0")
    sidecar.wait_for("in sync after")
    assert held(namespace, "proxy0") == CIDRS
    assert sidecar.stop() == 0


def test_one_that_this_program_created_is_created_again(namespace: Namespace, start: Start, fake: Fake) -> None:
    sidecar = in_sync(start, "proxy0", **fake("ip", STAND_IN))
    namespace.run("ip", "link", "delete", "proxy0")
    sidecar.wait_for("interface proxy0 missing, created (dummy)", times=2)
    until(lambda: held(namespace, "proxy0") == CIDRS)
    assert sidecar.stop() == 0


def test_an_address_does_not_stay_behind_on_a_link_with_another_name(namespace: Namespace, start: Start) -> None:
    add(namespace, "eth0")
    sidecar = in_sync(start, "eth0")
    namespace.run("ip", "link", "set", "eth0", "name", "lan0")
    sidecar.wait_for("removed fd00:10:96::2/128 from lan0")
    assert held(namespace, "lan0") == []
    assert "eth0" not in names(namespace)
    add(namespace, "eth1")
    namespace.run("ip", "link", "set", "eth1", "name", "eth0")
    sidecar.wait_for("in sync after")
    assert held(namespace, "eth0") == CIDRS
    assert sidecar.stop() == 0


def test_the_cleanup_takes_the_address_off_a_link_with_another_name(namespace: Namespace, start: Start) -> None:
    add(namespace, "eth0")
    sidecar = in_sync(start, "eth0", "--cleanup")
    sidecar.process.send_signal(signal.SIGSTOP)  # it does not see what happens
    namespace.run("ip", "link", "set", "eth0", "name", "lan0")
    sidecar.process.terminate()
    sidecar.process.send_signal(signal.SIGCONT)
    assert sidecar.end() == 0
    assert held(namespace, "lan0") == []


@pytest.mark.parametrize("flags", [("cleanup",), ("cleanup", "--dry-run"), ("--daemon=false", "--cleanup")])
def test_a_cleanup_that_saw_no_rename_tells_where_the_address_is(
    namespace: Namespace, start: Start, flags: tuple[str, ...]
) -> None:
    add(namespace, "eth0")
    assert start(BOTH, "--interface=eth0", "--daemon=false").end() == 0
    namespace.run("ip", "link", "set", "eth0", "name", "lan0")
    said = " ".join("".join(start(BOTH, "--interface=eth0", *flags).process.communicate()).split())
    for cidr in CIDRS:
        assert (
            f"{cidr} is on lan0, and stays there; if nobody else needs it: `ip address delete {cidr} dev lan0`" in said
        )


def test_two_links_swap_their_names(namespace: Namespace, start: Start) -> None:
    add(namespace, "eth0")
    add(namespace, "eth1")
    sidecar = in_sync(start, "eth0")
    namespace.run("sh", "-c", "ip link set eth0 name tmp0 && ip link set eth1 name eth0 && ip link set tmp0 name eth1")
    until(lambda: (held(namespace, "eth0"), held(namespace, "eth1")) == (CIDRS, []))
    assert sidecar.stop() == 0


def in_sync(start: Start, interface: str, *flags: str, **env: str) -> Sidecar:
    """Start a sidecar that looks by itself only once an hour; wait until it is in sync, and sleeps."""
    sidecar: Sidecar = start(BOTH, f"--interface={interface}", "--sync-interval=1h", "-v2", *flags, **env)
    sidecar.wait_for("] pass: in sync", times=2)  # the second comes a second after what the first one changed
    return sidecar
