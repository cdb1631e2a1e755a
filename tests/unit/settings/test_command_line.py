import pytest

from sidecar.settings import command_line

FLAGS = ["ip-address", "cleanup", "daemon", "v", "h", "log_dir"]
BOOLEANS = ["cleanup", "daemon"]
SHORT = {"i": "ip-address"}


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--ip-address=1"], {"ip-address": ["1"]}),
        (["--ip-address", "1"], {"ip-address": ["1"]}),
        (["--ip-address", "--cleanup"], {"ip-address": ["--cleanup"]}),
        (["--ip-address=1", "--ip-address", "2"], {"ip-address": ["1", "2"]}),
        (["--ip-address="], {"ip-address": [""]}),
        (["--ip-address=a=b"], {"ip-address": ["a=b"]}),
        (["--cleanup"], {"cleanup": ["true"]}),
        (["--cleanup=false", "--daemon=0"], {"cleanup": ["false"], "daemon": ["0"]}),
        (["-v2"], {"v": ["2"]}),
        (["-v", "2"], {"v": ["2"]}),
        (["-v=2"], {"v": ["2"]}),
        (["--v=2"], {"v": ["2"]}),
        (["--log_dir=x"], {"log_dir": ["x"]}),
        (["--log-dir", "x"], {"log_dir": ["x"]}),
        (["--ip_address=1"], {"ip-address": ["1"]}),
        (["-i1", "-i", "2", "-i=3", "--ip-address=4"], {"ip-address": ["1", "2", "3", "4"]}),
    ],
)
def test_the_grammar_of_pflag(argv: list[str], values: dict[str, list[str]]) -> None:
    line = command_line.parse(argv, flags=FLAGS, booleans=BOOLEANS, short=SHORT)
    assert (line.values, line.words, line.faults) == (values, [], [])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "--cleanup"], ["run"]),
        (["--cleanup", "run"], ["run"]),
        (["--cleanup", "false"], ["false"]),
        (["--", "--cleanup", "-v"], ["--cleanup", "-v"]),
        (["-"], ["-"]),
        ([""], [""]),
    ],
)
def test_words_are_what_no_flag_takes(argv: list[str], words: list[str]) -> None:
    assert command_line.parse(argv, flags=FLAGS, booleans=BOOLEANS, short=SHORT).words == words


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--ip-adress=1"], "unknown flag --ip-adress; did you mean --ip-address?"),
        (["--ip=1"], "unknown flag --ip"),
        (["-x"], "unknown flag -x"),
        (["--log_dri=x"], "unknown flag --log_dri; did you mean --log_dir?"),
        (["-cleanup=true"], "unknown flag -cleanup; did you mean --cleanup?"),
        (["--=1"], "unknown flag --"),
        (["--a\nb" + "c" * 100_000], "unknown flag --a\\nb" + "c" * 53 + "…"),
        (["--ip-address"], "--ip-address: needs a value"),
        (["-v"], "-v: needs a value"),
        (["-i"], "--ip-address: needs a value"),
        (["--i=1"], "unknown flag --i"),
        (["---i=1"], "unknown flag ---i"),
        (["-ip-address=1"], "unknown flag -ip-address; did you mean --ip-address?"),
    ],
)
def test_faults_name_the_flag(argv: list[str], fault: str) -> None:
    assert command_line.parse(argv, flags=FLAGS, booleans=BOOLEANS, short=SHORT).faults == [fault]
