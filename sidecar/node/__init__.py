"""Access to the machine: every command, every file in /proc, every socket.

Imports log and what is below it. Start with `reconcile` (one pass) and `command` (the only user of sh).
"""
