"""What a round proposes: one strategy a file, each a function of where the search stands."""
