"""The built-in architectures, one module each: options, costs, and how they are drawn.

Free of torch; the token mixers are `models.llama`, `models.tnl`, ... and `models.linearize`.
"""
