"""Where TinyNN has its data sets and training helpers."""
