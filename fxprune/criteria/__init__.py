"""Which units of a group matter: criteria, one a file, and the error curves that follow from their order."""
