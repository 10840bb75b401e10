"""Programs to read and to run: pipelines of diffusers, patched, recorded, warmed, run strict.

They need diffusers, and neither weights nor a network: `python -m jitd.tools.examples.zimage`.
"""
