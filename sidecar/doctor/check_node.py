"""doctor's checks of the node itself: program, privileges, commands, backend, lock, kernel."""

import os
import platform
import time
from collections.abc import Iterator
from typing import Final

from sidecar import PROGRAM, __version__
from sidecar.doctor import kernel
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.kernel import Feature
from sidecar.doctor.view import Looks
from sidecar.errors import SidecarError
from sidecar.node import capabilities, iproute, proc, releases, xtables_lock
from sidecar.node.backends import registered_tables
from sidecar.node.command import missing_command, path_of
from sidecar.state.model import Facts, Family

#: Seconds between two looks at the lock: who holds it at both does not only pass by.
PAUSE: Final = 0.5

#: How long other programs' failures may be in a line of ours.
_SHORT: Final = 300


def program(_: Looks) -> Iterator[Finding]:
    """Yield what runs here, and on what."""
    version, release = platform.python_version(), platform.release()
    found = f"{PROGRAM} {__version__}, Python {version}, kernel {release} ({platform.machine()})"
    facts: Facts = {"version": __version__, "python": version, "kernel": release}
    yield Finding(Level.OK, "program", found, facts=facts)


def may(looks: Looks) -> Iterator[Finding]:
    """Yield whether this process may do what each step needs (man 7 capabilities)."""
    steps = {"CAP_NET_ADMIN": "addresses and rules"}
    for family in looks.backends:
        looks.could_look(family)  # which backend it is, is known from then on
    if looks.desired.rules and looks.is_legacy():
        steps["CAP_NET_RAW"] = "rules of the legacy backend"
    uid = os.geteuid()
    lacking = capabilities.missing(*steps)
    for name in lacking:
        remedy = f"run as root (uid 0, here {uid}), or add {name.removeprefix('CAP_')} to the container's capabilities"
        yield Finding(Level.FAULT, "privileges", f"{name} is missing: {steps[name]} need it", remedy, node_lacks=True)
    if held := [name for name in steps if name not in lacking]:
        yield Finding(Level.OK, "privileges", f"uid {uid}, {' and '.join(held)}", facts={"uid": uid})


def commands(looks: Looks) -> Iterator[Finding]:
    """Yield where each program is, and of what release; whether it is needed."""
    needed = {iproute.COMMAND: True}
    for backend in looks.backends.values():
        needed |= dict.fromkeys(backend.programs, bool(looks.desired.rules))
    there = []
    for name, is_needed in needed.items():
        if path := path_of(name):
            there.append(f"{path}{_version_of_ip(looks)}" if name == iproute.COMMAND else path)
        elif is_needed:
            found, _, remedy = str(missing_command(name)).partition(": ")
            yield Finding(Level.FAULT, "commands", found, remedy, node_lacks=True)
        else:
            yield Finding(Level.NOTE, "commands", f"{name} is not installed, so rules of others cannot be looked at")
    if there:
        yield Finding(Level.OK, "commands", ", ".join(there))


def _version_of_ip(looks: Looks) -> str:
    _, found, release = looks.run(iproute.COMMAND, "-V").stdout.partition("iproute2-")
    return f" ({found}{release.split(',')[0].strip()})" if found else ""


def backend(looks: Looks) -> Iterator[Finding]:
    """Yield which iptables is in use and why, what is wrong with it, and what is in the other backend."""
    for family, each in looks.backends.items():
        if not all(map(path_of, each.programs)):
            continue  # said above
        try:
            looks.seen(family)
        except SidecarError as error:
            yield Finding(Level.UNKNOWN, "backend", f"which is in use for IPv{family}: {_short(error)}")
            continue
        release = each.release
        facts: Facts = {"family": family, "backend": each.command, "version": str(release)}
        found = f"IPv{family} rules by {each.command} {release}: {each.reason}"
        yield Finding(Level.OK, "backend", found, facts=facts)
        for fault in releases.faults(release, family) if release else ():
            level = Level.NOTE if each.is_legacy else Level.WARNING
            remedy = "use another release; this program counts rules in listings instead, other programs may not"
            yield Finding(level, "backend", f"{each.command} {release}: {fault}", remedy, facts=facts)
        yield from _system(looks, family)
        yield from _other_backend(looks, family)


def _system(looks: Looks, family: Family) -> Iterator[Finding]:
    """Yield a note if what a person would type is not what is in use."""
    used, name = looks.backends[family], "iptables" if family == 4 else "ip6tables"  # noqa: PLR2004 - the protocol's name
    if used.command == name or not path_of(name):
        return
    release = releases.parse(looks.run(name, "--version").stdout)
    if release.is_legacy != used.is_legacy:
        kind = "legacy" if release.is_legacy else "nft"
        found = f"{name} on this node is {kind}; what is in use is listed by {used.command}"
        yield Finding(Level.NOTE, "backend", found, facts={"family": family})


