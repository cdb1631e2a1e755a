"""The check of which sidecars run on this node."""

from collections.abc import Iterator, Sequence
from typing import Final

from sidecar import PROGRAM
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import View
from sidecar.node import claims, proc
from sidecar.node.instances import Instance, running
from sidecar.state.inventory import is_in_sync
from sidecar.state.model import Address, Claim, Facts

_SHOWN: Final = 6  # how many addresses, or instances, are named


def instances(view: View) -> Iterator[Finding]:
    """Yield which sidecars hold the addresses on this node, and whether they contradict the settings here."""
    found, hidden = running()
    for address in view.desired.addresses:
        holders = [each for each in found if address.ip in each.addresses]
        yield from (_compare(view, each, address) for each in holders if each.process.pid not in view.keepers.idle)
    held = {
        ip for each in (*found, *view.keepers.powerless) for ip in each.addresses
    }  # the check of the sidecar names the latter
    if alone := [address for address in view.desired.addresses if address.ip not in held]:
        yield from _unheld(view, alone, hidden)
    for each in found:
        if not any(address.ip in each.addresses for address in view.desired.addresses):
            text = f"{each} runs on this node for {each.value('ip-address') or 'addresses that cannot be seen'}"
            yield Finding(Level.NOTE, text, facts={"pid": each.process.pid})


def _compare(view: View, each: Instance, address: Address) -> Finding:
    here = {"interface": view.desired.interface, "port": str(view.port)}
    other = [f"--{name}={each.value(name)}" for name, text in here.items() if each.value(name) != text]
    facts: Facts = {**address.facts, "pid": each.process.pid}
    if not other:
        return Finding(Level.OK, f"{each} holds {address.ip}", facts=facts)
    requested = " ".join(f"--{name}={text}" for name, text in here.items())
    text = f"{each} holds {address.ip} with {' '.join(other)}; this check is for {requested}"
    return Finding(Level.WARNING, text, "give both the same flags, or stop one of them", facts=facts)


def _unheld(view: View, addresses: Sequence[Address], hidden: Sequence[Instance]) -> Iterator[Finding]:
    """Yield what is known about addresses that no visible process holds."""
    claimed = frozenset[Claim]()
    try:
        claimed = claims.held(addresses)
    except FileNotFoundError:
        pass  # no instance has run here, or its directory is not mounted
    except OSError as error:
        yield Finding(Level.UNKNOWN, f"cannot tell whether an instance claims the addresses: {error.strerror}")
        return
    if claimed:
        held = [address for address in addresses if address in claimed]
        yield Finding(Level.OK, f"an instance that cannot be seen from here holds {_list(held)}")
    alone = [address for address in addresses if address not in claimed]
    if alone and not proc.sees_all_processes():
        reason = "only the processes of this container can be seen"
        yield Finding(Level.UNKNOWN, f"cannot tell whether another instance holds {_list(alone)}: {reason}")
    elif alone and hidden:
        names = " or ".join(map(str, hidden[:_SHOWN]))
        yield Finding(Level.UNKNOWN, f"cannot tell whether {names} holds {_list(alone)}: only root can see its network")
    elif alone:
        text = f"no instance is running for {_list(alone)}: nothing repairs what other programs remove"
        level = Level.NOTE if is_in_sync(view.desired, view.observed()) else Level.WARNING
        yield Finding(level, text, f"start {PROGRAM} as a service or a pod")


def _list(addresses: Sequence[Address]) -> str:
    shown = [str(each.ip) for each in addresses[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else "")
