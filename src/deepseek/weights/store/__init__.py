"""The chunk store: weights in pieces of at most 10 MB, named by their content, each kept once.

Format and guarantees: docs/chunk-store.md. Importing the room loads no torch: readers hand out
memory, the engine makes tensors of it.
"""
