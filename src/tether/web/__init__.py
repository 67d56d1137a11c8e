"""The live page: edit a model and watch it, in a browser. Nothing imports this room but its command."""
