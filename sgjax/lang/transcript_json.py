"""A transcript as JSON: what a server hands back, so that a program's text and messages go on where it left them."""

from __future__ import annotations

from typing import Any

from sgjax.lang.chat_format import Anchor, ChatFormat
from sgjax.lang.transcript import Transcript

# This module is the other half of Transcript: it reads and sets all of its fields.


def dump_transcript(transcript: Transcript) -> dict[str, Any]:
    """Everything but pictures, of which no server's programs have any."""
    anchor = transcript._anchor
    return {
        "text": transcript.text,
        "messages": list(transcript.messages),
        "role": transcript._role,
        "parts": list(transcript._parts),
        "was_seen": transcript._seen is not None,
        "is_chat": transcript._is_chat,
        "anchor": [len(anchor.text), anchor.num_messages],
    }


def load_transcript(data: dict[str, Any], format: ChatFormat) -> Transcript:
    """The transcript that was dumped.

    Args:
      format: the same as there. With another one the text is still what it was, and only goes on differently.
    """
    text = data["text"]
    anchor_len, num_messages = data["anchor"]
    transcript = Transcript(format)
    transcript.messages = tuple(data["messages"])
    transcript._role = data["role"]
    transcript._parts = tuple(data["parts"])
    transcript._seen = text if data["was_seen"] else None
    transcript._is_chat = data["is_chat"]
    transcript._anchor = Anchor(text[:anchor_len], num_messages)
    if transcript.text != text:
        transcript._anchor = Anchor(text, len(transcript.messages))
        transcript._seen = text if data["role"] is not None else None
    return transcript
