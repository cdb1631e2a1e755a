"""One table of settings, and everything derived from it: command line, environment, env file, --help.

Imports state and what is below it. Start with `options`, the table; `sources` is the only user of pydantic.
"""
