"""Two models of one architecture, matrix by matrix: how far singular subspaces turned, and what happens if they are turned back."""
