"""The fake kernel of the unit tests, held to the real one: the same commands, the same answers and state."""

import random
import re

import pytest

from sidecar.node.iproute import parse_links
from sidecar.node.iptables_observer import line
from sidecar.state.desired import desired
from support.fake_kernel import FakeKernel
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands

LINE_FAILED = re.compile(r"Command failed -:(\d+)")

GOAL = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)


def commands(backend: str, random_: random.Random) -> list[tuple[tuple[str, ...], str]]:
    """Return what the program may run, in any order: (argv, standard input) pairs."""
    address = random_.choice(GOAL.addresses)
    rule = random_.choice(GOAL.rules)
    program = f"{'iptables' if rule.family == 4 else 'ip6tables'}-{backend}"
    restore = (f"{program}-restore", "--noflush", "-w", "5")
    table, check = line(rule, "-C")
    delete = line(rule, "-D")[1]
    batch = "\n".join((f"*{table}", " ".join(delete), " ".join(check), "COMMIT", ""))
    listing = "*filter\n-S INPUT\n-S OUTPUT\nCOMMIT\n*raw\n-S OUTPUT\n-S PREROUTING\nCOMMIT\n"
    ours = [(table, " ".join(line(each, "-C")[1])) for each in GOAL.rules if each.family == rule.family]
    several = [line(each, random_.choice(("-A", "-A", "-D"))) for each in GOAL.rules]
    transaction = "".join(
        "\n".join((f"*{name}", *(" ".join(words) for of, words in several[:5] if of == name), "COMMIT", ""))
        for name in ("raw", "filter")
    )
    verbs = [random_.choice(("add", "delete")) for _ in GOAL.addresses]
    addresses = "".join(
        f"address {verb} {each.cidr} dev lo\n" for verb, each in zip(verbs, GOAL.addresses, strict=True)
    )
    return [
        (("ip", "-force", "-batch", "-"), f"{addresses}address add {address.cidr} dev none0\n{addresses}"),
        ((f"iptables-{backend}-restore", "--noflush", "-w", "5"), transaction),
        (("ip", "address", "add", address.cidr, "dev", "lo", "nodad"), ""),
        (("ip", "address", "add", f"{IPV6}/128", "dev", "lo", "nodad", "preferred_lft", "0"), ""),
        (("ip", "address", "change", f"{IPV6}/128", "dev", "lo", "nodad", "preferred_lft", "0"), ""),
        (("ip", "address", "delete", address.cidr, "dev", "lo"), ""),
        (("ip", "address", "add", address.cidr, "dev", "eth9"), ""),
        (("ip", "-batch", "-"), "link add name test0 type ifb\nlink set dev test0 alias ours up\n"),
        (("ip", "link", "set", "dev", random_.choice(("test0", "none0")), "up"), ""),
        (("ip", "link", "delete", "dev", random_.choice(("test0", "none0"))), ""),
        *(((program, "-w", "5", "-t", table, *line(rule, verb)[1]), "") for verb in ("-A", "-A", "-I", "-D", "-C")),
        ((program, "-w", "5", "-t", table, "-S", rule.chain), ""),
        ((program, "-w", "5", "-t", "nosuch", "-S", rule.chain), ""),
        (restore, batch),
        (restore, listing),
        (
            restore,
            f"*{table}\n{' '.join(delete)}\n{' '.join(delete)}\n-I {rule.chain} 1 {' '.join(rule.match)}\nCOMMIT\n",
        ),
        (restore, f"*{ours[0][0]}\n{ours[0][1]}\nCOMMIT\n"),
        *([((*restore, "--test"), f"*{table}\n{' '.join(delete)}\nCOMMIT\n")] if backend == "legacy" else []),
    ]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("seed", range(2))
def test_both_give_the_same_answers(namespace: Namespace, backend: str, seed: int) -> None:
    real, fake = NamespaceCommands(namespace), FakeKernel()
    fake.addresses["lo"] = ["127.0.0.1/8", "::1/128"]
    choices = random.Random(seed)
    for _ in range(60):
        argv, stdin = choices.choice(commands(backend, choices))
        answer, faked = real.run(*argv, stdin=stdin), fake(*argv, stdin=stdin)
        assert (answer.exit, answer.stdout) == (faked.exit, faked.stdout), (argv, stdin)
        if "-force" in argv:
            assert LINE_FAILED.findall(answer.stderr) == LINE_FAILED.findall(faked.stderr), (argv, stdin)
        show = ("ip", "-json", "-details", "address", "show")
        assert shown(real.run(*show).stdout) == shown(fake(*show).stdout)


def shown(output: str) -> set[object]:
    """Return what both tell of the links, in any order; of other scopes the fake knows nothing."""
    links = parse_links(output)
    addresses = {
        (link.name, address.cidr, address.state, address.is_deprecated)
        for link in links
        for address in link.addresses
        if address.scope != "link"  # the kernel gives itself one
    }
    return addresses | {(link.name, link.kind, link.alias, link.is_up) for link in links}
