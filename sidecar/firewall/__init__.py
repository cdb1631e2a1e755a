"""Decides what other programs' rules do to our traffic, from their listings.

Pure: no I/O, no clock, no log. Imports state and what is below it. Start with `walk`.
"""
