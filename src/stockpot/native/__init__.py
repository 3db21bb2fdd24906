"""Kernels of our own, in C++: products of whole numbers and a decoder's whole forward pass.

Compiled on this machine on first use (``build``) and called through ``calls``. What they compute is decided in
``model``; without a compiler ``model`` does the same with torch alone, more slowly.
"""
