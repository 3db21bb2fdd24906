"""Data: records → batches. Files in, tensors out; no models.

Decides nothing itself: it names what other rooms may use.
"""

from __future__ import annotations

from stockpot.data.batch import IGNORED, Batch, PreferenceBatch
from stockpot.data.corpus import batches, open_corpus
from stockpot.data.corrupt import (
    ObjectiveName,
    causal,
    masked,
    objective,
    prefix,
    sentence_pairs,
)
from stockpot.data.encode import Encoded, encode, encode_preference, encode_record, encode_texts
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig
from stockpot.data.objective import Objective
from stockpot.data.pack import Rows
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.records import (
    ChatRecord,
    CompletionRecord,
    ImageRecord,
    PreferenceRecord,
    Record,
    TextRecord,
    parse_record,
)
from stockpot.data.shards import is_shards, open_shards, write_shards
from stockpot.data.sources import fingerprint_sources, read_records, read_texts
from stockpot.data.spans import spans
from stockpot.data.store import TokenStore

__all__ = [
    "IGNORED",
    "Batch",
    "ChatRecord",
    "CompletionRecord",
    "Encoded",
    "FixedBatches",
    "ImageRecord",
    "Loader",
    "LoaderConfig",
    "Objective",
    "ObjectiveName",
    "PreferenceBatch",
    "PreferenceRecord",
    "ReadConfig",
    "ReadReport",
    "Record",
    "Rows",
    "TextRecord",
    "TokenStore",
    "batches",
    "causal",
    "encode",
    "encode_preference",
    "encode_record",
    "encode_texts",
    "fingerprint_sources",
    "is_shards",
    "masked",
    "objective",
    "open_corpus",
    "open_shards",
    "parse_record",
    "prefix",
    "read_records",
    "read_texts",
    "sentence_pairs",
    "spans",
    "write_shards",
]
