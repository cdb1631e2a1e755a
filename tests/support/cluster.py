"""A small cluster to test in: a node, a pod on it, and a control plane, each a network namespace.

    pod 10.244.0.2 ---- 10.244.0.1 node 192.0.2.1 ---- 192.0.2.10 control plane
        fd00:244::2     fd00:244::1    fd00:192::1     fd00:192::10

On the node runs a real proxy, which listens on the sidecar's addresses and passes TLS through to the API server that
the client asks for by name (SNI). As on a real node, the way out of it leads to a network that knows nothing of those
addresses. Nothing is left behind however the tests end: each process ends with the one that started it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Self, TypeAlias

from sidecar.node.programs import is_installed, path_of
from support import apiserver, client
from support.namespace import Namespace
from support.program import PROGRAM, Sidecar
from support.waiting import until

Ip: TypeAlias = IPv4Address | IPv6Address

PORT: Final = 443

#: The API servers: name, and port in the control plane.
APISERVERS: Final = {"blue.example": 6443, "green.example": 6444}

#: Of the control plane, by family.
CONTROL: Final = {4: "192.0.2.10", 6: "fd00:192::10"}

#: So that nothing outlives the tests (man 2 prctl, PR_SET_PDEATHSIG).
_END_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--")

_HAPROXY: Final = """
defaults
    mode tcp
    timeout connect 1s
    timeout client 30s
    timeout server 30s
frontend apiserver-proxy
    tcp-request inspect-delay 2s
    tcp-request content accept if { req.ssl_sni -m found }
    tcp-request content reject
    use_backend %[req.ssl_sni]
"""

_FIREWALL: Final = """
*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*filter
:INPUT {policy}
:FORWARD ACCEPT
:OUTPUT {policy}
-A INPUT -i lo -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -o uplink -j ACCEPT
-A OUTPUT -p {icmp} -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
"""


def missing() -> str:
    """Return why no cluster can be had here, or nothing."""
    commands = [name for name in ("haproxy", "conntrack", "openssl") if not is_installed(name)]
    return f"not installed: {', '.join(commands)}" if commands else ""


def envoy() -> str:
    """Return where Envoy is: on the PATH, or installed beside this Python (scripts/setup-tools); or nothing."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else path_of("envoy") or ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the requests of one or more clients, which were made at a steady rate."""

    requests: int
    #: Refused, or without an answer after the client's patience.
    failed: int
    #: Answered, but only once TCP had repeated a lost packet after a second.
    late: int
    #: The longest time without an answer to anybody new, in seconds.
    gap: float
    #: How often the connection that is kept broke.
    broken: int
    #: What the failed ones met, and how often.
    errors: Mapping[str, int]

    def __add__(self, other: "Outcome") -> "Outcome":
        errors = {
            text: self.errors.get(text, 0) + other.errors.get(text, 0) for text in {**self.errors, **other.errors}
        }
        return Outcome(
            self.requests + other.requests,
            self.failed + other.failed,
            self.late + other.late,
            max(self.gap, other.gap),
            self.broken + other.broken,
            errors,
        )


