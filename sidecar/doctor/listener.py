"""Checks of who listens on the addresses, and what answers there."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sidecar.doctor import probe
from sidecar.doctor.certificate import Certificate
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.passages import passages, place
from sidecar.doctor.probe import Answer, Instead
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import SidecarError
from sidecar.node import proc
from sidecar.node.halted import halted
from sidecar.node.proc_formats import Listener
from sidecar.state.model import IPV4, IPV6, Address, AddressState, Facts, socket_name

PATIENCE: Final = 1.5  # seconds for all connections together
_SHORTEST: Final = 0.3  # seconds for a connection at least, even if something else took all the time
SOON: Final = timedelta(days=3)  # how long before its end a certificate should have been renewed
_SHOWN: Final = 6  # how many names of a certificate, or addresses, are shown

#: What is said of an address where something came instead of a certificate.
_CAME_INSTEAD: Final = {
    Instead.SILENCE: "accepts connections, but no TLS answer came within {0.waited:.1g} s: is its upstream reachable?",
    Instead.CLOSE: "accepts connections, but closes them at once: is its upstream reachable?",
    Instead.RESET: "accepts connections, but resets them: is its upstream reachable?",
    Instead.REFUSAL: (
        "accepts connections, but closes them after a TLS hello: is its upstream reachable, and does it take clients "
        f"that ask for `{probe.SERVER_NAME}` or for no name (SNI)?"
    ),
    Instead.ALERT: "answers a TLS hello with the alert `{0.detail}`: does it serve other names (SNI) only?",
    Instead.HTTP: "answers in plain HTTP (`{0.detail}`): is this the right port?",
    Instead.OTHER: "answers, but not in TLS (`{0.detail}`): is this the right port?",
    Instead.BROKEN: "answers in TLS, but without a certificate that can be read: {0.detail}",
}
_WRONG_PORT: Final = (Instead.HTTP, Instead.OTHER)


def listener(view: View) -> Iterator[Finding]:
    """Yield whether something listens on each address and port."""
    everywhere = proc.listeners()
    found = [each for each in everywhere if each.port == view.port]
    owners = proc.owners([each.inode for each in found])
    for address in view.desired.addresses:
        here = [each for each in found if _accepts(each, address)]
        if not here:
            yield _silence(view, address, everywhere)
            continue
        view.listening[address] = {owner for each in here if (owner := owners.get(each.inode))}
        who = sorted(map(str, view.listening[address]))
        if not all(each.inode in owners for each in here):
            who.append("a process that cannot be seen from here (other user, or other container)")
        verb = "listens" if len(who) == 1 else "listen"
        yield Finding(Level.OK, f"{', '.join(who)} {verb} on {view.where(address)}")


def _silence(view: View, address: Address, listeners: Sequence[Listener]) -> Finding:
    """Return the finding that nothing listens, with the closest sockets that do."""
    text, remedy = f"nothing listens on {view.where(address)}", "start the apiserver-proxy"
    if other_ports := sorted({each.port for each in listeners if each.ip == address.ip}):
        text += f", only on {' and '.join(socket_name(address.ip, port) for port in other_ports[:_SHOWN])}"
        remedy = "give the proxy and --port the same port"
    elif others := sorted(socket_name(each.ip, each.port) for each in listeners if each.port == view.port):
        text += f", only on {' and '.join(list(dict.fromkeys(others))[:_SHOWN])}"
        remedy = f"let the proxy listen on {address.ip}"
    return Finding(Level.FAULT, text, remedy, facts=address.facts)


def _accepts(listener: Listener, address: Address) -> bool:
    """Whether a socket accepts connections to the address; one for all IPv6 addresses may accept IPv4, too."""
    if listener.ip == address.ip:
        return True
    return listener.ip.is_unspecified and (listener.ip.version == IPV6 or address.ip.version == IPV4)


def connect(view: View) -> Iterator[Finding]:
    """Yield whether each address on which something listens answers on this node."""
    deadline = time.monotonic() + min(PATIENCE, max(view.time_left(), _SHORTEST))
    for address in view.listening:
        where = view.where(address)
        left = deadline - time.monotonic()
        if not _may_be_used(view, address):
            yield Finding(Level.NOTE, f"not tried: {address.ip} cannot be used on this node as it is")
        elif left < _SHORTEST / 2:
            yield Finding(Level.UNKNOWN, f"{address.ip} was not tried {NO_TIME}")
        else:
            answer = view.answers[address] = probe.connect(address.ip, view.port, left)
            facts: Facts = {**address.facts, "seconds": round(answer.seconds, 6)}
            if answer.failure:
                text = f"no connection to {where} from this node: {answer.failure}"
                yield _no_connection(view, address, text, facts)
            else:
                took = f"{answer.seconds * 1000:.1f} ms"
                yield Finding(Level.OK, f"{where} answers from this node in {took}", facts=facts)


def _may_be_used(view: View, address: Address) -> bool:
    """Whether the address can be used on this node as it is, or nobody knows."""
    try:
        places = view.places(address)
    except SidecarError:  # the check of the addresses says so
        return True
    return any(place.state is AddressState.USABLE and link.is_up for link, place in places)


def _no_connection(view: View, address: Address, found: str, facts: Facts) -> Finding:
    """Return the finding for a failed connection, with the rule that is its reason, or may be."""
    remedy = (
        "see the findings above on rules and routes; if there are none, check whether the proxy's accept queue is full"
    )
    with contextlib.suppress(SidecarError):  # the check of the rules says so
        client = passages(view, address).clients[0]
        stopped = client.request.stopped or client.reply.stopped
        if met := stopped or next(iter((*client.request.doubts, *client.reply.doubts)), None):
            found += f"; {'' if stopped else 'perhaps '}because of `{met.line}` in {place(met)}"
            remedy = "see the finding above" if stopped else "let the address and port pass before it"
    return Finding(Level.FAULT, found, remedy, facts=facts)


def tls(view: View) -> Iterator[Finding]:
    """Yield whether an API server is behind the address, and for whom and how long its certificate is valid."""
    for address, answer in view.answers.items():
        if answer.certificate:
            yield from _certificate(view, address, answer, answer.certificate)
        elif answer.instead:
            yield _no_certificate(view, address, answer, answer.instead)


def _no_certificate(view: View, address: Address, answer: Answer, instead: Instead) -> Finding:
    """Return the finding that no API server answers behind an address, and where to look."""
    owners = sorted(view.listening[address], key=str)
    who = " or ".join(map(str, owners)) or "the proxy"
    facts: Facts = {**address.facts, "seconds": round(answer.seconds, 6), "answer": instead.value}
    if owners and (halt := halted(owners[0].pid)):
        found = f"{owners[0]} {halt.why}: {view.where(address)} accepts connections, but nobody answers them"
        commands = (halt.command,) if halt.command else ()
        return Finding(Level.FAULT, found, halt.remedy, commands, facts, leads=True)
    if instead in _WRONG_PORT:
        remedy = f"let {who} pass TLS through on port {view.port}, or set --port to the port where it does"
    else:
        remedy = f"see the log of {who}, and whether it can reach the API server"
        remedy += "".join(f"; its connections: ss -tnp | grep pid={owner.pid}," for owner in owners[:1])
    found = f"{view.where(address)} {_CAME_INSTEAD[instead].format(answer)}"
    return Finding(Level.FAULT, found, remedy, facts=facts, leads=True)


def _certificate(view: View, address: Address, answer: Answer, certificate: Certificate) -> Iterator[Finding]:
    names, until = certificate.names, f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
    facts: Facts = {**address.facts, "not_after": certificate.not_after.isoformat(), "names": ",".join(names)}
    yield from _validity(certificate, f"the certificate on {view.where(address)}", until, facts)
    if answer.refuses_name:
        found = (
            f"{view.where(address)} refuses clients that ask for `{probe.SERVER_NAME}` (SNI), not those without a name"
        )
        yield Finding(Level.NOTE, found, facts=facts)
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    found = f"certificate for {shown}{more}, until {until}; its chain of trust was not verified"
    yield Finding(Level.OK, found, facts=facts)
    if certificate.is_for(address.ip):
        return
    if certificate.is_for_service():
        found = f"the certificate is not for {address.ip}: clients have to use one of its names"
        yield Finding(Level.NOTE, found, facts=facts)
    else:
        found = f"the certificate is neither for {address.ip} nor for `kubernetes`: is this the API server?"
        remedy = f"clients in pods need {address.ip} or kubernetes.default.svc in it, unless they use one of its names"
        yield Finding(Level.WARNING, found, remedy, facts=facts)


def _validity(certificate: Certificate, which: str, until: str, facts: Facts) -> Iterator[Finding]:
    now = datetime.now(UTC)
    if certificate.not_after <= now:
        yield Finding(Level.FAULT, f"{which} has expired: {until}", "renew it", facts=facts)
    elif certificate.not_before > now:
        found = f"{which} is not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC"
        yield Finding(Level.FAULT, found, "set the clock of this node, or renew the certificate", facts=facts)
    elif certificate.not_after - now < SOON:
        yield Finding(Level.WARNING, f"{which} expires soon: {until}", "renew it", facts=facts)
