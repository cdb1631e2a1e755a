"""What the kernel is said to have, from files like those of Debian 12 (6.1) and of a kernel without modules."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor import kernel
from sidecar.doctor.kernel import DUMMY, LEGACY_TABLES, NF_TABLES, NFT_COMPAT, NOTRACK, Feature, has

CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.1.140 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"
CONFIG_NF_TABLES=y
CONFIG_NFT_COMPAT=m
CONFIG_IP_NF_RAW=m
CONFIG_IP_NF_FILTER=m
# CONFIG_IP6_NF_RAW is not set
CONFIG_NETFILTER_XT_TARGET_CT=m
# CONFIG_DUMMY is not set
"""
MODULES = """\
nft_compat 20480 4 - Live 0xffffffffc0c11000
x_tables 65536 3 nft_compat,xt_CT,ip_tables, Live 0xffffffffc0bf8000
ip_tables 36864 0 - Live 0xffffffffc0bed000
"""
DEPENDENCIES = """\
kernel/net/ipv4/netfilter/iptable_raw.ko.xz: kernel/net/ipv4/netfilter/ip_tables.ko.xz
kernel/net/netfilter/xt_CT.ko.zst: kernel/net/netfilter/nf_conntrack.ko.zst
kernel/net/netfilter/nft-compat.ko:
kernel/drivers/net/dummy.ko: kernel/drivers/net/iptable_filter.ko
"""
BUILTIN = "kernel/net/netfilter/nf_tables.ko\nkernel/fs/ext4/ext4.ko\n"

LIBRARY = f"lib/modules/{os.uname().release}"
BOOT = f"boot/config-{os.uname().release}"

Write = Callable[[str, str | bytes], None]


@pytest.fixture
def write(tmp_path: Path, mocker: MockerFixture) -> Iterator[Write]:
    """Stand in for the node's files; none is there but those that are written, and each is read anew."""
    readers = [each for each in vars(kernel).values() if hasattr(each, "cache_clear")]
    mocker.patch("sidecar.doctor.kernel.Path", lambda path: tmp_path / path.removeprefix("/"))

    def forget() -> None:
        for reader in readers:
            reader.cache_clear()

    def write(path: str, content: str | bytes) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        forget()

    forget()
    yield write
    forget()


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (NF_TABLES, True),  # built in
        (NFT_COMPAT, True),  # loaded
        (LEGACY_TABLES[4, "raw"], True),  # installed
        (NOTRACK, True),  # installed
        (LEGACY_TABLES[4, "filter"], False),  # a module that is not installed, but another's name has it in it
        (LEGACY_TABLES[6, "raw"], False),  # left out
        (LEGACY_TABLES[6, "filter"], False),  # the configuration does not know it
        (DUMMY, False),  # left out, and the module is of another build
    ],
)
def test_a_kernel_that_tells_all(write: Write, feature: Feature, expected: bool) -> None:  # noqa: FBT001 - a parameter
    write("proc/config.gz", gzip.compress(CONFIG.encode()))
    write("proc/modules", MODULES)
    write(f"{LIBRARY}/modules.dep", DEPENDENCIES)
    write(f"{LIBRARY}/modules.builtin", BUILTIN)
    assert has(feature) is expected


def test_in_a_container_without_the_modules_of_the_node_only_what_is_certain_is_told(write: Write) -> None:
    write("proc/config.gz", gzip.compress(CONFIG.encode()))
    write("proc/modules", MODULES)
    assert has(NF_TABLES) is True
    assert has(NFT_COMPAT) is True
    assert has(NOTRACK) is None  # it may be installed
    assert has(DUMMY) is False


def test_without_the_configuration_the_modules_tell(write: Write) -> None:
    write(f"{LIBRARY}/modules.dep", DEPENDENCIES)
    write(f"{LIBRARY}/modules.builtin", BUILTIN)
    assert [has(each) for each in (NF_TABLES, NFT_COMPAT, NOTRACK, DUMMY)] == [True] * 4
    assert has(LEGACY_TABLES[4, "filter"]) is False


@pytest.mark.parametrize("name", ["modules.dep", "modules.builtin"])
def test_one_of_the_lists_of_modules_is_enough(write: Write, name: str) -> None:
    write(f"{LIBRARY}/{name}", "kernel/drivers/net/dummy.ko:\n" if name == "modules.dep" else "kernel/x/dummy.ko\n")
    assert has(DUMMY) is True
    assert has(NOTRACK) is False


def test_what_is_loaded_is_there_whatever_else_is_said(write: Write) -> None:
    write("proc/modules", "dummy 16384 0 - Live 0xffffffffc0b00000\n")
    write("proc/config.gz", gzip.compress(CONFIG.encode()))
    assert has(DUMMY) is True


def test_who_only_uses_a_module_is_not_it(write: Write) -> None:
    write("proc/modules", MODULES)
    assert has(NOTRACK) is None
    assert has(NFT_COMPAT) is True


def test_a_kernel_that_tells_nothing(write: Write) -> None:
    assert [has(each) for each in (NF_TABLES, NOTRACK, DUMMY, *LEGACY_TABLES.values())] == [None] * 7
    write("proc/modules", "")
    assert has(DUMMY) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"no gzip",
        gzip.compress(CONFIG.encode())[:40],
        gzip.compress(b"\xff"),
        gzip.compress(b""),
        gzip.compress(b"#\n"),
    ],
    ids=["no gzip", "cut off", "no text", "empty", "no option"],
)
def test_the_configuration_in_boot_where_that_in_proc_is_of_no_use(write: Write, broken: bytes) -> None:
    write("proc/config.gz", broken)
    assert has(NF_TABLES) is None
    write(BOOT, CONFIG)
    assert has(NF_TABLES) is True
    assert has(DUMMY) is False


def test_the_configuration_in_proc_is_that_of_the_running_kernel(write: Write) -> None:
    write(BOOT, CONFIG)
    write("proc/config.gz", gzip.compress(b"CONFIG_DUMMY=y\n"))
    assert has(DUMMY) is True
    assert has(NF_TABLES) is False


def test_a_kernel_without_modules(write: Write) -> None:
    write("proc/config.gz", gzip.compress(b"# CONFIG_MODULES is not set\nCONFIG_NF_TABLES=y\nCONFIG_DUMMY=y\n"))
    assert [has(each) for each in (NF_TABLES, DUMMY, NOTRACK)] == [True, True, False]
