"""The loop: when the next pass runs, what wakes it up, and what it reports to probes and Prometheus.

Imports node and what is below it, but nothing from doctor. Start with `daemon`.
"""
