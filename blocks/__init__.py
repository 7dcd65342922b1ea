"""Building blocks of models: rotary rules and embeddings, attention that takes any of them, heads.

`ropewalk.blocks.rotary` has the frequency rules, the distance rules, log n scaling and the rotary
embeddings; `ropewalk.blocks.attention` an attention layer and its cache of unrotated keys;
`ropewalk.blocks.heads` embeddings that are output heads, too. Nothing is imported here, so that a
rule can be had without the rest.
"""
