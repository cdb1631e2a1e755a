"""One table of settings, and what follows from it: the command line, the environment, the env file, --help.

Imports state and what is below it. Start with `options`, the table; `sources` is the only user of pydantic.
"""
