"""A node with a pod and an API server, each a network namespace, as a CNI plugin and a sidecar leave it.

    pod 10.244.1.5 ---- cali0, or cni0 10.244.1.1    node    eth0 192.0.2.1 ---- 192.0.2.10 control plane
        fd00:10:244::5         fd00:10:244::1                     fd00:192::1     fd00:192::10

With a link for each pod there is a route to it, and no address on the link, as Calico, Cilium and AWS' CNI do it; or
the links are ports of a bridge, cni0, as with flannel. Neighbours are set for good: no test waits for ARP or DAD.
"""

import subprocess
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, Self

from support import relay
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.program import PROGRAM
from support.waiting import until

NODE: Final = "node"
POD: Final = "pod"
BOTH: Final = frozenset((NODE, POD))

POD_IPV4: Final = "10.244.1.5"
POD_IPV6: Final = "fd00:10:244::5"
CONTROL_IPV4: Final = "192.0.2.10"

SHORT: Final = 0.3  # seconds that a client waits that is expected to be cut off
LONG: Final = 30.0  # seconds that one waits that is expected to get through, however busy the machine is

_NODE_MAC: Final = "ee:ee:ee:ee:ee:ee"
_POD_MAC: Final = "02:00:00:00:00:05"

_LINKS: Final = """
link add eth0 type veth peer name eth0 netns {control}
address add 192.0.2.1/24 dev eth0
address add fd00:192::1/64 dev eth0 nodad
link set eth0 up
"""

_LINK: Final = """
link add {link} address {node_mac} type veth peer name eth0 address {pod_mac} netns {pod}
link set {link} up
route add 10.244.1.5 dev {link}
route add fd00:10:244::5 dev {link}
neighbour add 10.244.1.5 lladdr {pod_mac} dev {link}
neighbour add fd00:10:244::5 lladdr {pod_mac} dev {link}
"""

_BRIDGE: Final = """
link add cni0 address {node_mac} type bridge
address add 10.244.1.1/24 dev cni0
address add fd00:10:244::1/64 dev cni0 nodad
link set cni0 up
link add veth5 master cni0 type veth peer name eth0 address {pod_mac} netns {pod}
link set veth5 up
neighbour add 10.244.1.5 lladdr {pod_mac} dev cni0
neighbour add fd00:10:244::5 lladdr {pod_mac} dev cni0
"""

_UPLINK: Final = """
route add default via 192.0.2.10
route add default via fd00:192::10
"""

_POD: Final = """
address add 10.244.1.5/32 dev eth0
address add fd00:10:244::5/128 dev eth0 nodad
link set eth0 up
neighbour add 169.254.1.1 lladdr {node_mac} dev eth0
neighbour add fe80::1 lladdr {node_mac} dev eth0
route add 169.254.1.1 dev eth0
route add default via 169.254.1.1
route add default via fe80::1 dev eth0
"""

_CONTROL: Final = """
address add 192.0.2.10/24 dev eth0
address add fd00:192::10/64 dev eth0 nodad
link set eth0 up
route add 10.244.0.0/16 via 192.0.2.1
"""

_HAPROXY: Final = """
defaults
    mode tcp
    timeout connect 1s
    timeout client 30s
    timeout server 30s
listen apiserver-proxy
    bind {address}:443
    server control-plane 192.0.2.10:6443
"""


