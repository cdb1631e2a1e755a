"""What an operator can get wrong: each ends with 2 and a line or a few that help; nothing on the node is touched."""

import json
from pathlib import Path

import jsonschema
import pytest

from sidecar import cli
from support.namespace import Namespace
from support.program import Start

GOOD = "--ip-address=10.96.0.2"

#: Arguments, and what the answer has to contain.
BAD: list[tuple[list[str], str]] = [
    # nothing, or words
    ([], "--ip-address or SIDECAR_IP_ADDRESS is required"),
    (["run"], "--ip-address or SIDECAR_IP_ADDRESS is required"),
    (["verison"], "did you mean version?"),
    (["verison", "--port=0"], "did you mean version?"),
    (["check"], "did you mean doctor?"),
    (["help", "stauts"], "did you mean status?"),
    (["status", "--daemon"], "--daemon works only with `run`"),
    (["version", "-v2"], "-v works only with `run`, `status`, `plan`, `cleanup` and `doctor`"),
    (["version", "--output=xml"], "--output=xml: unknown: write one of text, json"),
    (["completion"], "one of bash, zsh, fish"),
    (["--ip-adress", "10.96.0.2"], "did you mean --ip-address?"),
    ([GOOD, "--env-file=/etc/passwd"], "is not NAME=value"),
    (["start", GOOD], "unknown command start"),
    (["RUN", GOOD], "unknown command RUN"),
    (["", GOOD], "unknown command : it is one of"),
    (["zurücksetzen", GOOD], "unknown command zurücksetzen"),
    (["run", "run", GOOD], "unexpected word run"),
    (["10.96.0.2"], "unexpected word 10.96.0.2; several addresses are separated by commas"),
    ([GOOD, "--cleanup", "false"], "a boolean takes its value with =, like --cleanup=false"),
    ([GOOD, "--", "--cleanup"], "unknown command --cleanup"),
    (["version", "--short"], "unknown flag --short"),
    # flags
    ([GOOD, "--nonsense"], "unknown flag --nonsense"),
    ([GOOD, "--clean-up"], "did you mean --cleanup?"),
    ([GOOD, "--setup-iptable=true"], "did you mean --setup-iptables?"),
    ([GOOD, "-cleanup"], "did you mean --cleanup?"),
    ([GOOD, "-x"], "unknown flag -x"),
    ([GOOD, "-vmodule=a=1"], "unknown flag -vmodule; did you mean --vmodule?"),
    ([GOOD, "--=x"], "unknown flag --"),
    ([GOOD, "---port=1"], "did you mean --port?"),
    ([GOOD, "--PORT=1"], "unknown flag --PORT"),
    ([GOOD, "--端口=443"], "unknown flag --端口"),
    ([GOOD, "--" + "x" * 10_000], "unknown flag --xxx"),
    ([GOOD, "--port"], "--port: needs a value"),
    ([GOOD, "-v"], "-v: needs a value"),
    # addresses
    (["--ip-address="], "contains an empty address"),
    (["--ip-address=10.96.0.2,,10.96.0.3"], "contains an empty address"),
    (["--ip-address=10.96.0.300"], "is not an IP address"),
    (["--ip-address=10.96.0"], "is not an IP address"),
    (["--ip-address=localhost"], "is not an IP address"),
    (["--ip-address=10.96.0.2:443"], "is not an IP address"),
    (["--ip-address=10.96.0.2 10.96.0.3"], "is not an IP address"),
    (["--ip-address=١٠.٩٦.٠.٢"], "is not an IP address"),
    (["--ip-address=" + "9" * 100_000], "is not an IP address"),
    (["--ip-address=" + "10.96.0.2," * 2_000], "contains an empty address"),
    (["--ip-address=10.96.0.0/24"], "has a prefix length"),
    (["--ip-address=fe80::1%lo"], "has a zone"),
    (["--ip-address=127.0.0.1"], "is a loopback address"),
    (["--ip-address=10.96.0.2,224.0.0.1"], "is a multicast address"),
    (["--ip-address=::"], "is the unspecified address"),
    (["--ip-address=255.255.255.255"], "is the broadcast address"),
    # interfaces
    ([GOOD, "--interface=" + "x" * 10_000], "must have 1 to 15 bytes"),
    ([GOOD, "--interface=ネットワーク"], "must have 1 to 15 bytes"),
    ([GOOD, "--interface=a%d"], "not contain %, # or"),
    ([GOOD, "--interface=a#b"], "not contain %, # or"),
    ([GOOD, "--interface=lo/0"], "must not contain a slash, colon, space or control character"),
    ([GOOD, "--interface=lo\n"], "must not contain a slash, colon, space or control character"),
    ([GOOD, "--interface=\x1b[2J"], "must not contain a slash, colon, space or control character"),
    # numbers
    ([GOOD, "--port=99999"], "a number from 1 to 65535"),
    ([GOOD, "--port=443.0"], "a number from 1 to 65535"),
    ([GOOD, "--port=0x1bb"], "a number from 1 to 65535"),
    ([GOOD, "--port=４４３"], "a number from 1 to 65535"),
    ([GOOD, "--port=" + "4" * 10_000], "a number from 1 to 65535"),
    ([GOOD, "--port=tcp://10.0.0.1:443"], "set enableServiceLinks: false"),
    ([GOOD, "-v=loud"], "write a number like 2"),
    ([GOOD, "-vv"], "write a number like 2"),
    ([GOOD, "--log_file_max_size=1GB"], "a whole number of megabytes"),
    # booleans, words
    ([GOOD, "--cleanup=ja"], "write true or false"),
    ([GOOD, "--daemon="], "write true or false"),
    ([GOOD, "--logtostderr=tRUE"], "write true or false"),
    ([GOOD, "--iptables-backend=nftables"], "one of auto, nft, legacy, system"),
    ([GOOD, "--logging-format=yaml"], "one of text, json"),
    ([GOOD, "--stderrthreshold=CRITICAL"], "0 to 3, or INFO, WARNING, ERROR or FATAL"),
    # durations
    ([GOOD, "--sync-interval=60"], "did you mean 60s?"),
    ([GOOD, "--sync-interval=0"], "must be at least 10ms"),
    ([GOOD, "--sync-interval=1 m"], "write it like 90s, 1m30s or 500ms"),
    ([GOOD, "--sync-interval=-1m"], "write it like 90s, 1m30s or 500ms"),
    ([GOOD, "--sync-interval=" + "1h" * 5_000], "write it like 90s, 1m30s or 500ms"),
    ([GOOD, "--sync-interval=1d"], "write it like 90s, 1m30s or 500ms"),
    ([GOOD, "--command-timeout=0s"], "must be at least 10ms and at most 1h0m0s"),
    ([GOOD, "--setup-iptables", "--iptables-wait=30s"], "the timeout must be longer than the wait"),
    # lists, files, places
    ([GOOD, "--vmodule=daemon:2"], "write it like reconcile=2,command=6"),
    ([GOOD, "--log_backtrace_at=90"], "write it like daemon.py:90"),
    ([GOOD, "--env-file=/nonexistent"], "No such file or directory"),
    ([GOOD, "--env-file=/"], "Is a directory"),
    ([GOOD, "--env-file=/dev/zero"], "is longer than 100000 characters"),
    ([GOOD, "--env-file=" + "x" * 10_000], "File name too long"),
]

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "error.v1.json"

