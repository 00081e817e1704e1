"""How tensors, literals and attributes change when units go: slicing, restated sizes, resized layers."""
