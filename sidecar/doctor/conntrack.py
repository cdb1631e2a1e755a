"""The check of connections that are tracked."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import CommandError
from sidecar.node import proc, proc_formats
from sidecar.node.programs import is_installed

_SYSCTLS: Final = Path("/proc/sys/net")
_COUNT: Final = _SYSCTLS / "netfilter/nf_conntrack_count"


def conntrack(view: View) -> Iterator[Finding]:
    """Yield whether connections to each address are in the kernel's table of tracked connections."""
    try:
        lines, complete = _connections(view)
    except (OSError, CommandError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(Level.UNKNOWN, f"the tracked connections could not be listed: {reason}")
        return
    for address in view.desired.addresses:
        number = proc_formats.tracked(lines, address.ip, view.port)
        where = view.where(address)
        connections = counted(number, f"connection to {where} is", f"connections to {where} are")
        facts = {**address.facts, "connections": number}
        if number and view.desired.rules:
            deletion = f"conntrack -D -p tcp -d {address.ip} --dport {view.port}"
            found = f"{connections} tracked, though our rules should prevent that"
            yield Finding(Level.WARNING, found, commands=(deletion,), facts=facts)
        elif number:
            yield Finding(Level.NOTE, f"{connections} tracked, as expected without --setup-iptables", facts=facts)
        elif complete:
            yield Finding(Level.OK, f"no connection to {where} is tracked")
    if not complete:
        yield Finding(Level.UNKNOWN, f"only the first {len(lines)} tracked connections were checked, {NO_TIME}")


def _connections(view: View) -> tuple[list[str], bool]:
    """Return a line for each tracked connection, and whether these are all."""
    with contextlib.suppress(FileNotFoundError):  # without the whole of /proc, the program conntrack knows
        if listed := proc.of_network("nf_conntrack", proc.lines):
            return listed
    if is_installed("conntrack"):
        argv = ("conntrack", "-L", "-p", "tcp")
        result = view.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        return result.stdout.splitlines(), True
    if _SYSCTLS.is_dir() and not _COUNT.exists():
        return [], True  # the kernel tracks nothing at all
    raise OSError(0, "there is no /proc/net/nf_conntrack, and conntrack is not installed: apt-get install conntrack")
