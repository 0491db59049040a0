"""What the student can do, what it forgot, and how far it moved from its base."""