class PodNode:
    def __init__(self, certificate: Path, backend: str, link: str) -> None:
        """Make the three, joined by the link for the pod, or by the bridge cni0; the API server runs."""
        self.backend = backend
        self._apiserver: subprocess.Popen[str] | None = None
        self._proxy: subprocess.Popen[str] | None = None
        self._stack = ExitStack()
        with self._stack:
            self.node = self._stack.enter_context(Namespace())
            self.pod = self._stack.enter_context(Namespace(beside=self.node))
            self.control = self._stack.enter_context(Namespace(beside=self.node))
            macs = {"node_mac": _NODE_MAC, "pod_mac": _POD_MAC}
            links = _LINKS + (_BRIDGE if link == "cni0" else _LINK)
            pids = {"pod": self.pod.pid, "control": self.control.pid}
            self.node.run("ip", "-batch", "-", stdin=links.format(link=link, **macs, **pids))
            self.control.run("ip", "-batch", "-", stdin=_CONTROL)
            self.pod.run("ip", "-batch", "-", stdin=_POD.format(**macs))
            self.node.run("ip", "-batch", "-", stdin=_UPLINK)
            self.node.run("sh", "-c", "for v in 4 6; do echo 1 >/proc/sys/net/ipv$v/conf/all/forwarding; done")
            self.start_apiserver(certificate)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sh(self, script: str, *flags: str) -> None:
        """Run a script on the node.

        In it, $ipt and $ipt6 are the backend's, $other the other one's, $run the program with the flags, $pod the
        pod's process, $in_pod what runs a command in the pod's network.
        """
        other = "legacy" if self.backend == "nft" else "nft"
        names = f"""
ipt=iptables-{self.backend}; ipt6=ip6tables-{self.backend}; other=iptables-{other}
run='{PROGRAM} {" ".join(flags)} --iptables-backend={self.backend}'
pod={self.pod.pid}; in_pod="nsenter --target=$pod --net"
set -e
"""
        self.node.run("sh", "-c", names + script)

    def put_in_place(self, *flags: str) -> None:
        """Put the address and its rules in place, as a sidecar with these flags does, and start the proxy."""
        put_in_place(self.node, *flags, backend=self.backend)
        self.address = flags[0].partition("=")[2]
        self.start_proxy()

    def start_apiserver(self, certificate: Path) -> None:
        """Start the API server with this certificate; the one before ends."""
        self.stop_apiserver()
        self._apiserver = self._fork(self.control, partial(relay.apiserver, str(certificate)))

    def stop_apiserver(self) -> None:
        if self._apiserver:
            end(self._apiserver)

    def start_proxy(self, way: str = "passes") -> None:
        """Let the proxy work in this way from now on (relay.py)."""
        self._stop_proxy()
        self._proxy = self._fork(self.node, partial(relay.proxy, way, self.address, CONTROL_IPV4))

    def start_haproxy(self) -> None:
        """Put a real proxy in the place of the other one."""
        self._stop_proxy()
        self.node.run("tee", "/run/haproxy.cfg", stdin=_HAPROXY.format(address=self.address))
        self._proxy = self.start("haproxy", "-db", "-q", "-f", "/run/haproxy.cfg")
        until(lambda: self.node.run("ss", "--no-header", "--listening", "--tcp", f"sport = :{relay.PORT}"))

    def _stop_proxy(self) -> None:
        if self._proxy:
            end(self._proxy)

    def reaches(self, cut: Collection[str] = ()) -> set[str]:
        """Return who gets through to the API server: node and pod, each with a connection of its own.

        Those that are `cut`, it is believed, are given less time.
        """
        asking = {
            name: where.fork(partial(relay.ask, self.address, SHORT if name in cut else LONG))
            for name, where in ((NODE, self.node), (POD, self.pod))
        }
        answers = {name: process.communicate() for name, process in asking.items()}
        assert not any(stderr for _, stderr in answers.values()), answers
        return {name for name, (stdout, _) in answers.items() if not stdout}

    def start(self, *argv: str) -> "subprocess.Popen[str]":
        """Start a program on the node, which ends with it."""
        process = self.node.start("setpriv", "--pdeathsig", "KILL", "--", *argv)
        self._stack.callback(end, process)
        return process

    def _fork(self, namespace: Namespace, work: Callable[[], None]) -> "subprocess.Popen[str]":
        process = namespace.fork(work)
        self._stack.callback(end, process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate()
        return process


def end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()
