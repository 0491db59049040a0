"""The YAML of a run: what it may say, how it is read, how its errors are worded."""
