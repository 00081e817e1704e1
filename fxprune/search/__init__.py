"""The rounds of NetAdapt: proposals for each group, candidates trained and scored, one chosen."""
