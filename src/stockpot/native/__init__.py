"""Kernels of our own: in C++, and in Triton for GPUs (``triton_token``: writing, the others: training).

``calls``: products of whole numbers and a decoder's whole forward pass; ``encoding``: an encoder's; ``training``: what training
does between its matrix products. Compiled on this machine on first use (``build``). What they compute is decided in ``model``,
which also checks that they compute rightly; without a compiler ``model`` does the same with torch alone, more slowly.
"""
