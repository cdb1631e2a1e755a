"""One iptables program: its command lines, its listings, and what its exit status means.

Measured with 1.8.9 and 1.8.11, both backends:

- `iptables-restore --noflush` takes `-S` and `-C` lines as well. One process lists any number of chains in any
  number of tables, at the cost of one `-C`, and changes nothing.
- `iptables-save` is not used: on the nft backend it reads every table, which takes seconds with many rules.

The exit status of a failed command decides what the failure means, not its error text. One status takes more: for
legacy, 4 means that the lock is held, but for nft, which has no lock, that the kernel refused. Only its error text says
why: `CHANGE failed (ERROR)`, with the kernel's error in strerror's words (LC_ALL=C).
"""

import contextlib
import copy
import math
import re
from collections.abc import Collection, Sequence
from typing import Final, Self, TypeAlias

from sidecar.errors import (
    BackendUnusable,
    CommandError,
    LockHeld,
    LockUnusable,
    NotSupported,
    OutputUnreadable,
    PermissionMissing,
    RulesChanged,
    SidecarError,
)
from sidecar.node import capabilities, releases, xtables_lock
from sidecar.node.command import Command, Result, Run
from sidecar.node.listings import parse_listings
from sidecar.node.releases import Release
from sidecar.state.model import Chain, Family

#: Backend → suffix of its commands' names. "system" is whichever backend the administrator chose for `iptables`.
_SUFFIX: Final = {"nft": "-nft", "legacy": "-legacy", "system": ""}
_PREFIX: Final[dict[Family, str]] = {4: "iptables", 6: "ip6tables"}

#: Exit statuses (iptables' include/xtables.h, enum xtables_exittype). -C and -D say 1 for: no such rule.
YES_OR_NO: Final = (0, 1)
REFUSED: Final = 4
UNKNOWN_WORD: Final = 2  # and as ours are right, this iptables lacks an extension or an option
NOT_SUPPORTED: Final = 3

#: Other statuses (above 125) are those of a shell or of the loader: iptables itself has not answered.
_REFUSALS: Final = (1, UNKNOWN_WORD, NOT_SUPPORTED, REFUSED)

#: The kernel's errors if the rules changed while iptables-nft worked: EAGAIN, EBUSY, EINTR, ERESTART; or ENOENT, but
#: only for something that it was to remove or replace. For something to add, that is a missing target or match.
_CHANGED: Final = re.compile(
    "Resource temporarily unavailable|Device or resource busy|Interrupted system call|"
    r"(_DEL|_DELETE|_FLUSH|_REPLACE) failed \(No such file or directory\)"
)

#: The kernel's errors if it lacks something for now: ENOMEM, ENOBUFS, EMSGSIZE, EMFILE, ENFILE.
_SHORT_FOR_NOW: Final = re.compile(
    "Cannot allocate memory|No buffer space available|Message too long|Too many open files"
)

#: What iptables-legacy says for ENOENT (iptables' libiptc/libiptc.c).
_NO_TARGET: Final = "No chain/target/match by that name"

#: A table, and the words of one line for it.
Line: TypeAlias = tuple[str, tuple[str, ...]]

#: The rules of each chain that can be listed, and why the others cannot.
Listed: TypeAlias = tuple[dict[Chain, tuple[str, ...]], dict[Chain, CommandError | NotSupported]]


