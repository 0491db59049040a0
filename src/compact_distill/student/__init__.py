"""The student: a problem as tokens, one pass over them, and what that pass yields."""
