"""Who trains candidates: this process, other processes, a Ray cluster; none of them outlives the search."""
