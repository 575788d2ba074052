"""VRAG: answer a question from pages of documents that are searched, looked at and enlarged (arXiv 2505.22019)."""
