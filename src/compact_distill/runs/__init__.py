"""Run folders: what they hold, files that a crash cannot spoil, the machine, progress."""
