import pytest

from sidecar.node.releases import Release, faults, parse
from sidecar.state.model import Family


@pytest.mark.parametrize(
    ("text", "number", "is_legacy"),
    [
        ("iptables v1.8.9 (nf_tables)\n", (1, 8, 9), False),
        ("ip6tables v1.8.11 (legacy)\n", (1, 8, 11), True),
        ("iptables v1.6.1\n", (1, 6, 1), True),
    ],
)
def test_versions(text: str, number: tuple[int, int, int], is_legacy: bool) -> None:  # noqa: FBT001 - a parameter
    assert parse(text) == Release(number, is_legacy)
    assert str(parse(text)) == text.split()[1].removeprefix("v")


@pytest.mark.parametrize("text", ["", "iptables", "nftables v1.0.6"])
def test_what_iptables_never_prints_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the output"):
        parse(text)


@pytest.mark.parametrize(
    ("number", "is_legacy", "family", "issues"),
    [
        ((1, 8, 11), False, 4, []),
        ((1, 8, 9), False, 4, []),
        ((1, 8, 9), False, 6, []),
        ((1, 8, 9), True, 4, []),
        ((1, 8, 9), True, 6, ["another port"]),
        ((1, 8, 10), False, 4, ["kube-router#1676"]),
        ((1, 8, 7), False, 4, ["kubernetes/dns#568"]),
        ((1, 8, 7), True, 4, []),
        ((1, 8, 4), False, 4, ["kubernetes/dns#568", "cilium#20714"]),
    ],
)
def test_known_bad_releases(number: tuple[int, int, int], is_legacy: bool, family: Family, issues: list[str]) -> None:  # noqa: FBT001 - a parameter
    found = faults(Release(number, is_legacy), family)
    assert len(found) == len(issues)
    assert all(issue in fault for issue, fault in zip(issues, found, strict=True))
