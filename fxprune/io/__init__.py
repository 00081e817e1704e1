"""Files and text: written whole or not at all, read strictly, checked; tensors as named bytes."""
