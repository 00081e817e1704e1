"""The command line: one small function a command, which imports what it needs when it runs."""
