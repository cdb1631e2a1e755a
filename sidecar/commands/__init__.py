"""One file for each command word, and code that several of them share.

Imports everything but cli. Start with `run`.
"""
