"""Fast, exact, replaceable parts of the student's pass: attention, the LM head, norms and MLPs."""
