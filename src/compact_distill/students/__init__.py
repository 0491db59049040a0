"""Any causal model as a student or a local teacher: load, identify, generate."""
