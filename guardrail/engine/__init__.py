"""How scores come about: views and windows of a text, the queue and its cache, one file per backend.

Within the package imports go one way: views, encoding, store, weights, backend, torch_backend, quantise, int8, cache, queue,
results, engine.
"""