class Cluster:
    def __init__(self, folder: Path, *addresses: Ip) -> None:
        """Make one whose files are in this folder. The API servers run; proxy and addresses are still to come."""
        self._folder = folder
        self._addresses = addresses
        self._stack = ExitStack()
        with self._stack:
            self.node = self._stack.enter_context(Namespace())
            self.pod = self._stack.enter_context(Namespace(beside=self.node))
            self.control = self._stack.enter_context(Namespace(beside=self.node))
            self._connect(self.pod, "pod", "10.244.0.{}/24", "fd00:244::{}/64", 2)
            self._connect(self.control, "uplink", "192.0.2.{}/24", "fd00:192::{}/64", 10)
            for family, words in ((4, ()), (6, ("-6",))):
                via = "10.244.0.1" if family == 4 else "fd00:244::1"
                self.pod.run("ip", *words, "route", "add", "default", "via", via)
                self.node.run("ip", *words, "route", "add", "default", "via", CONTROL[family])
                pods, via = ("10.244.0.0/24", "192.0.2.1") if family == 4 else ("fd00:244::/64", "fd00:192::1")
                self.control.run("ip", *words, "route", "add", pods, "via", via)
                self.node.run("sh", "-c", f"echo 1 >/proc/sys/net/ipv{family}/conf/all/forwarding")
            self._start_apiservers()
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self, other: Namespace, link: str, ipv4: str, ipv6: str, last: int) -> None:
        """Join the node and another one; the node's addresses end with 1, those of the other with `last`."""
        peer = ("peer", "name", "eth0", "netns", str(other.pid))
        self.node.run("ip", "link", "add", link, "type", "veth", *peer)
        for namespace, device, number in ((self.node, link, 1), (other, "eth0", last)):
            namespace.run("ip", "address", "add", ipv4.format(number), "dev", device)
            namespace.run("ip", "address", "add", ipv6.format(number), "dev", device, "nodad")
            namespace.run("ip", "link", "set", device, "up")

    def _start(self, namespace: Namespace, *argv: str) -> "subprocess.Popen[str]":
        """Start a program that ends with the cluster; its output is ours to read, if it is much."""
        process = namespace.start(*_END_WITH_US, *argv)
        self._stack.callback(_end, process)
        return process

    def _fork(self, namespace: Namespace, work: Callable[[], None]) -> "subprocess.Popen[str]":
        """Let a child of this process do some work; it ends with the cluster."""
        process = namespace.fork(work)
        self._stack.callback(_end, process)
        return process

    @property
    def _certificates(self) -> str:
        return str(self._folder / "certificates.pem")

    def _start_apiservers(self) -> None:
        for name, port in APISERVERS.items():
            certificate, key = (str(self._folder / f"{name}.{ending}") for ending in ("pem", "key"))
            kind = ["-x509", "-days", "1", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            named = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
            subprocess.run(
                ["openssl", "req", *kind, *named, "-keyout", key, "-out", certificate], check=True, capture_output=True
            )
            with Path(self._certificates).open("a") as together:
                together.write(Path(certificate).read_text())
            process = self._fork(self.control, partial(apiserver.serve, name, port, certificate, key))
            _wait_until_it_listens(process, self.control, port)

    def start_haproxy(self) -> None:
        """Start HAProxy on the node: the addresses have to be there."""
        binds = [f"    bind {_bracketed(address)}:{PORT}\n" for address in self._addresses]
        backends = [f"backend {name}\n    server it {CONTROL[4]}:{port}\n" for name, port in APISERVERS.items()]
        (self._folder / "haproxy.cfg").write_text("".join([_HAPROXY, *binds, *backends]))
        process = self._start(self.node, "haproxy", "-db", "-q", "-f", str(self._folder / "haproxy.cfg"))
        _wait_until_it_listens(process, self.node, PORT)

    def start_envoy(self) -> None:
        """Start Envoy on the node: the addresses have to be there."""
        (self._folder / "envoy.json").write_text(json.dumps(_envoy_configuration(self._addresses)))
        options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "off", "--config-path")
        process = self._start(self.node, envoy(), *options, str(self._folder / "envoy.json"))
        _wait_until_it_listens(process, self.node, PORT)

    def firewall(self, backend: str, policy: str) -> None:
        """Replace all rules of raw and filter on the node, in one transaction, as a firewall's reload does.

        It looks at the state of connections, so that the kernel tracks them.
        """
        for program, icmp in (("iptables", "icmp"), ("ip6tables", "ipv6-icmp")):
            self.node.run(f"{program}-{backend}-restore", stdin=_FIREWALL.format(policy=policy, icmp=icmp))

    def start_sidecar(self, *flags: str) -> Sidecar:
        """Start the sidecar on the node, and wait until it is in sync."""
        addresses = ",".join(map(str, self._addresses))
        sidecar = Sidecar(self._start(self.node, str(PROGRAM), f"--ip-address={addresses}", *flags))
        sidecar.wait_for("in sync")
        return sidecar

    def ask(self, namespace: Namespace, address: Ip, name: str) -> str:
        """Make one request through an address; return who answered with which certificate, or the error."""
        out, err = namespace.fork(partial(client.ask, str(address), name, self._certificates)).communicate()
        assert err == ""
        return out.strip()

    def tracked(self, address: Ip) -> list[str]:
        """Return the connections from and to an address that the node's kernel tracks."""
        family = "ipv4" if address.version == 4 else "ipv6"
        return [
            line
            for end in ("--orig-src", "--orig-dst")
            for line in self.node.run("conntrack", "-L", "-f", family, end, str(address)).splitlines()
        ]

    @contextmanager
    def load(self, rate: float, patience: float) -> Iterator[list[Outcome]]:
        """Let a client on the node and one in the pod make requests during the block; then put what came of it."""
        outcome: list[Outcome] = []
        arguments = (str(self._addresses[0]), next(iter(APISERVERS)), self._certificates, rate, patience)
        clients = [self._fork(where, partial(client.load, *arguments)) for where in (self.node, self.pod)]
        for process in clients:
            assert process.stdout
            if process.stdout.readline() != "started\n":
                raise AssertionError(process.communicate()[1])
        yield outcome
        for process in clients:
            process.terminate()
        node, pod = (Outcome(**json.loads(process.communicate()[0])) for process in clients)
        outcome.append(node + pod)


def _bracketed(address: Ip) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _wait_until_it_listens(process: "subprocess.Popen[str]", namespace: Namespace, port: int) -> None:
    def listens() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"it does not listen on port {port}, and has ended: {process.communicate()}")
        return bool(namespace.run("ss", "--no-header", "--listening", "--tcp", f"sport = :{port}"))

    until(listens)


def _envoy_configuration(addresses: Sequence[Ip]) -> dict[str, object]:
    """Return the same as HAProxy's, in Envoy's words."""
    tcp_proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"

    def at(address: object, port: int) -> dict[str, object]:
        return {"address": {"socket_address": {"address": str(address), "port_value": port}}}

    def chain(name: str) -> dict[str, object]:
        proxy = {"@type": tcp_proxy, "stat_prefix": name, "cluster": name}
        match = {"server_names": [name]}
        return {"filter_chain_match": match, "filters": [{"name": "tcp_proxy", "typed_config": proxy}]}

    def cluster(name: str, port: int) -> dict[str, object]:
        endpoints = [{"lb_endpoints": [{"endpoint": at(CONTROL[4], port)}]}]
        return {"name": name, "load_assignment": {"cluster_name": name, "endpoints": endpoints}}

    listener = {
        **at(addresses[0], PORT),
        "name": "apiserver-proxy",
        "additional_addresses": [at(address, PORT) for address in addresses[1:]],
        "listener_filters": [{"name": "tls_inspector", "typed_config": {"@type": inspector}}],
        "filter_chains": [chain(name) for name in APISERVERS],
    }
    clusters = [cluster(name, port) for name, port in APISERVERS.items()]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}
