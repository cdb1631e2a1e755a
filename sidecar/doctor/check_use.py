"""doctor's checks of what uses the address: who listens and answers, whether it is tracked, who else looks after it."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from sidecar import PROGRAM
from sidecar.doctor import probe
from sidecar.doctor.certificate import Certificate
from sidecar.doctor.check_others import drops_replies_to_this_node
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import Looks
from sidecar.errors import CommandError
from sidecar.node import claims, proc, proc_formats
from sidecar.node.command import is_installed
from sidecar.node.instances import Instance, running
from sidecar.node.proc_formats import Listener
from sidecar.state.desired import name_of
from sidecar.state.model import Address, AddressState, Facts

#: Seconds for all connections together.
PATIENCE: Final = 1.5

#: A certificate that is about to expire; nobody renews one at the last moment on purpose.
SOON: Final = timedelta(days=3)

#: How many names of a certificate, or addresses, are told.
_SHOWN: Final = 6

#: The tables of nft that iptables-nft makes, in the families ip and ip6; and families whose tables see no TCP of ours.
_OF_IPTABLES: Final = frozenset(("raw", "mangle", "nat", "filter", "security"))
_ELSEWHERE: Final = frozenset(("arp", "bridge"))

_CONNTRACK: Final = Path("/proc/net/nf_conntrack")


def listener(looks: Looks) -> Iterator[Finding]:
    """Yield whether something listens on each address and port, and what answers there."""
    everywhere = list(proc.listeners())
    found = [each for each in everywhere if each.port == looks.port]
    owners = proc.owners([each.inode for each in found])
    deadline = time.monotonic() + PATIENCE
    for wanted in looks.desired.addresses:
        here = [each for each in found if _is_for(each, wanted)]
        if not here:
            yield _silence(looks, wanted, everywhere)
            continue
        who = sorted({str(owner) if (owner := owners.by_inode.get(each.inode)) else "" for each in here})
        unknown = "" if all(who) else " a process that cannot be seen from here (other user, or other container)"
        names = ", ".join(filter(None, who)) + unknown
        yield Finding(Level.OK, "listener", f"on {looks.where(wanted)} listens {names.strip()}")
        usable = any(place.state is AddressState.USABLE and link.is_up for link, place in looks.places(wanted))
        if not usable:
            yield Finding(Level.NOTE, "connect", f"not tried: {wanted.ip} is not to be used on this node as it is")
        elif time.monotonic() > deadline:
            yield Finding(Level.UNKNOWN, "connect", f"{wanted.ip} was not tried, to be done in time")
        else:
            yield from _connect(looks, wanted)


def _silence(looks: Looks, wanted: Address, found: Sequence[Listener]) -> Finding:
    """Return that nothing listens, and what nearly does."""
    text, remedy = f"nothing listens on {looks.where(wanted)}", "start the apiserver-proxy"
    ports = sorted({each.port for each in found if each.ip == wanted.ip})
    hosts = sorted({str(each.ip) for each in found if each.port == looks.port})
    if ports:
        text += f", but on port {' and '.join(map(str, ports[:_SHOWN]))} of {wanted.ip}"
        remedy = "give the proxy and --port the same port"
    elif hosts:
        text += f", but on that port of {' and '.join(hosts[:_SHOWN])}"
        remedy = f"let the proxy listen on {wanted.ip}"
    return Finding(Level.FAULT, "listener", text, remedy, facts=wanted.facts)


def _is_for(listener: Listener, wanted: Address) -> bool:
    """Whether connections to the address may come to a socket; one for all IPv6 addresses may take IPv4 as well."""
    if listener.ip == wanted.ip:
        return True
    return listener.ip.is_unspecified and (listener.ip.version == 6 or wanted.ip.version == 4)  # noqa: PLR2004 - the protocol's name


def _connect(looks: Looks, wanted: Address) -> Iterator[Finding]:
    answer = probe.connect(wanted.ip, looks.port)
    where = looks.where(wanted)
    facts: Facts = {**wanted.facts, "seconds": round(answer.seconds, 6)}
    if answer.failure:
        yield _no_connection(looks, wanted, f"no connection to {where} from this node: {answer.failure}", facts)
        return
    yield Finding(Level.OK, "connect", f"{where} answers from this node in {answer.seconds * 1000:.1f} ms", facts=facts)
    if answer.certificate:
        yield from _judge(answer.certificate, wanted, where)
    else:
        found = f"{where} does not speak TLS, as an API server would: {answer.tls_failure}"
        remedy = "see the proxy's log: does it reach the API server, and is this its right port?"
        yield Finding(Level.WARNING, "tls", found, remedy, facts=facts)


def _no_connection(looks: Looks, wanted: Address, found: str, facts: Facts) -> Finding:
    """Return that there is none, and what may be the reason: a rule that drops it, or what iptables does not show."""
    if looks.could_look(wanted.ip.version) and (met := drops_replies_to_this_node(looks, wanted)):
        command = f"{looks.backends[wanted.ip.version].command} -w 5 -I INPUT -i lo -j ACCEPT"
        text = f"{found}; `{met.line}` drops the replies, which come in over lo"
        return Finding(Level.FAULT, "connect", text, "pods may not be affected", (command,), facts)
    for rule, hindrance in looks.observed().hindrances.items():
        if rule.match[-1] == "ACCEPT" and wanted.cidr in rule.match and not hindrance.certain:
            command = f"{looks.backends[rule.family].command} -w 5 -t {rule.table}"
            place = f"{rule.chain} {' '.join(rule.match)}"
            moves = f"{command} -D {place}", f"{command} -I {place}"
            remedy = "to keep our rule in front, change what sets up the other one"
            text = f"{found}; perhaps by `{hindrance.line}`"
            return Finding(Level.FAULT, "connect", text, remedy, moves, facts)
    if hidden := _hidden_tables(looks):
        text = f"{found}; perhaps by nft's {' or '.join(hidden[:_SHOWN])}, which iptables does not show"
        return Finding(Level.FAULT, "connect", text, f"see: nft list {hidden[0]}", facts=facts)
    remedy = "see what is told above of rules and routes; if the proxy listens, is its queue full?"
    return Finding(Level.FAULT, "connect", found, remedy, facts=facts)


def _hidden_tables(looks: Looks) -> list[str]:
    """Return the tables that only nft shows, as `table FAMILY NAME`; none where nft is not installed, or fails."""
    if not is_installed("nft"):
        return []
    shown = [line.split() for line in looks.run("nft", "list", "tables").stdout.splitlines()]
    hidden = [
        words for words in shown if words[1] not in _ELSEWHERE and (words[1] == "inet" or words[2] not in _OF_IPTABLES)
    ]
    return [" ".join(words) for words in hidden]


def _judge(certificate: Certificate, wanted: Address, where: str) -> Iterator[Finding]:
    now = datetime.now(UTC)
    until = f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
    names = ",".join(certificate.names)
    facts: Facts = {**wanted.facts, "not_after": certificate.not_after.isoformat(), "names": names}
    if certificate.not_after <= now:
        yield Finding(Level.FAULT, "tls", f"the certificate on {where} has expired: {until}", "renew it", facts=facts)
    elif certificate.not_before > now:
        found = f"the certificate on {where} is not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC"
        yield Finding(Level.FAULT, "tls", found, "set the clock of this node, or renew the certificate", facts=facts)
    elif certificate.not_after - now < SOON:
        yield Finding(
            Level.WARNING, "tls", f"the certificate on {where} expires soon: {until}", "renew it", facts=facts
        )
    shown = ", ".join(certificate.names[:_SHOWN]) or "nothing"
    more = f" and {len(certificate.names) - _SHOWN} more" if len(certificate.names) > _SHOWN else ""
    found = f"certificate for {shown}{more}, until {until}; its trust was not verified"
    yield Finding(Level.OK, "tls", found, facts=facts)
    if not any(_is_ip(name, wanted) for name in certificate.names):
        found = f"the certificate is not for {wanted.ip}: clients have to use one of its names"
        yield Finding(Level.NOTE, "tls", found, facts=facts)


def _is_ip(name: str, wanted: Address) -> bool:
    try:
        return ip_address(name) == wanted.ip
    except ValueError:
        return False


def tracked(looks: Looks) -> Iterator[Finding]:
    """Yield whether connections to each address are in the kernel's table of tracked connections."""
    try:
        lines, complete = _connections(looks)
    except (OSError, CommandError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(Level.UNKNOWN, "conntrack", f"the tracked connections: {reason}")
        return
    for wanted in looks.desired.addresses:
        number = proc_formats.tracked(lines, wanted.ip, looks.port)
        where = looks.where(wanted)
        if number and looks.desired.rules:
            found = f"{number} connections to {where} are tracked, though our rules should keep them out"
            deletion = f"conntrack -D -p tcp -d {wanted.ip} --dport {looks.port}"
            facts: Facts = {**wanted.facts, "connections": number}
            yield Finding(Level.WARNING, "conntrack", found, commands=(deletion,), facts=facts)
        elif number:
            found = f"{number} connections to {where} are tracked: without --setup-iptables that is as it should be"
            yield Finding(Level.NOTE, "conntrack", found, facts={**wanted.facts, "connections": number})
        elif complete:
            yield Finding(Level.OK, "conntrack", f"no connection to {where} is tracked")
    if not complete:
        found = f"only the first {len(lines)} tracked connections were looked at, to be done in time"
        yield Finding(Level.UNKNOWN, "conntrack", found)


def _connections(looks: Looks) -> tuple[list[str], bool]:
    """Return a line for each tracked connection, and whether these are all."""
    if _CONNTRACK.exists():
        return proc.lines(_CONNTRACK)
    if is_installed("conntrack"):
        argv = ("conntrack", "-L", "-p", "tcp")
        result = looks.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        return result.stdout.splitlines(), True
    if not Path("/proc/sys/net/netfilter/nf_conntrack_count").exists():
        return [], True  # the kernel tracks nothing at all
    raise OSError(0, f"there is no {_CONNTRACK}, and no program conntrack: apt-get install conntrack")


def instances(looks: Looks) -> Iterator[Finding]:
    """Yield who else looks after the addresses on this node, and whether they contradict what was asked for here."""
    found, hidden = running()
    for wanted in looks.desired.addresses:
        yield from (_compare(looks, each, wanted) for each in found if _wants(each, wanted))
    alone = [wanted for wanted in looks.desired.addresses if not any(_wants(each, wanted) for each in found)]
    if alone:
        yield from _nobody(looks, alone, hidden)
    for each in found:
        if not any(_wants(each, wanted) for wanted in looks.desired.addresses):
            text = f"{each} runs on this node for {each.value('ip-address') or 'addresses that cannot be seen'}"
            yield Finding(Level.NOTE, "instances", text, facts={"pid": each.process.pid})


def _wants(each: Instance, wanted: Address) -> bool:
    return wanted.ip in each.addresses


def _compare(looks: Looks, each: Instance, wanted: Address) -> Finding:
    here = {"interface": looks.desired.interface, "port": str(looks.port)}
    other = [f"--{name}={each.value(name)}" for name, text in here.items() if each.value(name) != text]
    asked = " ".join(f"--{name}={text}" for name, text in here.items())
    facts: Facts = {**wanted.facts, "pid": each.process.pid}
    if other:
        text = f"{each} holds {wanted.ip} with {' '.join(other)}; this look is for {asked}"
        return Finding(Level.WARNING, "instances", text, "give both the same flags, or stop one of them", facts=facts)
    return Finding(Level.OK, "instances", f"{each} holds {wanted.ip}", facts=facts)


def _nobody(looks: Looks, addresses: Sequence[Address], hidden: Sequence[Instance]) -> Iterator[Finding]:
    """Yield what is known of instances for these addresses, where no process is to be seen."""
    claimed: list[Address] = []
    try:
        claimed = [wanted for wanted in addresses if claims.held([name_of(wanted)])]
    except FileNotFoundError:
        pass  # no instance has run here, or its directory is not mounted
    except OSError as error:
        yield Finding(Level.UNKNOWN, "instances", f"who claims the addresses: {error.strerror}")
        return
    if claimed:
        yield Finding(Level.OK, "instances", f"an instance that cannot be seen from here holds {_list(claimed)}")
    alone = [wanted for wanted in addresses if wanted not in claimed]
    if alone and not proc.sees_all_processes():
        text = f"whether another instance holds {_list(alone)}: only the processes of this container can be seen"
        yield Finding(Level.UNKNOWN, "instances", text)
    elif alone and hidden:
        text = f"whether {' or '.join(map(str, hidden[:_SHOWN]))} holds {_list(alone)}: only root can see its network"
        yield Finding(Level.UNKNOWN, "instances", text)
    elif alone:
        text = f"no instance is running for {_list(alone)}: nothing repairs what is taken away"
        level = Level.NOTE if looks.is_complete() else Level.WARNING
        yield Finding(level, "instances", text, f"start {PROGRAM} as a service or a pod")


def _list(addresses: Sequence[Address]) -> str:
    shown = [str(each.ip) for each in addresses[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else "")
