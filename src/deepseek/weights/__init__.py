"""Models on disk: reading a model directory, the catalogue, the model cache, conversion.

Importing the room loads no torch; only the modules that run as conversion subprocesses do
(`convert_gguf`, `train_sentiment`).
"""
