"""Choosing the fastest correct way to run something, by measuring it.

Spaces of parameters (`space`), the rules of a measurement (`policy`), the search (`search`, its
rounds in `race`, its nouns in `candidate`), timing on a GPU (`timing`, and `canary`, which tells
whether the GPU kept its pace) and checking against a reference (`verify`, `poison`). Everything
here works on callables. What is not here: Triton, compiling, the cache, and the rest of jitd;
nothing in this folder imports them. `space`, `policy` and `search` import no torch.
"""
