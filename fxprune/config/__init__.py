"""The configuration of a search: its keys with defaults, ranges and meanings, and the schedule they describe."""
