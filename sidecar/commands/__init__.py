"""One file for each command word, and what several of them need.

Imports everything but cli. Start with `run`.
"""
