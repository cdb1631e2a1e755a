"""Why does it not work on this node? Checks, and the findings that they yield.

Imports node and what is below it, but nothing of daemon. Start with `checks`, which lists all of them in order.
"""
