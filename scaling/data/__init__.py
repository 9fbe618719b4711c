"""From text to batches: corpora, tokenizers, token shards, samplers, loaders.

`prepare` writes shards once; everything else reads them.
"""
