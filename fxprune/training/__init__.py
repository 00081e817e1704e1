"""How one candidate is trained and scored: the user's functions or ready-made ones, seeds, optimizers, distillation."""
