"""Multi-Dimensional Evaluator (scores) and Dynamic Weight Generator (weights)."""
