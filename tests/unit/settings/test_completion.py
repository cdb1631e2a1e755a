import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar import PROGRAM
from sidecar.settings import completion
from sidecar.settings.invocation import COMMANDS, SHELLS
from sidecar.settings.options import FLAGS


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "bash"
    path.write_text(completion.script("bash"))
    return path


def completed(script: Path, *words: str) -> set[str]:
    """Return what bash offers for the last of these words."""
    if not (bash := shutil.which("bash")):
        pytest.skip("bash is not installed")
    ask = f"""
        set -eu
        source "$0"
        [[ $(complete -p {PROGRAM}) == *" -F "* ]]
        COMP_WORDS=({PROGRAM} "$@") COMP_CWORD=$#
        $(complete -p {PROGRAM} | sed -E 's/.* -F ([^ ]+) .*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([bash, "-c", ask, script, *words], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["st"], {"status"}),
        (["status", "--wa"], {"--watch"}),
        (["plan", "--wa"], set()),
        (["--cleanup", "pl"], {"plan"}),
        (["--dae"], {"--daemon"}),
        (["--output", "json", "version", "--o"], {"--output"}),
        (["completion", ""], {*SHELLS, "--help"}),
        (["help", ""], {*COMMANDS}),
        (["run", "--ip-address=10.96.0.2", "--interf"], {"--interface"}),
        (["status", "/t"], set()),
    ],
)
def test_what_bash_offers(script: Path, words: list[str], offered: set[str]) -> None:
    assert completed(script, *words) == offered


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_flags_of_the_command_and_no_other(script: Path, command: str) -> None:
    flags = {f"--{flag.name}" for flag in FLAGS.values() if command in flag.commands}
    assert completed(script, command, "--") - {"--help"} == flags


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell: str, tmp_path: Path) -> None:
    text = completion.script(shell)
    for flag in FLAGS.values():
        assert flag.name in text
    if not (path := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed: nobody read the script")
    (tmp_path / "script").write_text(text)
    subprocess.run([path, "--no-execute", tmp_path / "script"], check=True)
