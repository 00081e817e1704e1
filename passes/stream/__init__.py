"""What runs: the operators of a graph or of a module, one by one, with axes attached to their tensors."""
