import pytest

from sidecar import PROGRAM
from sidecar.settings import invocation, usage
from sidecar.settings.options import FLAGS, Flag

ON_ALL = "`run`, `status`, `plan`, `cleanup` and `doctor`"


def row(flag: Flag, lines: list[str]) -> str:
    begin = f"  -{flag.letter}, --{flag.name} " if flag.letter else f"  {flag.spelled} "
    (line,) = [line for line in lines if line.startswith(begin)]
    return line


def test_the_help_has_every_flag_in_one_line_with_its_variable_and_its_default() -> None:
    lines = usage.usage().splitlines()
    for flag in FLAGS.values():
        line = row(flag, lines)
        assert f" {flag.variable} " in line
        assert f" {flag.default or '-' * (flag.default is not None) or 'required'} " in line
        assert line.endswith(f" {flag.help}")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", invocation.COMMANDS)
def test_the_help_on_a_command_has_its_flags_only_and_two_examples_that_work(command: str) -> None:
    text = usage.usage(command)
    assert text.startswith(f"Usage: {PROGRAM} {command} ")
    shown = {
        word for line in text.splitlines() for word in line.split() if word in {f.variable for f in FLAGS.values()}
    }
    assert shown == {flag.variable for flag in FLAGS.values() if command in flag.commands}
    examples = [line.split() for line in text.splitlines() if line.startswith(f"  {PROGRAM} ")]
    assert len(examples) == 2
    for program, *words in examples:
        line = invocation.parse(words[: words.index(">")] if ">" in words else words)
        assert (program, line.command, line.faults) == (PROGRAM, command, [])


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("topic", ["", "run", "doctor"])
def test_the_help_fits_the_terminal_and_loses_nothing(topic: str, width: int) -> None:
    text = usage.usage(topic, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.split() == usage.usage(topic, 1000).split()


def test_a_command_that_can_do_without_an_address_does_not_call_it_required() -> None:
    assert " required " in row(FLAGS["ip-address"], usage.usage("cleanup").splitlines())
    assert " required " not in usage.usage("status")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([], "run"),
        (["run"], "run"),
        (["run", "--cleanup"], "run"),
        (["--cleanup", "run"], "run"),
        (["--port", "version"], "run"),
        (["doctor", "--output=json"], "doctor"),
        (["completion", "bash"], "completion"),
        (["stauts", "--help"], "help"),
        (["--cleanup", "false", "--help"], "help"),
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
        (["version", "--port=1"], [f"--port works only with {ON_ALL}"]),
        (["--cleanup", "--version"], ["--cleanup works only with `run`"]),
        (["completion", "bash", "-v"], ["-v: needs a value"]),
        (["completion", "bash", "--watch"], ["--watch works only with `status`"]),
        (["completion"], ["completion needs the name of a shell: one of bash, zsh, fish"]),
        (
            ["completion", "tcsh"],
            ["unexpected word tcsh", "completion needs the name of a shell: one of bash, zsh, fish"],
        ),
        (["--cleanup", "false", "--help"], []),
        (["status", "--nonsense", "--help"], []),
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


@pytest.mark.parametrize(
    ("word", "meant"),
    [("stauts", "status"), ("check", "doctor"), ("CHECK", "doctor"), ("clean", "cleanup"), ("start", "run"),
     ("delete", "cleanup"), ("diff", "plan"), ("show", "status"), ("complete", "completion")],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "help {}", "{} --help", "{} --ip-address=10.96.0.2"])
def test_a_near_miss_of_a_command_is_understood(word: str, meant: str, form: str) -> None:
    (fault,) = invocation.parse(form.format(word).split()).faults
    assert fault == f"unknown command {word}: it is one of {', '.join(invocation.COMMANDS)}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("argv", "topic"),
    [("help", ""), ("--help", ""), ("help plan", "plan"), ("plan -h", "plan"), ("--port=1 run --help", "run"),
     ("help help", "help"), ("completion --help", "completion"), ("completion zsh", "zsh"), ("plan", "")],
)  # fmt: skip
def test_what_help_or_completion_is_about(argv: str, topic: str) -> None:
    assert invocation.parse(argv.split()).topic == topic


def test_values_are_kept_in_order() -> None:
    line = invocation.parse(["--port=1", "run", "--port", "2", "-v4", "--log-dir=/x"])
    assert line.values == {"port": ["1", "2"], "v": ["4"], "log_dir": ["/x"]}
