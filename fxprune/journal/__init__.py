"""Nothing is lost: every round is written down, and a search goes on from what is there."""
