"""What every dimension of every tensor is: expressions over variables, solved by unification; pure, without torch."""