LIBRARIES = (
    "pydantic",
    "loguru",
    "dotenv",
    "argparse",
    "validation error",
    "traceback",
    "errno",
    "further information",
)


def check(answer: str, advice: str) -> None:
    lines = answer.splitlines()
    assert 1 <= len(lines) <= 4
    for line in lines:
        assert line.startswith("apiserver-proxy-sidecar: ")
        assert line.isprintable()
        assert len(line) < 300
    assert advice in answer
    assert not [name for name in LIBRARIES if name in answer.lower()]


@pytest.mark.parametrize(("argv", "advice"), BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_a_bad_command_line(argv: list[str], advice: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check(err, advice)


def test_without_any_argument_it_says_where_to_read_on(start: Start) -> None:
    sidecar = start()
    assert sidecar.end() == 2
    assert sidecar.log.endswith("see --help\n")
    sidecar = start("run")
    assert sidecar.end() == 2
    assert "--help" not in sidecar.log


@pytest.mark.parametrize(
    ("argv", "failures"),
    [
        (["status", GOOD, "--port=0", "-o", "json"], ["--port=0: not a port: write a number from 1 to 65535"]),
        (["plan", "-ojson", "--watch", GOOD], ["--watch works only with `status`"]),
        (["version", "-o=json", "--nonsense"], ["unknown flag --nonsense"]),
        (["completion", "bash", "-x", "a\033"], ["unknown flag -x"]),
    ],
)
def test_faults_are_json_where_json_was_asked_for(
    argv: list[str], failures: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    if argv[0] == "completion":  # it has no use for --output
        assert (out, err) == ("", f"apiserver-proxy-sidecar: {failures[0]}\n")
        return
    assert err == ""
    value = json.loads(out)
    jsonschema.validate(value, json.loads(SCHEMA.read_text()))
    assert value == {"schema": "error/v1", "exit": 2, "failures": failures}
    monkeypatch.setenv("SIDECAR_OUTPUT", "json")
    assert cli.main([word for word in argv if "json" not in word and word != "-o"]) == 2
    assert json.loads(capfd.readouterr().out) == value


def test_a_word_that_is_no_command_may_ask_for_json_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stauts", "--output=json"]) == 2
    (failure,) = json.loads(capfd.readouterr().out)["failures"]
    assert failure.endswith("did you mean status?")


def test_one_of_each_flag_as_a_process_that_touches_nothing(start: Start, namespace: Namespace) -> None:
    one_of_each = {argv[-1].partition("=")[0]: (argv, advice) for argv, advice in BAD if argv}
    for argv, advice in one_of_each.values():
        sidecar = start(*argv)
        assert sidecar.end() == 2, argv
        check(sidecar.log, advice)
    assert namespace.is_clean()


@pytest.mark.parametrize("flag", ["--ip-address", "--interface", "--port", "--v", "--daemon", "--sync-interval",
                                  "--vmodule", "--log_file", "--log_dir", "--env-file", "--no\0nsense"])  # fmt: skip
def test_a_nul_that_no_shell_lets_through(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([GOOD, f"{flag}=a\0b"]) == 2
    check(capsys.readouterr().err, "\\x00")


def test_bytes_that_are_no_text(start: Start) -> None:
    sidecar = start(b"--interface=\xff\xfe\n".decode(errors="surrogateescape"), GOOD)
    assert sidecar.end() == 2
    check(sidecar.log, "--interface=\\udcff\\udcfe\\n: not an interface name")


def test_a_variable_is_named_where_the_value_came_from_one(start: Start) -> None:
    sidecar = start(SIDECAR_IP_ADDRESS="10.96.0.2", SIDECAR_PORT="tcp://10.0.0.1:443", SIDECAR_V="x")
    assert sidecar.end() == 2
    check(sidecar.log, "SIDECAR_PORT=tcp://10.0.0.1:443: set by Kubernetes for a Service named `sidecar`")
    assert "SIDECAR_V=x: " in sidecar.log


def test_a_great_many_faults_are_counted(start: Start) -> None:
    sidecar = start("run", *(f"word{n}" for n in range(1000)))
    assert sidecar.end() == 2
    assert len(sidecar.log.splitlines()) == 11
    assert sidecar.log.endswith("apiserver-proxy-sidecar: and 991 more\n")


def test_the_words_of_a_wrong_file_stay_in_it(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\nmore secret\n")
    sidecar = start(GOOD, f"--env-file={file}")
    assert sidecar.end() == 2
    assert "secret" not in sidecar.log


def test_each_value_is_named_by_where_it_came_from(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SIDECAR_COMMAND_TIMEOUT=20s\n")
    sidecar = start(GOOD, "--setup-iptables", f"--env-file={file}", SIDECAR_IPTABLES_WAIT="30s")
    assert sidecar.end() == 2
    assert f": SIDECAR_IPTABLES_WAIT=30s and {file}: SIDECAR_COMMAND_TIMEOUT=20s: the timeout must be" in sidecar.log
    sidecar = start(GOOD, SIDECAR_ENV_FILE="/nonexistent")
    assert sidecar.end() == 2
    assert ": SIDECAR_ENV_FILE=/nonexistent: No such file" in sidecar.log


def test_every_fault_is_told_at_once(start: Start) -> None:
    sidecar = start("--port=0", "--nonsense", "--ip-address=x", SIDECAR_DAEMON="maybe")
    assert sidecar.end() == 2
    assert len(sidecar.log.splitlines()) == 4
