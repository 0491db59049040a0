"""The embedded world: generated problems, scripted teachers and a small student; nothing is downloaded."""
