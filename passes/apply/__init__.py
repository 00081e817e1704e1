"""A plan applied: `PruneChannels` gives a smaller graph, `apply_plan` a smaller module of the same class."""
