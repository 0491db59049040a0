"""The Teacher Pool: asks every teacher for rationales, stores each answer at once, verifies it, and resumes."""
