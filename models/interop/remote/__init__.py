"""What an exported linear model carries with it: files that need transformers and torch alone.

They are copied verbatim into the exported directory, where transformers imports them with
`trust_remote_code=True`; nothing else of this project is needed there. Tests hold them to the
models they stand for.
"""
