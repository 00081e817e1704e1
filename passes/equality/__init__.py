"""Whether two networks compute the same: inputs to try, runs in double precision, outputs compared."""
