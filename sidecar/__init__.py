"""A node sidecar that holds an IP address and its iptables rules for an apiserver-proxy.

How an address gets from the flag to the kernel: `cli` has `settings/sources` turn flags and variables into Options, of
which `settings/options` makes the Desired state. `commands/run` gets access to the node from `node/access`, and starts
the loop in `daemon/daemon`. For each pass `node/reconcile` observes, `state/plan` compares and returns an AddAddress,
`node/iproute` knows its command, and `node/command` runs it.
"""

from typing import Final

PROGRAM: Final = "apiserver-proxy-sidecar"

__version__ = "0.2.0"
