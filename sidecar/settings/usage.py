"""Builds the text of --help from the table of settings."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from sidecar.settings.options import FLAGS, Flag

_NAME: Final = 19  # width of the column of names


def usage() -> str:
    """Return the help text, with one line for each flag: its variable, its default and its help."""
    lines = [
        "Usage: apiserver-proxy-sidecar [run] --ip-address=ADDRESS[,ADDRESS...] [flags]",
        "       apiserver-proxy-sidecar status | plan | cleanup | doctor [flags]",
        "       apiserver-proxy-sidecar version | help",
        "",
        "Holds IP addresses on an interface, and the iptables rules for them, for an apiserver-proxy.",
        "status shows what is in place, plan the commands that run would execute now, doctor why it does",
        "not work on this node; none of them changes anything. Without --ip-address, they use the settings",
        "of the sidecar that runs on this node, or of the rules that one has left. cleanup removes what",
        "run set up.",
    ]
    for title, group in groupby(FLAGS.values(), lambda flag: flag.group):
        lines += ["", f"{title}:", *_rows(list(group))]
    return "\n".join(
        (
            *lines,
            "",
            "Second column: the environment variable for the same setting. Flags win over variables, variables",
            "over --env-file, that over the default (third column). A boolean is --cleanup or --cleanup=false;",
            "a duration is Go's: 90s, 1m30s, 500ms; a severity is 0 to 3 or INFO, WARNING, ERROR, FATAL.",
            "--create-interface=auto creates none whose name the system or others give, such as eth0 or br0.",
            "--alsologtostderrthreshold is the lowest severity that --alsologtostderr copies. With",
            "--legacy_stderr_threshold_behavior=false, --logtostderr drops lines below --stderrthreshold.",
            "",
            "Exit codes: 0 done, or stopped by a signal; 1 not in sync; 2 bad configuration; 3 the node lacks",
            "something: a command, a capability, kernel support. doctor: 1 as well for a fault that run cannot",
            "repair, and for what decides but cannot be seen.",
        )
    )


def _rows(group: Sequence[Flag]) -> Iterator[str]:
    """Yield a line for each flag; a group with longer names has its own column widths."""
    is_wide = any(len(flag.spelled) > _NAME for flag in group)
    names, variables, defaults = (34, 40, 4) if is_wide else (_NAME, 26, 8)
    for flag in group:
        spelled = "-v, --v" if flag.name == "v" else flag.spelled
        default = "required" if flag.default is None else flag.default or "-"
        yield f"  {spelled:<{names}} {flag.variable:<{variables}} {default:<{defaults}} {flag.help}"
