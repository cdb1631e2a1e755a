"""Checks of the node itself: program, privileges, commands, lock, kernel."""

import os
import platform
from collections.abc import Iterator
from typing import Final

from sidecar import PROGRAM, __version__
from sidecar.doctor import kernel
from sidecar.doctor.findings import Finding, Level, unknown
from sidecar.doctor.kernel import Feature
from sidecar.doctor.view import View
from sidecar.errors import CommandMissing, NotIproute2, ProgramHangs, SidecarError
from sidecar.node import capabilities, iproute, legacy_tables, proc, xtables_lock
from sidecar.node.programs import path_of
from sidecar.state.inventory import State, of_interface
from sidecar.state.model import Facts, Family
from sidecar.state.plan import creates_link

PAUSE: Final = 0.5  # seconds between the two checks of the lock: most processes hold it for a moment only


def program(_: View) -> Iterator[Finding]:
    """Yield what runs here, and on what."""
    version, release = platform.python_version(), platform.release()
    found = f"{PROGRAM} {__version__}, Python {version}, kernel {release} ({platform.machine()})"
    yield Finding(Level.OK, found, facts={"version": __version__, "python": version, "kernel": release})


def privileges(view: View) -> Iterator[Finding]:
    """Yield whether this process has the capabilities (man 7 capabilities) that each step needs."""
    steps = {"CAP_NET_ADMIN": "addresses and rules"}
    for family in view.backends:
        view.has_seen(family)  # from then on it is known which backend it is
    if view.desired.rules and view.is_legacy():
        steps["CAP_NET_RAW"] = "rules of the legacy backend"
    uid = os.geteuid()
    lacking = capabilities.missing(*steps)
    for name in lacking:
        remedy = f"run as root (uid 0, here {uid}), or add {name.removeprefix('CAP_')} to the container's capabilities"
        yield Finding(Level.FAULT, f"{name} is missing: {steps[name]} need it", remedy, node_lacks=True)
    if held := [name for name in steps if name not in lacking]:
        yield Finding(Level.OK, f"uid {uid}, {' and '.join(held)}", facts={"uid": uid})


def commands(view: View) -> Iterator[Finding]:
    """Yield where each program is, and of what release; whether it is needed."""
    needed = {iproute.COMMAND: True}
    for backend in view.backends.values():
        needed |= dict.fromkeys(backend.programs, bool(view.desired.rules))
    paths = {name: path for name in needed if (path := path_of(name))}
    for name, is_needed in needed.items():
        if name not in paths and is_needed:
            found, _, remedy = str(CommandMissing(name)).partition(": ")
            yield Finding(Level.FAULT, found, remedy, node_lacks=True)
        elif name not in paths:
            yield Finding(Level.NOTE, f"{name} is not installed, so the rules of other programs cannot be checked")
    if iproute.COMMAND in paths:
        try:
            paths[iproute.COMMAND] += f" ({iproute.release(view.run)})"
        except NotIproute2 as error:
            found = f"{paths.pop(iproute.COMMAND)}: {error.found}"
            yield Finding(Level.FAULT, found, error.remedy, node_lacks=True)
        except ProgramHangs:  # whoever runs the commands says so
            del paths[iproute.COMMAND]
        except SidecarError as error:
            yield unknown(error)
    if paths:
        yield Finding(Level.OK, ", ".join(paths.values()))


def lock(view: View) -> Iterator[Finding]:
    """Yield whether the xtables lock can be used, and who holds it; nft needs none."""
    path = xtables_lock.path()
    is_needed = bool(view.desired.rules) and view.is_legacy()
    if not path.exists():
        if is_needed and not os.access(path.parent, os.W_OK):
            found, remedy = f"{path} does not exist and cannot be created", "mount the node's (type FileOrCreate)"
            yield Finding(Level.FAULT, found, remedy, node_lacks=True)
        else:
            yield Finding(Level.OK, f"{path} does not exist; iptables-legacy creates it")
        return
    if problem := xtables_lock.problem():
        found, _, remedy = problem.partition(": ")
        level = Level.FAULT if is_needed else Level.WARNING if path.is_dir() else Level.NOTE
        yield Finding(level, found, remedy, node_lacks=is_needed)
        return
    holders = proc.holders(path)
    if holders:
        view.pause(PAUSE)
        again = proc.holders(path)
        holders = [each for each in holders if each in again]
    if not holders:
        yield Finding(Level.OK, f"{path} is not held by any process")
    for holder in holders:
        remedy = f"if it does not release the lock, end it: kill {holder.pid}" if holder else ""
        level = Level.WARNING if is_needed else Level.NOTE
        facts: Facts = {"pid": holder.pid} if holder else {}
        yield Finding(level, xtables_lock.held_by(holder), remedy, facts=facts)


def kernel_support(view: View) -> Iterator[Finding]:
    """Yield which of the needed features the kernel has, as far as that can be read."""
    there = [f"IPv{family} NOTRACK (a rule uses it)" for family in view.backends if _has_notrack(view, family)]
    needed = {feature: name for family in view.backends for feature, name in _needed_for_rules(view, family)}
    desired = view.desired
    observed = view.observed()
    if creates_link(desired, observed) and of_interface(desired, observed).state is State.MISSING:
        needed[kernel.DUMMY] = f"dummy interfaces, to create {desired.interface}"
    for feature, name in needed.items():
        match kernel.has(feature):
            case True:
                there.append(name)
            case False:
                remedy = f"modprobe {feature.module}, or use a kernel with {feature.option}"
                yield Finding(Level.FAULT, f"does not have {name}", remedy, node_lacks=True)
            case None:
                reason = "neither the kernel's configuration nor its modules can be read here"
                yield Finding(Level.UNKNOWN, f"cannot tell whether it has {name} ({feature.module}): {reason}")
    if there:
        yield Finding(Level.OK, f"has {', '.join(there)}")
    elif not needed:
        yield Finding(Level.OK, "nothing more is needed: there are no rules to add, and no interface to create")


def _has_notrack(view: View, family: Family) -> bool:
    """Whether one of our rules is there that needs all of it."""
    copies = view.observed().copies
    return any(number for rule, number in copies.items() if (rule.family, rule.table) == (family, "raw"))


def _needed_for_rules(view: View, family: Family) -> Iterator[tuple[Feature, str]]:
    if not view.desired.rules or _has_notrack(view, family):
        return
    yield kernel.NOTRACK, "NOTRACK"
    if view.backends[family].is_legacy:
        registered = legacy_tables.registered(family)
        for table in ("raw", "filter"):
            if table not in registered:
                yield kernel.LEGACY_TABLES[family, table], f"the IPv{family} table {table}"
    else:
        yield kernel.NF_TABLES, "nftables"
        yield kernel.NFT_COMPAT, "NOTRACK in nftables"
