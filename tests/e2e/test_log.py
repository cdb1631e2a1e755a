"""klog's flags, each by what comes out on standard error and in files.

Most tests make one pass on an interface that is not there, with a variable that means nothing. It logs one line of
each severity: the settings, the variable, the interface.
"""

import json
import os
import pwd
import re
import shutil
import signal
from pathlib import Path

import pytest

from sidecar import __version__
from support.namespace import CIDR, Namespace
from support.program import Sidecar, Start
from support.waiting import until

FLAGS = ("--ip-address=10.96.0.2", "--interface=eth9", "--create-interface=false", "--daemon=false")
WARNING = {"SIDECAR_NONSENSE": "1"}
HEADER = re.compile(r"([IWE])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) {1,7}(\d+) ([\w/]+\.py:\d+)\] (.*)")
FILE_HEADER = [
    r"Log file created at: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d",
    r"Running on machine: \S+",
    r"Binary: Built with cpython 3\.\S+ for linux/\w+",
    r"Log line format: \[IWEF\]mmdd hh:mm:ss\.uuuuuu threadid file:line\] msg",
]


@pytest.fixture
def passes(start: Start) -> Start:
    """Make the pass that logs one line of each severity."""

    def passes(*flags: str, **env: str) -> Sidecar:
        sidecar = start(*FLAGS, *flags, **WARNING, **env)
        assert sidecar.end() == 1
        return sidecar

    return passes


def severities(text: str) -> str:
    """Return the letters of all lines; those of a file's header do not count."""
    lines = text.splitlines()
    if lines and lines[0].startswith("Log file created"):
        assert all(re.fullmatch(pattern, line) for pattern, line in zip(FILE_HEADER, lines, strict=False))
        lines = lines[len(FILE_HEADER) :]
    letters = ""
    for line in lines:
        match = HEADER.fullmatch(line)
        assert match, line
        letters += match[1]
    return letters


def in_files(directory: Path) -> dict[str, str]:
    """Return what the links in a directory point to: severity → letters of all its lines."""
    return {
        link.name.removeprefix("apiserver-proxy-sidecar."): severities(link.read_text())
        for link in directory.iterdir()
        if link.is_symlink()
    }


def test_by_default_everything_goes_to_standard_error_under_klogs_header(passes: Start) -> None:
    sidecar = passes()
    assert severities(sidecar.log) == "IWE"
    for line in sidecar.log.splitlines():
        match = HEADER.fullmatch(line)
        assert match
        assert match[4] == str(sidecar.process.pid)
        assert "/" not in match[5]
    settings = "--ip-address=10.96.0.2 --interface=eth9 --create-interface=false --daemon=false"
    assert sidecar.log.splitlines()[0].endswith(f"] apiserver-proxy-sidecar {__version__}: {settings}")


def test_skip_headers(passes: Start) -> None:
    sidecar = passes("--skip_headers")
    assert sidecar.log.startswith(f"apiserver-proxy-sidecar {__version__}: ")
    assert "\ncould not add 10.96.0.2/32: interface eth9 does not exist" in sidecar.log


def test_add_dir_header(passes: Start) -> None:
    for line in passes("--add_dir_header").log.splitlines():
        match = HEADER.fullmatch(line)
        assert match
        assert re.fullmatch(r"(commands|daemon|node)/\w+\.py:\d+", match[5])


# Verbosity


def contents(log: str) -> set[int]:
    """Return which of the levels 2, 4 and 6 speak in a log."""
    marks = {2: "] pass: ", 4: "` exited with 0 ", 6: "` to stdout: [{"}
    return {level for level, mark in marks.items() if mark in log}


@pytest.mark.parametrize("spelling", ["-v{}", "-v={}", "--v={}"])
def test_v(passes: Start, spelling: str) -> None:
    seen = {level: contents(passes(spelling.format(level)).log) for level in (-1, 0, 1, 2, 3, 4, 5, 6, 1000)}
    assert seen == {
        -1: set(), 0: set(), 1: set(), 2: {2}, 3: {2}, 4: {2, 4}, 5: {2, 4}, 6: {2, 4, 6}, 1000: {2, 4, 6}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("vmodule", "levels"),
    [
        ("reconcile=2", {2}),
        ("reconcile=1", set()),
        ("command=4", {4}),
        ("c*=6", {4, 6}),
        ("comm=6,reconcile.py=6", set()),
        ("reconcile=2,command=6", {2, 4, 6}),  # the example of all documents
        ("command=4,*=9", {2, 4}),
    ],
)
def test_vmodule(passes: Start, vmodule: str, levels: set[int]) -> None:
    log = passes(f"--vmodule={vmodule}").log
    assert contents(log) == levels
    assert severities(log).startswith("IW")  # what has no level is said all the same
    assert log.count("--vmodule: no source file matches") == vmodule.count("comm=") + vmodule.count(".py")


