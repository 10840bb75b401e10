"""A package that is not part of jitd and declares an op of its own."""
