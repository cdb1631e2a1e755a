from dataclasses import replace

import pytest

from sidecar.doctor.findings import Finding, Level, exit_code
from support.findings import finding

OK = finding(Level.OK, "program", "it runs")
NOTE = finding(Level.NOTE, "tls", "not for this address")
WARNING = finding(Level.WARNING, "rules", "2 copies")
FAULT = finding(Level.FAULT, "listener", "nothing listens")
UNKNOWN = finding(Level.UNKNOWN, "conntrack", "permission denied")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([OK, NOTE, WARNING, UNKNOWN], 0),
        ([OK, FAULT], 1),
        ([OK, replace(NOTE, is_drift=True)], 1),
        ([finding(Level.UNKNOWN, "connect", "no time")], 1),
        ([finding(Level.UNKNOWN, "rules", "could not look")], 1),
        ([finding(Level.UNKNOWN, "address", "could not look")], 1),
        ([FAULT, finding(Level.FAULT, "commands", "ip is not installed", node_lacks=True)], 3),
        ([finding(Level.UNKNOWN, "rules", "no permission", node_lacks=True)], 3),
    ],
)
def test_the_exit_code(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code