def test_v_counts_where_vmodule_says_less(passes: Start) -> None:
    assert contents(passes("--vmodule=command=1", "-v4").log) == {2, 4}


def test_log_backtrace_at(passes: Start) -> None:
    place = next(line for line in passes("-v2").log.splitlines() if "] pass: " in line).split()[3].rstrip("]")
    log = passes("-v2", f"--log_backtrace_at={place}").log
    assert log.count('  File "') >= 3
    trace = log.split("] pass: ")[1].split("\n", 1)[1]
    assert trace.startswith('  File "')
    assert re.search(r'^  File ".*/reconcile.py", line \d+, in reconcile$', trace, re.MULTILINE)
    assert "loguru" not in trace
    assert "] could not add" in trace  # the log goes on
    assert '  File "' not in passes(f"--log_backtrace_at={place}").log  # nothing is said there without -v


# Files


def test_log_dir(passes: Start, tmp_path: Path) -> None:
    sidecar = passes("--logtostderr=false", f"--log_dir={tmp_path}")
    assert severities(sidecar.log) == "E"  # by --stderrthreshold
    assert in_files(tmp_path) == {"INFO": "IWE", "WARNING": "WE", "ERROR": "E"}
    host, user = os.uname().nodename.partition(".")[0], pwd.getpwuid(os.getuid()).pw_name
    for link in tmp_path.iterdir():
        if link.is_symlink():
            severity = link.name.rpartition(".")[2]
            assert re.fullmatch(
                rf"apiserver-proxy-sidecar\.{host}\.(root|{user})\.log\.{severity}\.\d{{8}}-\d{{6}}\.{sidecar.process.pid}",
                link.readlink().name,
            )


def test_one_output(passes: Start, tmp_path: Path) -> None:
    passes("--logtostderr=false", f"--log_dir={tmp_path}", "--one_output")
    assert in_files(tmp_path) == {"INFO": "I", "WARNING": "W", "ERROR": "E"}


def test_without_a_directory_it_is_the_one_for_temporary_files(passes: Start, tmp_path: Path) -> None:
    passes("--logtostderr=false", TMPDIR=str(tmp_path))
    assert in_files(tmp_path)["INFO"] == "IWE"


def test_a_directory_that_cannot_be_used_is_replaced(passes: Start, tmp_path: Path) -> None:
    sidecar = passes("--logtostderr=false", "--log_dir=/nonexistent", TMPDIR=str(tmp_path))
    assert re.search(
        rf"cannot write to log file /nonexistent/.*INFO.*: No such file.*; its lines go to {tmp_path}\n", sidecar.log
    )
    assert in_files(tmp_path)["INFO"] == "IWE"


@pytest.mark.parametrize(
    ("flags", "letters"),
    [
        ((), "E"),
        (("--stderrthreshold=INFO",), "IWE"),
        (("--stderrthreshold=1",), "WE"),
        (("--stderrthreshold=error",), "E"),
        (("--stderrthreshold=3",), ""),
        (("--alsologtostderr",), "IWE"),
        (("--alsologtostderr", "--stderrthreshold=3"), "IWE"),
        (("--alsologtostderr", "--alsologtostderrthreshold=WARNING"), "WE"),
        (("--alsologtostderrthreshold=INFO",), "E"),
    ],
)
def test_what_goes_to_standard_error_beside_a_file(
    passes: Start, tmp_path: Path, flags: tuple[str, ...], letters: str
) -> None:
    file = tmp_path / "log"
    assert severities(passes("--logtostderr=false", f"--log_file={file}", *flags).log) == letters
    assert severities(file.read_text()) == "IWE"


