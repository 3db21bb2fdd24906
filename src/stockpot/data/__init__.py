"""Data: records → batches. Files in, tensors out; no models.

From the bottom up: ``files`` and ``unpack`` open, ``formats`` parses, ``records`` checks, ``sources`` streams,
``encode`` makes ids, ``store`` and ``shards`` keep them, ``pack`` lays out rows, ``corrupt`` and ``spans`` make
questions of them, ``loader`` feeds. Only what makes tensors loads torch.
"""
