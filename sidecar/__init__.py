"""A node sidecar that holds an IP address and its iptables rules for an apiserver-proxy."""

__version__ = "0.1.0"
