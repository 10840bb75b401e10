"""A package that is not part of jitd: known-wrong kernels, which its verifier has to refuse."""
