"""A fleet of nodes on one machine, for scripts/fleet and the tests of the alerts.

Start in `run`. `node` is a node with its sidecars, `chaos` what happens to it, `kernel` hears when something is gone
and back, `scrapes` asks for metrics as Prometheus does, `report` has the figures, `picture` draws them.
"""
