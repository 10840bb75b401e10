"""What a diffusers pipeline asks of the ops, from its config files alone: no weights, no network.

`folder.py` reads the files, `building.py` makes the models on the meta device, `runs.py` has the
pipeline itself run there, with `absent.py` in the place of what is not warmed, and `layouts.py`
sees to it that tensors lie in memory as they do on a card. `recording.py` is what the command line
takes. Importing this imports neither torch nor diffusers.
"""
