"""What is read of the kernel, held to what the kernel does."""

import pytest

from sidecar.doctor import kernel
from support.namespace import Namespace


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("family", [4, 6])
def test_what_works_is_not_called_missing(namespace: Namespace, backend: str, family: int) -> None:
    namespace.iptables(backend, family, "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "-j", "NOTRACK")
    namespace.iptables(backend, family, "-t", "filter", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    needed = [kernel.NF_TABLES, kernel.NFT_COMPAT]
    if backend == "legacy":
        needed = [feature for (version, _), feature in kernel.LEGACY_TABLES.items() if version == family]
    for feature in (kernel.NOTRACK, *needed):
        assert kernel.has(feature) is not False


def test_links_of_the_kind_dummy(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "name", "link0", "type", "dummy", check=False)
    works = "link0" in namespace.run("ip", "link")
    assert kernel.has(kernel.DUMMY) in (works, None)


def test_what_no_kernel_has() -> None:
    assert kernel.has(kernel.Feature("no_such_module", "CONFIG_NO_SUCH_OPTION")) is not True
