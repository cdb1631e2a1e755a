"""What other people's rules do to our traffic: listings in, verdicts out.

Pure: no I/O, no clock, no log. Imports state and what is below it. Start with `walk`.
"""
