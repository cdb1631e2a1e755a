import subprocess

import pytest

from sidecar.errors import CommandError, CommandMissing, ConfigError, PermissionMissing, SidecarError, pasteable


@pytest.mark.parametrize(
    ("argv", "stdin"),
    [
        (("cat", "-"), "*raw\n-C OUTPUT -j NOTRACK\nCOMMIT\n"),
        (("cat", "-"), '100% \\n it\'s "quoted" $HOME `id`\n'),
        (("printf", "%s|", "it's", "a b", "$HOME", "*"), ""),
    ],
)
def test_a_pasteable_command_does_the_same_in_a_shell(argv: tuple[str, ...], stdin: str) -> None:
    directly = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout
    line = pasteable(argv, stdin)
    assert "\n" not in line
    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == directly


def test_a_failed_command_is_one_line_with_what_it_said() -> None:
    error = CommandError(("ip", "address", "show"), "", "exited with 2", "one\n\n  two  \n")
    assert str(error) == "`ip address show` exited with 2: one / two"


def test_every_error_knows_its_exit_code() -> None:
    codes: dict[type[SidecarError], int] = {
        ConfigError: 2,
        CommandMissing: 3,
        PermissionMissing: 3,
        CommandError: 1,
        SidecarError: 1,
    }
    assert {kind: kind.exit_code for kind in codes} == codes


def test_a_missing_command_names_its_package() -> None:
    assert "ip6tables-nft is not installed: apt-get install iptables" in str(CommandMissing("ip6tables-nft"))


def test_a_missing_permission_names_the_capability_and_the_command() -> None:
    text = str(PermissionMissing(("CAP_NET_ADMIN", "CAP_NET_RAW"), "`iptables` exited with 4"))
    assert "CAP_NET_ADMIN and CAP_NET_RAW" in text
    assert text.endswith("`iptables` exited with 4")
