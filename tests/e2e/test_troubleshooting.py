"""Every example in docs/troubleshooting.md is what the program prints on a node that is broken like that.

A comment above a block says how: `<!-- node: COMMANDS -->`, run on a node in sync with a proxy behind the address.
`$PROXY` is its process id, `$LISTEN` starts another one (support/proxy.py), `$EXPIRED` is a certificate for that,
`await 'COMMAND'` waits until the command succeeds, and what the program prints meanwhile is in /run/output.
`node for root` is left out for an ordinary user.

In the block a line `$ COMMAND` is run, and what follows it is compared with its output, standard error included. A line
`…` stands for any number of lines; what differs from run to run is not compared, nor where lines are broken.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support import proxy
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.program import PROGRAM
from support.waiting import HANG

GUIDE: Final = Path(__file__).parents[2] / "docs" / "troubleshooting.md"

_BLOCK: Final = re.compile(r"<!-- node(?P<root> for root)?: (?P<how>.*?) -->\n```\n(?P<text>.*?)```\n", re.DOTALL)
_FENCE: Final = re.compile(r"```\n(.*?)```\n", re.DOTALL)

#: What varies → what stands for it: times, process ids, releases, durations; and what an ordinary user cannot see.
_MASKS: Final = (
    (r"\d\d:\d\d:\d\d\.\d{6} +\d+ (\w+\.py):\d+", r"TIME \1"),
    (r"^([IWE])\d{4} ", r"\1 "),
    (r"\b(pid[ =]|kill )\d+", r"\1N"),
    (r"\(python\)", "(haproxy)"),  # the listener
    (r"(?<![\d.])\d\.\d+\.\d+\b(?!\.)", "VERSION"),
    (r"\d+\.\d ms", "N ms"),
    (r"\d\.\d+s", "N s"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE"),
    (r"^\? .*\n( {4,}.*\n)*|, \d unknown", ""),
    (r"^…$", "\0"),
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Example:
    heading: str
    how: str
    text: str
    is_for_root: bool


def examples() -> Iterator[Example]:
    guide = GUIDE.read_text()
    for found in _BLOCK.finditer(guide):
        heading = re.findall(r"^## (.*)$", guide[: found.start()], re.MULTILINE)[-1]
        yield Example(heading, found["how"], found["text"], bool(found["root"]))


def masked(text: str) -> str:
    for pattern, replacement in _MASKS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def script(example: Example, certificate: Path) -> str:
    """Return a script that makes a node, breaks it, and prints commands and output as the block has them."""
    commands = [line.removeprefix("$ ") for line in example.text.splitlines() if line.startswith("$ ")]
    shown = [f"cat <<'END'\n$ {command}\nEND\n{command}" for command in commands]
    return "\n".join(
        (
            'await() { until eval "$1"; do sleep 0.05; done; }',
            f"PATH={PROGRAM.parent}:$PATH; export SIDECAR_IP_ADDRESS=10.96.0.2 SIDECAR_SETUP_IPTABLES=true",
            "exec 3>&1 > /run/output 2>&1",
            f"LISTEN='{sys.executable} {proxy.__file__}' EXPIRED={certificate.with_suffix('.expired')}",
            f"$LISTEN 10.96.0.2 443 tls {certificate} & PROXY=$!; trap 'kill $PROXY $(jobs -p) 2>/dev/null' EXIT",
            f"while ! ss -Hltn | grep -q 10.96.0.2:443; do sleep 0.02; done; {example.how}",
            "exec >&3 2>&1",
            *shown,
        )
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "pem"
    proxy.make_certificate(path.with_suffix(".expired"), years=-3)
    return proxy.make_certificate(path)


@pytest.mark.parametrize("example", list(examples()), ids=lambda each: each.how[:40])
def test_an_example_is_what_is_printed(namespace: Namespace, certificate: Path, example: Example) -> None:
    if example.is_for_root and os.geteuid():
        pytest.skip("what is shown there, only root of the node can see")
    put_in_place(namespace, "--ip-address=10.96.0.2", "--setup-iptables")
    printed = masked(namespace.run("timeout", str(HANG), "bash", "-c", script(example, certificate), check=False))
    pattern = re.escape(masked(example.text)).replace("\\ \0\\ ", "( .*)? ")
    assert re.fullmatch(pattern, printed), f"under {example.heading!r}:\n{printed}"


def test_every_block_that_shows_output_is_run() -> None:
    shown = [text for text in _FENCE.findall(GUIDE.read_text()) if re.search(r"^\$ ", text, re.MULTILINE)]
    assert shown == [each.text for each in examples()]


def test_the_table_of_contents_leads_to_every_symptom() -> None:
    guide = GUIDE.read_text()
    headings = re.findall(r"^## (.*)$", guide, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
    assert list(dict.fromkeys(re.findall(r"\]\(#(.*?)\)", guide))) == anchors
