"""A node sidecar that holds an IP address and its iptables rules for an apiserver-proxy."""

from typing import Final

PROGRAM: Final = "apiserver-proxy-sidecar"

__version__ = "0.1.0"
