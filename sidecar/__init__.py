"""A node sidecar that holds an IP address and its iptables rules for an apiserver-proxy."""

from typing import Final

__version__: Final = "0.1.0"
