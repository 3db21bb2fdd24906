"""Tensors in, tensors out: one Transformer for encoders, decoders and encoder-decoders."""
