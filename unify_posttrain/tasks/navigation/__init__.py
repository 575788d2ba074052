"""Navigation by written instructions: absolute directions in training, relative ones in the test (arXiv 2501.17161)."""
