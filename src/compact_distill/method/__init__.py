"""The paper in its order: text to tokens, one pass, scores, weights, loss."""
