"""Finds out what the kernel supports by reading files only: nothing is loaded, created or tried."""

import gzip
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the kernel: its module, and the option (Kconfig) by which it is built."""

    module: str
    option: str


LEGACY_TABLES: Final = {
    (4, "raw"): Feature("iptable_raw", "CONFIG_IP_NF_RAW"),
    (4, "filter"): Feature("iptable_filter", "CONFIG_IP_NF_FILTER"),
    (6, "raw"): Feature("ip6table_raw", "CONFIG_IP6_NF_RAW"),
    (6, "filter"): Feature("ip6table_filter", "CONFIG_IP6_NF_FILTER"),
}
NF_TABLES: Final = Feature("nf_tables", "CONFIG_NF_TABLES")
NFT_COMPAT: Final = Feature("nft_compat", "CONFIG_NFT_COMPAT")
NOTRACK: Final = Feature("xt_CT", "CONFIG_NETFILTER_XT_TARGET_CT")
DUMMY: Final = Feature("dummy", "CONFIG_DUMMY")


def has(feature: Feature) -> bool | None:
    """Whether the running kernel has a feature, built in or as a module, loaded or not; None: that cannot be read."""
    if feature.module in _loaded():
        return True
    options = _options()
    modules = _modules()
    if options is not None and feature.option not in options:
        return False
    if options is not None and options[feature.option] == "y":
        return True
    return None if modules is None else feature.module in modules


@cache
def _loaded() -> frozenset[str]:
    try:
        return frozenset(line.split()[0] for line in Path("/proc/modules").read_text().splitlines())
    except OSError:  # a kernel without modules
        return frozenset()


@cache
def _options() -> dict[str, str] | None:
    """Return the kernel's configuration, if it can be read; one without a single option is not believed."""
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")):
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        except (OSError, EOFError, UnicodeError):
            continue
        lines = (line for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
        if options := dict(line.split("=", 1) for line in lines):
            return options
    return None


@cache
def _modules() -> frozenset[str] | None:
    """Return the names of the modules that are installed or built in, if they can be read."""
    directory = Path("/lib/modules") / os.uname().release
    found: set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        try:
            text = (directory / name).read_text()
        except OSError:
            continue
        paths = (line.partition(":")[0] for line in text.splitlines())
        found |= {path.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for path in paths}
    return frozenset(found) if found else None
