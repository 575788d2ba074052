"""What is checked and planned before anything starts: checks, inputs, memory, the dry run."""
