"""Settings from what a sidecar that does not run any more has left on this node: its rules, and where its address is.

Only a whole set of five rules counts. What is less, or may be read in two ways, is named: the user decides.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from loguru import logger

from sidecar.errors import CommandTimeout, ConfigError, SidecarError
from sidecar.node.command import Commands
from sidecar.node.iproute import IpRoute
from sidecar.node.standing import Standing, standing
from sidecar.settings.options import FLAGS
from sidecar.state.compare import GLOBAL
from sidecar.state.desired import RULES
from sidecar.state.model import IPV4, IPV6, LOOPBACK, IPAddress, Link, LinkAddress
from sidecar.state.plan import is_ours

_TIMEOUT: Final = 1.0  # seconds that one command may take: the user expects an answer soon
_FEW: Final = 2  # one rule alone may well be another program's


class Remains:
    """What is left on this node."""

    def __init__(self) -> None:
        """Look, and change nothing. What cannot be looked at counts as not there."""
        self.problem = ""
        self._found: list[Standing] = []
        self._links: Sequence[Link] = ()
        logger.disable("sidecar")  # the log is not set up yet
        try:
            run = Commands(_TIMEOUT).run
            self._found = standing(run)
            self._links = IpRoute(run).observe()
        except (SidecarError, OSError) as error:
            self.problem = str(error) if isinstance(error, CommandTimeout) else ""
        finally:
            logger.enable("sidecar")

    def settings(self, typed: Mapping[str, str]) -> dict[str, str]:
        """Return the settings of the one sidecar whose rules stand here; empty if there is no whole set of them.

        What the user has `typed` decides between several. Raises ConfigError if there are several ways to read them.
        """
        several = [each for each in self._found if each.number >= _FEW and _agrees(each, typed)]
        whole = [each for each in several if each.is_whole]
        ports = {each.rules.port for each in several}
        if not whole:
            return {}
        if whole != several or len(ports) > 1:
            raise ConfigError([f"--ip-address is required: {hint}" for hint in _ways(several)])
        ips = list(dict.fromkeys(each.rules.ip for each in whole))
        found = {"ip-address": ",".join(map(str, ips)), "port": str(ports.pop()), "setup-iptables": "true"}
        found["interface"] = typed.get("interface") or self._interface(ips)
        names = [{each.backend for each in whole if each.rules.ip == ip} for ip in ips]
        if len(set.union(*names)) == 1:
            found["iptables-backend"] = whole[0].backend
        held = [each for link in self._links for each in link.addresses if each.ip in ips and each.ip.version == IPV4]
        if held and all(each.scope == GLOBAL for each in held):
            found["address-scope"] = GLOBAL
        return found

    def ports(self, ips: Collection[IPAddress]) -> set[int]:
        """Return the ports of the whole sets of rules for these addresses."""
        return {each.rules.port for each in self._found if each.is_whole and each.rules.ip in ips}

    def hints(self) -> Iterator[str]:
        """Yield what may be left of a sidecar, and by which flags to ask about it."""
        yield from _ways([each for each in self._found if each.number >= _FEW])
        ruled = {each.rules.ip for each in self._found if each.number >= _FEW}
        for link in self._links:
            for held in link.addresses:
                if held.ip not in ruled and _may_be_ours(link, held):
                    flags = f"--ip-address={held.ip} --interface={link.name}"
                    yield f"{held.cidr} on {link.name} may be one that a sidecar added: repeat with {flags}"

    def _interface(self, ips: Sequence[IPAddress]) -> str:
        """Return the interface that has these addresses; lo if none has; raise ConfigError if several have."""
        places = {(link.name, held.ip) for link in self._links for held in link.addresses if held.ip in ips}
        names = sorted({name for name, _ in places})
        if len(names) > 1:
            where = ", ".join(f"{ip} on {name}" for name, ip in sorted(places, key=str))
            raise ConfigError([f"--interface is required: the addresses of the rules that stand here are {where}"])
        return names[0] if names else LOOPBACK


def typed(values: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the settings that the user gave, by flags or variables."""
    found = {name: os.environ.get(flag.variable, "") for name, flag in FLAGS.items()}
    return {name: text for name, text in found.items() if text} | {name: texts[-1] for name, texts in values.items()}


def _agrees(each: Standing, typed: Mapping[str, str]) -> bool:
    backend = typed.get("iptables-backend", "auto")
    return typed.get("port", str(each.rules.port)) == str(each.rules.port) and backend in ("auto", each.backend)


def _ways(found: Sequence[Standing]) -> Iterator[str]:
    """Yield by which flags to ask about these rules."""
    for port, backend in dict.fromkeys((each.rules.port, each.backend) for each in found):
        those = [each for each in found if (each.rules.port, each.backend) == (port, backend)]
        numbers = ", ".join(f"{each.number} of the {len(RULES)} for {each.rules.ip}" for each in those)
        ips = ",".join(str(each.rules.ip) for each in those)
        flags = f"--ip-address={ips} --port={port} --setup-iptables --iptables-backend={backend}"
        yield f"rules of a sidecar stand here, {numbers} and port {port}: repeat with {flags}"


def _may_be_ours(link: Link, held: LinkAddress) -> bool:
    """Whether an address looks like one that a sidecar has added: hardly anybody else adds such ones."""
    is_single = held.prefix_length == held.ip.max_prefixlen and not (held.is_peer or held.ip.is_loopback)
    is_quiet = held.scope == "host" if held.ip.version == IPV4 else held.is_deprecated and held.ip.version == IPV6
    return is_single and (is_quiet or is_ours(link))
