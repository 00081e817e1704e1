"""Graph modules as objects: copied, shared, printed, stored, compared by fingerprint, with notes in `gm.meta`."""