@pytest.mark.parametrize(
    ("flags", "letters"),
    [
        (("--logtostderr", "--stderrthreshold=3"), "IWWE"),
        (("--logtostderr=true", "--alsologtostderr"), "IWWE"),
        (("--legacy_stderr_threshold_behavior=false",), "E"),
        (("--legacy_stderr_threshold_behavior=false", "--stderrthreshold=WARNING"), "WWE"),
    ],
)
def test_logtostderr_wins_over_files(passes: Start, tmp_path: Path, flags: tuple[str, ...], letters: str) -> None:
    assert severities(passes(f"--log_file={tmp_path / 'log'}", *flags).log) == letters
    assert list(tmp_path.iterdir()) == []


def test_log_file_is_continued_and_wins_over_log_dir(passes: Start, tmp_path: Path) -> None:
    file = tmp_path / "log"
    for _ in range(2):
        passes("--logtostderr=false", f"--log_file={file}", f"--log_dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    text = file.read_text()
    assert text.count("Log file created at: ") == 2
    assert severities(text[text.rindex("Log file created at: ") :]) == "IWWE"


def test_skip_log_headers(passes: Start, tmp_path: Path) -> None:
    file = tmp_path / "log"
    passes("--logtostderr=false", f"--log_file={file}", "--skip_log_headers")
    assert file.read_text().startswith("I")


@pytest.mark.parametrize(("megabytes", "starts_over"), [(1, True), (2, False), (0, False)])
def test_log_file_max_size(
    passes: Start,
    tmp_path: Path,
    megabytes: int,
    starts_over: bool,  # noqa: FBT001 - a parameter
) -> None:
    file = tmp_path / "log"
    old = "I old\n" * 175_000  # a little more than a megabyte
    file.write_text(old)
    passes("--logtostderr=false", f"--log_file={file}", f"--log_file_max_size={megabytes}")
    text = file.read_text()
    assert ("I old" not in text) == starts_over
    assert severities(text.removeprefix(old)) == "IWE"


def test_a_file_that_was_taken_away_is_made_anew(start: Start, tmp_path: Path, namespace: Namespace) -> None:
    file = tmp_path / "log"
    sidecar = start(
        "--ip-address=10.96.0.2", "--logtostderr=false", f"--log_file={file}", "--stderrthreshold=0",
        "--sync-interval=100ms",
    )  # fmt: skip
    sidecar.wait_for("in sync")
    file.rename(tmp_path / "log.1")
    sidecar.log = ""
    namespace.run("ip", "address", "delete", "10.96.0.2/32", "dev", "lo")
    sidecar.wait_for("added 10.96.0.2/32 to lo\n")
    assert sidecar.stop() == 0
    assert "Log file created at: " in file.read_text()
    assert "added 10.96.0.2/32 to lo" in file.read_text()


def test_the_process_that_writes_files_is_replaced_if_somebody_kills_it(
    execute: Start, tmp_path: Path, namespace: Namespace
) -> None:
    namespace.run("ip", "address", "add", CIDR, "dev", "lo", "scope", "host")  # so that only we make it look again
    file = tmp_path / "log"
    sidecar = execute("--ip-address=10.96.0.2", "--logtostderr=false", f"--log_file={file}", "-v2")
    until(lambda: file.exists() and "in sync: " in file.read_text())
    os.kill(sidecar.first_child(), signal.SIGKILL)
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.wait_for("pass: ")  # nobody writes it to the file
    sidecar.process.send_signal(signal.SIGHUP)
    until(lambda: "pass: " in file.read_text())
    assert sidecar.stop() == 0
    assert severities(sidecar.log) == "WI"


@pytest.mark.parametrize("file", ["/nonexistent/log", "/dev/full", "/", "pipe"])
def test_a_log_that_cannot_be_written_stops_nothing(
    start: Start, namespace: Namespace, tmp_path: Path, file: str
) -> None:
    if file == "pipe":
        file = str(tmp_path / "pipe")
        os.mkfifo(file)
    sidecar = start("--ip-address=10.96.0.2", "--daemon=false", "--logtostderr=false", f"--log_file={file}")
    assert sidecar.end() == 0
    assert namespace.addresses() == ["10.96.0.2/32"]
    first, *rest = sidecar.log.splitlines()
    assert re.search(rf"^W.*\] cannot write to log file {file}: .*; its lines go to standard error$", first)
    settings = f"--ip-address=10.96.0.2 --daemon=false --logtostderr=false --log_file={file}"
    assert [line.split("] ")[1] for line in rest] == [
        f"apiserver-proxy-sidecar {__version__}: {settings}",
        "added 10.96.0.2/32 to lo",
        "in sync: 10.96.0.2/32 on lo",
    ]


def test_each_time_that_a_file_cannot_be_written_is_told_once(
    start: Start, tmp_path: Path, namespace: Namespace
) -> None:
    namespace.run("ip", "address", "add", CIDR, "dev", "lo", "scope", "host")  # so that only we make it look again
    folder = tmp_path / "folder"
    sidecar = start(
        "--ip-address=10.96.0.2", "--logtostderr=false", f"--log_file={folder / 'log'}", "--stderrthreshold=3",
        "--logging-format=json", "-v2",
    )  # fmt: skip
    sidecar.wait_for("in sync: ")

    def look(times: int) -> None:
        """Let it make a pass, until there have been so many that it told of on standard error."""
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.wait_for('"pass: ', times)

    for round_ in (0, 1):
        folder.mkdir()
        sidecar.process.send_signal(signal.SIGHUP)
        until((folder / "log").exists)
        shutil.rmtree(folder)
        look(2 + 2 * round_)
        look(3 + 2 * round_)
    assert sidecar.stop() == 0
    messages = [json.loads(line)["msg"] for line in sidecar.log.splitlines()]
    assert len([message for message in messages if message.startswith("cannot write to log file")]) == 3
    assert len([message for message in messages if message.startswith("pass: ")]) == 5


# JSON


def test_json(start: Start) -> None:
    sidecar = start(
        "--ip-address=10.96.0.2", "--setup-iptables", "--iptables-backend=nft", "--daemon=false", "-v4",
        "--logging-format=json",
    )  # fmt: skip
    assert sidecar.end() == 0
    objects = [json.loads(line) for line in sidecar.log.splitlines()]
    for each in objects:
        assert {"ts", "severity", "v", "caller", "msg"} <= set(each)
        assert re.fullmatch(r"(commands|daemon|node)/\w+\.py:\d+", each["caller"])
    settings = objects[0]["settings"]
    assert (settings["ip-address"], settings["v"], settings["port"]) == ("10.96.0.2", "4", "443")
    added = next(each for each in objects if each["msg"] == "added 10.96.0.2/32 to lo")
    assert (added["address"], added["interface"], added["v"]) == ("10.96.0.2/32", "lo", 0)
    rule = next(each for each in objects if each["msg"].startswith("rule missing"))
    assert rule["rule"] == "-t raw -A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
    command = next(each for each in objects if each.get("command") == "ip -json -details address show")
    assert (command["exit"], command["v"]) == (0, 4)
    assert 0 < command["seconds"] < 10
    assert next(each for each in objects if each["v"] == 2)["changed"] == 6


def test_a_failure_in_json(passes: Start, tmp_path: Path) -> None:
    file = tmp_path / "log"
    passes("--logging-format=json", "--logtostderr=false", f"--log_file={file}")
    failure = json.loads(file.read_text().splitlines()[-1])  # and no header: every line is an object
    assert len(file.read_text().splitlines()) == 3
    assert failure["severity"] == "ERROR"
    assert failure["err"].startswith("interface eth9 does not exist")


# The line of the settings


def test_the_same_settings_give_the_same_line_wherever_they_come_from(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    variables = {
        "SIDECAR_IP_ADDRESS": "10.96.0.2,fd00:10:96::2", "SIDECAR_SETUP_IPTABLES": "1", "SIDECAR_DAEMON": "F",
        "SIDECAR_SYNC_INTERVAL": "90s", "SIDECAR_IPTABLES_BACKEND": "nft", "SIDECAR_VMODULE": "x*=1",
    }  # fmt: skip
    file = tmp_path / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    flags = ["--ip-address=10.96.0.2", "--ip-address", "fd00:10:96::2", "--setup-iptables", "--daemon=false"]
    flags += ["--sync-interval=1m30s", "--iptables_backend=nft", "--vmodule", "x*=1"]
    lines, states = set(), set()
    for sidecar in (start(*flags), start(**variables), start(f"--env-file={file}")):
        assert sidecar.end() == 0
        lines.add(sidecar.log.splitlines()[0].split("] ")[1])
        states.add((*namespace.addresses(), *namespace.rules("nft", 4), *namespace.rules("nft", 6)))
    assert len(lines) == len(states) == 1
    assert lines.pop() == (
        f"apiserver-proxy-sidecar {__version__}: --ip-address=10.96.0.2,fd00:10:96::2 --setup-iptables=true "
        "--iptables-backend=nft --daemon=false --sync-interval=1m30s '--vmodule=x*=1'"
    )
