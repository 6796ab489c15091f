"""What a report can ask of a run beyond correlations: one module a topic."""
