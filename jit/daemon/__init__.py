"""The daemon `jitd`: builds kernels for all processes of a user, so that none of them waits.

An accelerator behind `build.get_or_build`, never a dependency. The server imports no torch.
"""