class IptablesProgram:
    """The iptables of one backend, for one address family."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        """Use the `backend` nft, legacy or system; `wait` is the seconds to wait for the xtables lock."""
        self.run = run
        #: None: not known yet.
        self._legacy = None if backend == "system" else backend == "legacy"
        self.command = _PREFIX[family] + _SUFFIX[backend]
        self._wait = _wait(wait)

    def waiting(self, wait: float) -> Self:
        """Return the same program, whose commands wait for the lock for `wait` seconds."""
        made = copy.copy(self)
        made._wait = _wait(wait)  # noqa: SLF001 - an object of the same class
        return made

    @property
    def programs(self) -> tuple[str, str]:
        """The programs that have to be installed."""
        return self.command, f"{self.command}-restore"

    def listed(self, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
        """Return the rules of those of the chains that iptables can print.

        Raises a SidecarError if it can print none of them, or the look failed otherwise.
        """
        listings, failures = self.list_all(chains)
        if failures and not listings:  # it is the look that does not work
            raise next(iter(failures.values()))
        return listings

    def list_all(self, chains: Sequence[Chain]) -> Listed:
        """Return the same as `list_each`, by one process if all can be listed."""
        if not chains:
            return {}, {}
        argv, stdin = self.restore([(table, ("-S", chain)) for table, chain in chains])
        result = self.run(*argv, stdin=stdin)
        if result.exit == 0:
            with contextlib.suppress(OutputUnreadable):  # perhaps a part of it is readable
                return self.read(argv, stdin, result, chains), {}
        return self.list_each(chains)

    def has_chain(self, chain: Chain) -> bool:
        """Whether a chain exists. Its table must exist, as legacy would create it."""
        return self.succeeds((self.argv(chain[0], ("-S", chain[1])), ""))

    def list_each(self, chains: Sequence[Chain]) -> Listed:
        """Return the rules of each chain that can be listed, and why the others cannot.

        Raises a SidecarError if iptables did not answer, or may answer otherwise a moment later.
        """
        listings: dict[Chain, tuple[str, ...]] = {}
        failures: dict[Chain, CommandError | NotSupported] = {}
        for chain in chains:
            argv = self.argv(chain[0], ("-S", chain[1]))
            result = self.run(*argv)
            if result.exit == 0:
                try:
                    listings |= self.read(argv, "", result, [chain])
                except OutputUnreadable as error:
                    failures[chain] = error
                continue
            failure = self.failure(argv, "", result)
            is_answer = result.exit in _REFUSALS and not (failure.transient or _SHORT_FOR_NOW.search(result.stderr))
            if not is_answer or not isinstance(failure, CommandError | NotSupported):
                raise failure
            failures[chain] = failure
        return listings, failures

    def has_table(self, table: str) -> bool:
        """Whether there can be chains in a table: then iptables says of one that nobody has that it is not there."""
        return self.run(*self.argv(table, ("-S", "NO-SUCH-CHAIN"))).exit == 1

    def starts(self, tables: Collection[str]) -> bool:
        """Whether the backend can be initialised: it takes an empty change of one of these tables, which must exist.

        Unlike a listing, that depends on no rule of others, which may have an extension that is not installed.
        """
        argv, _ = self.restore([], "--test")
        return any(self.run(*argv, stdin=f"*{table}\nCOMMIT\n").exit == 0 for table in tables)

    def release(self) -> Release:
        """Return the release; raise BackendUnusable if the program cannot even say that, as nft without its kernel."""
        argv = (self.command, "--version")
        result = self.run(*argv)
        if result.exit:
            failure = CommandError(argv, "", f"exited with {result.exit}", result.stderr)
            raise BackendUnusable(self.command, str(failure)) if result.exit in _REFUSALS else failure
        try:
            return releases.parse(result.stdout)
        except ValueError as error:
            raise OutputUnreadable(argv, "", error) from error

    def listing(self, chain: Chain) -> tuple[str, ...]:
        argv = self.argv(chain[0], ("-S", chain[1]))
        result = self.run(*argv)
        if result.exit:
            raise self.failure(argv, "", result)
        return self.read(argv, "", result, [chain])[chain]

    @staticmethod
    def read(
        argv: tuple[str, ...], stdin: str, result: Result, chains: Sequence[Chain]
    ) -> dict[Chain, tuple[str, ...]]:
        try:
            return parse_listings(result.stdout, chains)
        except ValueError as error:
            raise OutputUnreadable(argv, stdin, error) from error

    def restore(self, lines: Sequence[Line], *options: str) -> Command:
        """Return the command and the standard input that run these lines, table by table."""
        tables: dict[str, list[str]] = {}
        for table, words in lines:
            tables.setdefault(table, []).append(" ".join(words))
        stdin = "".join("\n".join((f"*{table}", *rows, "COMMIT", "")) for table, rows in tables.items())
        return (f"{self.command}-restore", "--noflush", *self._wait, *options), stdin

    def argv(self, table: str, words: Sequence[str]) -> tuple[str, ...]:
        return (self.command, *self._wait, "-t", table, *words)

    def succeeds(self, command: Command, answers: Collection[int] = YES_OR_NO) -> bool:
        """Run a command: True for exit status 0, False for another of `answers`. Raises a SidecarError for the rest."""
        argv, stdin = command
        result = self.run(*argv, stdin=stdin)
        if result.exit not in answers:
            raise self.failure(argv, stdin, result)
        return result.exit == 0

    def failure(self, argv: tuple[str, ...], stdin: str, result: Result) -> SidecarError:
        """Return what the exit status means.

        Without privileges it is 1, 3 or 4, depending on backend and verb: so check this process's capabilities first.
        """
        failure = CommandError(argv, stdin, f"exited with {result.exit}", result.stderr)
        needed = ("CAP_NET_ADMIN", "CAP_NET_RAW") if self.is_legacy() else ("CAP_NET_ADMIN",)
        if missing := capabilities.missing(*needed):
            return PermissionMissing(missing, str(failure))
        if result.exit in (UNKNOWN_WORD, NOT_SUPPORTED) or _lacks_extension(argv, result):
            lacking = "this iptables lacks an extension or an option: reinstall or upgrade it; "
            return NotSupported(f"{lacking if result.exit == UNKNOWN_WORD else ''}{failure}")
        if result.exit == REFUSED and not (self.is_legacy() or "lock" in result.stderr):
            return _refusal(argv, stdin, result)
        if result.exit == REFUSED:
            if self.is_legacy() and (problem := xtables_lock.problem()):
                return LockUnusable(f"{problem}; {failure}")
            return LockHeld(
                argv,
                stdin,
                "exited with 4 (the lock is held or unavailable, or the rules just changed)",
                result.stderr,
            )
        return failure

    def is_legacy(self) -> bool:
        """Legacy works through a raw socket, and so needs CAP_NET_RAW as well."""
        if self._legacy is None:
            self._legacy = "(nf_tables)" not in self.run(self.command, "--version").stdout
        return self._legacy


def _wait(seconds: float) -> tuple[str, str]:
    """Return the option: iptables takes whole seconds, and with 0 it would not wait at all."""
    return "-w", str(max(1, math.ceil(seconds)))


def _lacks_extension(argv: tuple[str, ...], result: Result) -> bool:
    """Whether legacy says of a rule to add what it says of one that is not there: the kernel lacks its target."""
    return result.exit == 1 and ("-A" in argv or "-I" in argv) and _NO_TARGET in result.stderr


def _refusal(argv: tuple[str, ...], stdin: str, result: Result) -> SidecarError:
    """Return why the kernel refused what iptables-nft asked for."""
    if _CHANGED.search(result.stderr):
        return RulesChanged(argv, stdin, "exited with 4 (the rules changed meanwhile)", result.stderr)
    failure = CommandError(argv, stdin, "exited with 4", result.stderr)
    if _SHORT_FOR_NOW.search(result.stderr):
        return failure
    return NotSupported(f"the kernel refused it, perhaps for lack of a module or a permission: {failure}")
