"""A process that votes until it is killed: it prints the id of each vote that was acknowledged."""

from __future__ import annotations

import sys
import uuid

from stockpot.serve.feedback import Feedback, Pair, Vote, prompt_id

path, name = sys.argv[1:]
feedback = Feedback(path)
while True:
    id = uuid.uuid4().hex
    prompt = [{"role": "user", "content": f"question {id}"}]
    feedback.add_pair(
        Pair(
            id,
            prompt_id(prompt),
            prompt,
            (f"one {id}", f"two {id}"),
            ("m", "m"),
            ({"seed": 1}, {"seed": 2}),
            "test",
        )
    )
    feedback.add_vote(Vote(id, id, "a", name, "because"))
    print(id, flush=True)
