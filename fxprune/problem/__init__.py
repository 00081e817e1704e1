"""What a search is asked: the network out of its wrappers, its inputs, the parts in scope, the widths allowed."""
