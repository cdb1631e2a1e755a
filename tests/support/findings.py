"""Findings as tests write them down: the topic comes before the text, as in doctor's output."""

from sidecar.doctor.findings import Finding, Level
from sidecar.state.model import Facts


def finding(  # noqa: PLR0913, PLR0917 - the fields of Finding
    level: Level,
    topic: str,
    found: str,
    remedy: str = "",
    commands: tuple[str, ...] = (),
    facts: Facts | None = None,
    *,
    node_lacks: bool = False,
) -> Finding:
    return Finding(level, found, remedy, commands, facts or {}, node_lacks, topic)