def _other_backend(looks: Looks, family: Family) -> Iterator[Finding]:
    rules = [rule for rule in looks.desired.rules if rule.family == family]
    try:
        command, copies, others = looks.backends[family].listed_in_other(rules)
    except SidecarError as error:
        yield Finding(Level.UNKNOWN, "backend", f"the other backend's IPv{family} rules: {_short(error)}")
        return
    if number := sum(copies.values()):
        deletions = [
            f"{command} -w 5 -t {rule.table} -D {rule.chain} {' '.join(rule.match)}"
            for rule, count in copies.items()
            for _ in range(count)
        ]
        found = f"rules of ours are in the other backend ({command}): {number}; they count there as well"
        yield Finding(Level.WARNING, "backend", found, commands=tuple(deletions), facts={"copies": number})
    if others:
        found = f"{command} has {others} rules of others: the kernel goes by both backends"
        yield Finding(Level.NOTE, "backend", found, facts={"rules": others})


def lock(looks: Looks) -> Iterator[Finding]:
    """Yield whether the xtables lock can be had, and who holds it; nft needs none."""
    path = xtables_lock.path()
    is_needed = bool(looks.desired.rules) and looks.is_legacy()
    if not path.exists():
        if is_needed and not os.access(path.parent, os.W_OK):
            found, remedy = f"{path} is not there, and cannot be made", "mount the node's (type FileOrCreate)"
            yield Finding(Level.FAULT, "lock", found, remedy, node_lacks=True)
        else:
            yield Finding(Level.OK, "lock", f"{path} is not there; iptables-legacy makes it")
        return
    if problem := xtables_lock.problem():
        found, _, remedy = problem.partition(": ")
        level = Level.FAULT if is_needed else Level.WARNING if path.is_dir() else Level.NOTE
        yield Finding(level, "lock", found, remedy, node_lacks=is_needed)
        return
    holders = proc.holders(path)
    if holders:
        time.sleep(PAUSE)
        again = proc.holders(path)
        holders = [each for each in holders if each in again]
    if not holders:
        yield Finding(Level.OK, "lock", f"{path}: a file, held by nobody")
    for holder in holders:
        who = str(holder) if holder else "a process that cannot be seen from here"
        remedy = f"if it does not let go, end it: kill {holder.pid}" if holder else ""
        level = Level.WARNING if is_needed else Level.NOTE
        facts: Facts = {"pid": holder.pid} if holder else {}
        yield Finding(level, "lock", f"{path} is held by {who}; who needs it waits", remedy, facts=facts)


def supported(looks: Looks) -> Iterator[Finding]:
    """Yield what the kernel has of what is needed, by what there is to be read."""
    there = [f"IPv{family} NOTRACK (such a rule is there)" for family in looks.backends if _has_notrack(looks, family)]
    needed = {feature: name for family in looks.backends for feature, name in _needed_for_rules(looks, family)}
    observed, wanted = looks.observed(), looks.desired
    if wanted.link_kind and observed.links is not None and observed.link(wanted.interface) is None:
        needed[kernel.DUMMY] = f"links of the kind dummy, as {wanted.interface} is to be"
    for feature, name in needed.items():
        match kernel.has(feature):
            case True:
                there.append(name)
            case False:
                remedy = f"modprobe {feature.module}, or a kernel with {feature.option}"
                yield Finding(Level.FAULT, "kernel", f"does not have {name}", remedy, node_lacks=True)
            case None:
                reason = "neither the kernel's configuration nor its modules can be read here"
                yield Finding(Level.UNKNOWN, "kernel", f"whether it has {name} ({feature.module}): {reason}")
    if there:
        yield Finding(Level.OK, "kernel", f"has {', '.join(there)}")
    elif not needed:
        yield Finding(Level.OK, "kernel", "no rules are wanted, and the interface is there: nothing is needed of it")


def _has_notrack(looks: Looks, family: Family) -> bool:
    """Whether a rule of ours is there already that needs all of it."""
    copies = looks.observed().copies
    return any(number for rule, number in copies.items() if (rule.family, rule.table) == (family, "raw"))


def _needed_for_rules(looks: Looks, family: Family) -> Iterator[tuple[Feature, str]]:
    if not looks.desired.rules or _has_notrack(looks, family):
        return
    yield kernel.NOTRACK, "NOTRACK"
    if looks.backends[family].is_legacy:
        registered = registered_tables(family)
        for table in ("raw", "filter"):
            if table not in registered:
                yield kernel.LEGACY_TABLES[family, table], f"the IPv{family} table {table}"
    else:
        yield kernel.NF_TABLES, "nftables"
        yield kernel.NFT_COMPAT, "NOTRACK in nftables"


def _short(error: SidecarError) -> str:
    text = str(error)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
