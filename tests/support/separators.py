"""What ends a line, to one program or another."""

#: All that str.splitlines splits at.
OF_LINES = ("\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
