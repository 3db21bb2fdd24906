"""Update an index in small steps, for tests that kill this process or start several: INDEX ENCODER PATH…."""

from __future__ import annotations

import sys

from stockpot.prompt import index as room

room.AT_ONCE = 8  # passages that are added together
config = room.IndexConfig(encoder=sys.argv[2], chunk_tokens=40, overlap_tokens=0)
print("begins", flush=True)
_, report = room.index(sys.argv[3:], sys.argv[1], config)
print(report, flush=True)
