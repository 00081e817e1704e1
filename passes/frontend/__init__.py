"""A module made a GraphModule, for pipelines and exports: symbolic tracing first, torch.export where that fails."""
