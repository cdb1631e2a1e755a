"""Checks that find out why it does not work on this node.

Imports node and what is below it, but nothing from daemon. Start with `checks`, which lists all of them in order.
"""
