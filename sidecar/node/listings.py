"""Parses the output of `iptables -S`, and finds the lines that iptables does not tell apart from our rules. Pure."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from sidecar.state.model import IPV4, Chain, Rule

#: A text in quotes, as xtables_save_string prints it (iptables' libxtables/xtables.c): quotes in it are escaped. What
#: stands behind -i, -o, -j and -g is a name, which is never quoted, though it may begin with a quote.
_QUOTED: Final = re.compile(r'(?<! -[iojg]) "[^"\\]*(?:\\.[^"\\]*)*"(?=[ \n])', re.DOTALL)

_NEWLINE: Final = "\0"  # stands for a newline in quotes while lines are split; no argument of a command can hold it


def split_rules(text: str) -> list[str]:
    """Split a listing at the newlines outside quotes: a comment may hold any character, and look like another rule."""
    lines = text.split("\n")
    if "\\" not in text and not any(line.count('"') % 2 for line in lines):
        return lines  # no quotes stay open: almost always, and five times as quick
    masked = _QUOTED.sub(lambda quoted: quoted[0].replace("\n", _NEWLINE), text)
    return [line.replace(_NEWLINE, "\n") for line in masked.split("\n")]


def parse_listings(text: str, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
    """Read the listings (`-S`) of `chains`, which were asked for in this order: the rules of each, then its policy.

    A policy that lets everything pass is left out.

    A listing begins with the chain's policy (`-P INPUT ACCEPT`; `-N NAME` for a chain without one), which
    separates the OUTPUT chain of one table from that of the next: the lines do not name the table.
    """
    *lines, rest = split_rules(text)
    if rest:  # iptables exits with 0 even if it could not write all of it
        raise ValueError(f"it is cut off after {rest[:80]!r}")
    sections: list[list[str]] = []
    for line in (each.rstrip(" ") for each in lines):  # some releases print a space at the end
        if line.startswith(("-P ", "-N ")):
            sections.append([line])
        elif line.startswith("-A ") and sections:
            sections[-1].append(line)
        elif line and not line.startswith("#"):
            raise ValueError(f"not the output of `iptables -S`: {line[:80]!r}")
    listed = [section[0].split()[1] for section in sections]
    if listed != [chain for _, chain in chains]:
        raise ValueError(f"asked for the chains {[chain for _, chain in chains]}, got {listed}")
    return {chain: (*section[1:], *_policy(section[0])) for chain, section in zip(chains, sections, strict=True)}


def _policy(line: str) -> tuple[str, ...]:
    return (line,) if line.startswith("-P ") and not line.endswith(" ACCEPT") else ()


def narrower(rule: Rule) -> str:
    """Return what stands in a listing for a rule that iptables lists like ours, but that the kernel knows as narrower.

    iptables does not print what it does not know; `-m nft` stands for that.
    """
    head, target, rest = rule.line.rpartition(" -j ")
    return f"{head} -m nft{target}{rest}"


def is_lookalike(line: str, rule: Rule) -> bool:
    """Whether a rule of IPv6 differs from ours in a prefix length only."""
    if rule.family == IPV4 or line == rule.line or rule.match[1].partition("/")[0] not in line:
        return False
    return _without_prefixes(line) == _without_prefixes(rule.line)


def reduction(chain: Chain, lines: Sequence[str], rules: Sequence[Rule]) -> list[tuple[str, tuple[str, ...]]]:
    """Return table and words of lines that leave one copy of each of these rules in a chain, in the place of the first.

    They come in the order of these places, so that each holds once the rules before it have been reduced.
    """
    ours = {rule.line: rule for rule in rules if rule.place == chain}
    copies, found, place, seen = Counter(lines), [], 0, set()
    for each in lines:
        if each in seen:
            continue
        place += 1
        if rule := ours.get(each):
            seen.add(each)
            if copies[each] > 1:
                found += [(rule.table, ("-D", rule.chain, *rule.match))] * copies[each]
                found.append((rule.table, ("-I", rule.chain, str(place), *rule.match)))
    return found


def without_port(rule: Rule) -> str:
    """Return what an iptables that does not know how newer releases store a port prints for our rule."""
    return re.sub(" -m tcp --[ds]port [0-9]+", "", rule.line)


def may_lack_port(line: str) -> bool:
    """Whether a rule is listed without ports, but may have some."""
    return bool(re.search(" -p (tcp|udp)( |$)", line)) and not re.search("--[ds]ports? ", line)


def resembles(line: str, rule: Rule) -> bool:
    """Whether a rule has all conditions of our rule, and perhaps more, so that iptables may take it for ours."""
    return set(rule.match) <= set(line.split())


def _without_prefixes(line: str) -> str:
    return re.sub("/[0-9]+", "", line)


def places_of_lookalikes(lines: Sequence[str], rule: Rule) -> list[tuple[int, tuple[str, ...]]]:
    """Return the place that each lookalike has once our own rule is gone from these lines, and what it matches."""
    ours = [number for number, line in enumerate(lines, start=1) if line == rule.line]
    return [
        (number - sum(each < number for each in ours), tuple(line.split()[2:]))
        for number, line in enumerate(lines, start=1)
        if is_lookalike(line, rule)
    ]
