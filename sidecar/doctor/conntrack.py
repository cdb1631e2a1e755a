"""The check of tracked connections."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted, finding
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import CommandError
from sidecar.node import proc, proc_formats
from sidecar.node.programs import is_installed

_CONNECTIONS: Final = Path("/proc/net/nf_conntrack")
_COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")


def conntrack(view: View) -> Iterator[Finding]:
    """Yield whether connections to each address are in the kernel's table of tracked connections."""
    try:
        lines, complete = _connections(view)
    except (OSError, CommandError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield finding(Level.UNKNOWN, f"the tracked connections could not be listed: {reason}")
        return
    for address in view.desired.addresses:
        number = proc_formats.tracked(lines, address.ip, view.port)
        where = view.where(address)
        connections = counted(number, f"connection to {where} is", f"connections to {where} are")
        facts = {**address.facts, "connections": number}
        if number and view.desired.rules:
            deletion = f"conntrack -D -p tcp -d {address.ip} --dport {view.port}"
            found = f"{connections} tracked, though our rules should prevent that"
            yield finding(Level.WARNING, found, commands=(deletion,), facts=facts)
        elif number:
            yield finding(Level.NOTE, f"{connections} tracked, as expected without --setup-iptables", facts=facts)
        elif complete:
            yield finding(Level.OK, f"no connection to {where} is tracked")
    if not complete:
        yield finding(Level.UNKNOWN, f"only the first {len(lines)} tracked connections were checked, {NO_TIME}")


def _connections(view: View) -> tuple[list[str], bool]:
    """Return a line for each tracked connection, and whether these are all."""
    if _CONNECTIONS.exists():
        return proc.lines(_CONNECTIONS)
    if is_installed("conntrack"):
        argv = ("conntrack", "-L", "-p", "tcp")
        result = view.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        return result.stdout.splitlines(), True
    if not _COUNT.exists():
        return [], True  # the kernel tracks nothing at all
    raise OSError(0, f"there is no {_CONNECTIONS}, and no program conntrack: apt-get install conntrack")
