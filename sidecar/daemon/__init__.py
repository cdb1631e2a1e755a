"""The loop: when the next pass is, what wakes it up, and what it tells probes and Prometheus.

Imports node and what is below it, but nothing of doctor. Start with `daemon`.
"""
