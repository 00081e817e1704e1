"""What is budgeted: budgets as users write them, and each resource as a function of the widths."""
