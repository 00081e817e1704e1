"""fxprune inside other programs: a pass for compile pipelines."""
