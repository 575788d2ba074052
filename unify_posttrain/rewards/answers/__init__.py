"""What an answer says: read to a typed value (`reader`), and compared with another one (`comparison`).

Names keep case, indices, primes and accents; order counts where it has a meaning. Expressions are compared exactly, or at seeded
points in high precision; nothing is simplified, and no text is evaluated.
"""
