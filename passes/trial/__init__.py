"""What closes an analysis: groups are cut on trial, the network runs, and what cannot follow is frozen."""
