"""fxprune inside other programs: a pass for compile pipelines, folders of Hugging Face models."""
