import pytest

from sidecar.doctor.findings import Finding, Level, exit_code

OK = Finding(Level.OK, "program", "it runs")
NOTE = Finding(Level.NOTE, "tls", "not for this address")
WARNING = Finding(Level.WARNING, "rules", "2 copies")
FAULT = Finding(Level.FAULT, "listener", "nothing listens")
UNKNOWN = Finding(Level.UNKNOWN, "conntrack", "permission denied")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([OK, NOTE, WARNING, UNKNOWN], 0),
        ([OK, FAULT], 1),
        ([Finding(Level.UNKNOWN, "rules", "could not look")], 1),
        ([Finding(Level.UNKNOWN, "address", "could not look")], 1),
        ([FAULT, Finding(Level.FAULT, "commands", "ip is not installed", node_lacks=True)], 3),
        ([Finding(Level.UNKNOWN, "rules", "no permission", node_lacks=True)], 3),
    ],
)
def test_the_exit_code(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code
