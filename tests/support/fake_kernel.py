"""A node in memory that answers `ip` and `iptables` as the real one does (tests/node/test_fake_kernel.py sees to that).

It stands in for `Commands.run`. Any call, by number, can be made to fail: before its effect, or after it.
"""

import copy
import json
from collections.abc import Callable, Sequence
from ipaddress import ip_interface

from sidecar.node.command import Result

TABLES = {"raw": ("PREROUTING", "OUTPUT"), "filter": ("INPUT", "FORWARD", "OUTPUT")}

SAYS_NO = "the fake kernel says no"

Chains = dict[tuple[str, str], list[str]]


class FakeKernel:
    def __init__(self, *links: str) -> None:
        self.addresses: dict[str, list[str]] = {link: [] for link in ("lo", *links)}
        self.links: dict[str, dict[str, object]] = {link: {"flags": ["UP"]} for link in self.addresses}
        """Link → what `ip -json -details` shows of it."""
        self.states: dict[str, dict[str, object]] = {}
        """CIDR → what is shown of this address besides."""
        self.rules: dict[str, Chains] = {
            program: {(table, chain): [] for table, chains in TABLES.items() for chain in chains}
            for program in ("iptables", "ip6tables")
        }
        self.calls: list[tuple[str, ...]] = []
        self.before: dict[int, Callable[[], Result | None]] = {}
        """Call number → what happens instead of the command; None: nothing, and the command runs."""
        self.after: dict[int, Callable[[], None]] = {}
        """Call number → what happens once the command has had its effect."""

    def __call__(self, *argv: str, stdin: str = "") -> Result:
        number = len(self.calls)
        self.calls.append(argv)
        if number in self.before and (result := self.before[number]()) is not None:
            return result
        if argv == ("ip", "-force", "-batch", "-"):
            result = self._ip_batch(stdin.splitlines())
        else:
            status, output = self._ip(argv, stdin) if argv[0] == "ip" else self._iptables(argv, stdin)
            result = Result(status, output, SAYS_NO if status else "")
        if number in self.after:
            self.after[number]()
        return result

    def state(self) -> object:
        return copy.deepcopy((self.addresses, self.links, self.rules))

    def _ip_batch(self, lines: Sequence[str]) -> Result:
        failed = [at for at, line in enumerate(lines, start=1) if self._ip(("ip", *line.split()), "")[0]]
        said = "".join(f"{SAYS_NO}\nCommand failed -:{at}\n" for at in failed)
        return Result(1 if failed else 0, "", said)

    def _ip(self, argv: Sequence[str], stdin: str) -> tuple[int, str]:
        match argv[1:]:
            case ["-V"]:
                return 0, "ip utility, iproute2-6.1.0, libbpf 1.1.2\n"
            case ["-json", "-details", "address", "show"]:
                return 0, json.dumps([self._link(name) for name in self.addresses])
            case ["-batch", "-"]:
                return next((1 for line in stdin.splitlines() if self._change_link(line.split()[1:])), 0), ""
            case ["link", *words]:
                return self._change_link(words), ""
            case ["address", verb, cidr, "dev", link, *options]:
                return self._change_address(verb, link, cidr, options), ""
        raise AssertionError(f"the fake kernel does not know {argv}")

    def _change_link(self, words: Sequence[str]) -> int:
        match words:
            case ["add", "name", name, "type", kind] if name not in self.links:
                self.addresses[name] = []
                self.links[name] = {"flags": [], "linkinfo": {"info_kind": kind}}
            case ["set", "dev", name, "alias", alias, "up"] if name in self.links:
                self.links[name] |= {"flags": ["UP"], "ifalias": alias}
            case ["set", "dev", name, "up"] if name in self.links:
                self.links[name]["flags"] = ["UP"]
            case ["delete", "dev", name] if name in self.links:
                del self.links[name], self.addresses[name]
            case _:
                return 1
        return 0

    def _set_lifetime(self, cidr: str, options: Sequence[str]) -> None:
        self.states.setdefault(cidr, {})["deprecated"] = list(options[-2:]) == ["preferred_lft", "0"]

    def _change_address(self, verb: str, link: str, cidr: str, options: Sequence[str]) -> int:
        if link not in self.addresses:
            return 1
        is_there = cidr in self.addresses[link]
        if verb in ("add", "delete") and (verb == "add") == is_there:
            return 2
        if verb == "delete":
            self.addresses[link].remove(cidr)
            return 0
        if not is_there:  # `change` adds an IPv6 address that is not there
            self.addresses[link].append(cidr)
        self._set_lifetime(cidr, options)
        return 0

    def _link(self, name: str) -> dict[str, object]:
        info = []
        for cidr in self.addresses[name]:
            interface = ip_interface(cidr)
            family = "inet" if interface.version == 4 else "inet6"
            shown = {"family": family, "local": str(interface.ip), "prefixlen": interface.network.prefixlen}
            info.append({**shown, "scope": "host", **self.states.get(cidr, {})})
        index = 1 + list(self.links).index(name)
        return {"ifindex": index, "ifname": name, **self.links[name], "addr_info": info}

    def _iptables(self, argv: Sequence[str], stdin: str) -> tuple[int, str]:
        program = argv[0].removesuffix("-restore").removesuffix("-nft").removesuffix("-legacy")
        if argv[0].endswith("-restore"):
            assert argv[1:3] == ("--noflush", "-w"), argv
            return self._restore(program, stdin.splitlines(), only_tests=argv[-1] == "--test")
        assert (argv[1], argv[3]) == ("-w", "-t"), argv
        return self._rule(self.rules[program], argv[4], argv[5:])

    def _restore(self, program: str, lines: Sequence[str], *, only_tests: bool) -> tuple[int, str]:
        """Run each table's lines as one transaction."""
        output = ""
        chains, table = self.rules[program], ""
        for line in lines:
            if line.startswith("*"):
                table, chains = line[1:], copy.deepcopy(self.rules[program])
            elif line == "COMMIT":
                if not only_tests:
                    self.rules[program] = chains
            else:
                status, text = self._rule(chains, table, line.split())
                output += text
                if status:
                    return status, output
        return 0, output

    def _rule(self, chains: Chains, table: str, words: Sequence[str]) -> tuple[int, str]:
        verb, name, *match = words
        if table not in TABLES:
            return 3, ""
        if (table, name) not in chains:
            return 1, ""
        chain, rule = chains[table, name], " ".join(match)
        match verb:
            case "-S":
                return 0, "".join(f"{line}\n" for line in (f"-P {name} ACCEPT", *(f"-A {name} {r}" for r in chain)))
            case "-C":
                return (0 if rule in chain else 1), ""
            case "-A":
                chain.append(rule)
            case "-I":
                if match[0].isdigit():
                    chain.insert(int(match[0]) - 1, " ".join(match[1:]))
                else:
                    chain.insert(0, rule)
            case "-D":
                if rule not in chain:
                    return 1, ""
                chain.remove(rule)
            case _:
                raise AssertionError(f"the fake kernel does not know {verb}")
        return 0, ""
