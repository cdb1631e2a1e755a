import pytest

from sidecar.settings import invocation, usage
from sidecar.settings.options import FLAGS


def test_the_help_has_every_flag_in_one_line_with_its_variable_and_its_default() -> None:
    lines = usage.usage().splitlines()
    for flag in FLAGS.values():
        (line,) = [line for line in lines if line.startswith((f"  {flag.spelled} ", f"  {flag.spelled}, "))]
        assert f" {flag.variable} " in line
        assert f" {flag.default or '-' * (flag.default is not None) or 'required'} " in line
        assert line.endswith(f" {flag.help}")
    assert max(map(len, lines)) < 100


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([], "run"),
        (["run"], "run"),
        (["run", "--cleanup"], "run"),
        (["--cleanup", "run"], "run"),
        (["--port", "version"], "run"),
        (["doctor", "--output=json"], "doctor"),
        (["status"], "status"),
        (["--port=1", "plan", "--cleanup"], "plan"),
        (["cleanup", "--cleanup"], "cleanup"),
        (["--port=1", "doctor"], "doctor"),
        (["version"], "version"),
        (["--version"], "version"),
        (["--cleanup", "version", "--port=1"], "version"),
        (["help"], "help"),
        (["help", "run"], "help"),
        (["--help"], "help"),
        (["-h"], "help"),
        (["run", "--port=1", "-h"], "help"),
        (["--nonsense", "--help"], "help"),
        (["version", "--help"], "help"),
        (["--help=false", "--version=false"], "run"),
        (["--interface", "--help"], "run"),
        (["--", "--help"], "unknown"),
    ],
)
def test_the_command(argv: list[str], command: str) -> None:
    assert invocation.parse(argv).command == command


@pytest.mark.parametrize(
    ("argv", "faults"),
    [
        (
            ["verison"],
            [f"unknown command verison: it is one of {', '.join(invocation.COMMANDS)}; did you mean version?"],
        ),
        (
            ["10.96.0.2"],
            ["unexpected word 10.96.0.2; several addresses are separated by commas: --ip-address=10.96.0.2,10.96.0.3"],
        ),
        (
            ["run", "fd00::2"],
            ["unexpected word fd00::2; several addresses are separated by commas: --ip-address=10.96.0.2,10.96.0.3"],
        ),
        (["run", "run"], ["unexpected word run"]),
        (["version", "now"], ["unexpected word now"]),
        (["version", "--nonsense"], ["unknown flag --nonsense"]),
        (
            ["--cleanup", "FALSE"],
            ["unexpected word FALSE; a boolean takes its value with =, like --cleanup=false"],
        ),
        (
            ["run", "--daemon", "no"],
            ["unexpected word no; a boolean takes its value with =, like --cleanup=false"],
        ),
    ],
)
def test_what_is_wrong_with_a_command_line(argv: list[str], faults: list[str]) -> None:
    assert invocation.parse(argv).faults == faults


def test_values_are_kept_in_order() -> None:
    line = invocation.parse(["--port=1", "run", "--port", "2", "-v4", "--log-dir=/x"])
    assert line.values == {"port": ["1", "2"], "v": ["4"], "log_dir": ["/x"]}
