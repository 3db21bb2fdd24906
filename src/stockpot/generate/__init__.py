"""The one engine that writes text, draws, streams, scores and embeds."""
