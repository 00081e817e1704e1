"""The Python process that a pass runs in: its settings and one lock over them, and the lines of the user's program."""
