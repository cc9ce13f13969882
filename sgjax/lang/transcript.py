"""The text and the messages of one state. Not thread-safe: its executor guards it."""

from __future__ import annotations

import base64
import dataclasses
import mimetypes
from pathlib import Path
from typing import Any

from sgjax.lang import ir
from sgjax.lang.chat_format import Anchor, ChatFormat

Media = ir.Image | ir.Video


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What a backend is asked to go on from.

    Attributes:
      text: everything so far.
      messages: the closed turns. role: the open turn's, and turn_text what it holds so far.
      is_chat: the text starts with a chat turn, so it holds whatever special tokens belong at its start.
      media: pictures and films anywhere in it.
    """

    text: str
    messages: tuple[dict[str, Any], ...] = ()
    role: str | None = None
    turn_text: str = ""
    is_chat: bool = False
    media: tuple[Media, ...] = ()


class Transcript:
    """Appends text, turns and generations, and tells the text as the chat format has it."""

    def __init__(self, format: ChatFormat):
        self._format = format
        self._anchor = Anchor("", 0)
        self._role: str | None = None
        self._parts: tuple[str | Media, ...] = ()
        # The whole text inside an open turn, once a model has seen it. From then on it only grows.
        self._seen: str | None = None
        self._media: tuple[Media, ...] = ()
        self._is_chat = False
        self.messages: tuple[dict[str, Any], ...] = ()

    def copy(self) -> Transcript:
        other = Transcript(self._format)
        other.__dict__.update(self.__dict__)  # every field is immutable
        return other

    @property
    def role(self) -> str | None:
        """The open turn's role."""
        return self._role

    @property
    def text(self) -> str:
        """Everything so far. Raises RequestError when the chat format refuses the messages."""
        if self._seen is not None:
            return self._seen
        if self._role is None:
            return self._format.closed(self._anchor, self.messages)
        return self._format.opened(self._anchor, self.messages, self._role, self._turn_text)

    @property
    def _turn_text(self) -> str:
        return "".join(part for part in self._parts if isinstance(part, str))

    def prompt(self) -> Prompt:
        return Prompt(self.text, self.messages, self._role, self._turn_text, self._is_chat, self._media)

    def append(self, text: str) -> None:
        """Constant text."""
        if not text:
            return
        if self._role is None:
            self._anchor = Anchor(self.text + text, len(self.messages))
            return
        self._parts = (*self._parts, text)
        if self._seen is not None:
            self._seen += text

    def append_media(self, media: Media) -> None:
        self._media = (*self._media, media)
        if self._role is not None:
            self._parts = (*self._parts, media)

    def see(self) -> None:
        """A model is about to be asked: the text as it is now stands, apart from spaces at the open turn's ends."""
        if self._role is None:
            self._anchor = Anchor(self.text, len(self.messages))
        else:
            self._seen = self.text

    def begin(self, role: str) -> None:
        """Opens a turn.

        Raises:
          ValueError: one is open, or there is no such role.
        """
        if role not in ir.ROLES:
            raise ValueError(f"there is no role {role!r}, only {', '.join(ir.ROLES)}")
        if self._role is not None:
            raise ValueError(f"a turn of the {role} cannot begin inside a turn of the {self._role}")
        if not self.messages and not self._anchor.text:
            self._is_chat = True
        self._role, self._parts = role, ()

    def end(self, role: str) -> None:
        """Closes it.

        Raises:
          ValueError: the open turn has another role.
        """
        if self._role != role:
            what = "no turn is open" if self._role is None else f"the open turn is the {self._role}'s"
            raise ValueError(f"a turn of the {role} cannot end: {what}")
        self.messages = (*self.messages, {"role": role, "content": _content(self._parts)})
        if self._seen is not None:
            text = self._format.settled(self._anchor, self.messages, self._seen)
            self._anchor, self._seen = Anchor(text, len(self.messages)), None
        self._role, self._parts = None, ()

    def absorb(self, fork: Transcript, start: Transcript) -> None:
        """Appends what a fork added since it started as a copy of `start`.

        Raises:
          ValueError: the fork closed the turn that was open when it started, or left one open.
        """
        num_messages = len(start.messages)
        if fork._role != start._role or (start._role is not None and len(fork.messages) != num_messages):
            raise ValueError("join(concate_and_append): a fork must end in the turn in which it started")
        self._media = (*self._media, *fork._media[len(start._media) :])
        if start._role is not None:
            if fork._seen is not None and self._seen is None:
                self._seen = self.text
            for part in fork._parts[len(start._parts) :]:
                self.append(part) if isinstance(part, str) else self.append_media(part)
            return
        added = fork.text[len(start.text) :]
        text = self.text + added
        self.messages = (*self.messages, *fork.messages[num_messages:])
        self._anchor = Anchor(text, len(self.messages))


def _content(parts: tuple[str | Media, ...]) -> str | list[dict[str, Any]]:
    """OpenAI's form of a message's content."""
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)  # type: ignore[arg-type]
    return [{"type": "text", "text": part} if isinstance(part, str) else _media_part(part) for part in parts]


def _media_part(media: Media) -> dict[str, Any]:
    if isinstance(media, ir.Video):
        return {"type": "video_url", "video_url": {"url": str(media.path)}, "num_frames": media.num_frames}
    return {"type": "image_url", "image_url": {"url": image_url(media.source)}}


def image_url(source: Any) -> str:
    """A URL for a picture: URLs as they are; files, bytes and base64 text as a data URL.

    Raises:
      OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return _data_url(source, _image_kind(source))
    text = str(source)
    if text.startswith(("http://", "https://", "data:")):
        return text
    kind = mimetypes.guess_type(text)[0]
    if kind is None and len(text) > 255:
        return "data:image/png;base64," + text
    return _data_url(Path(text).read_bytes(), kind or "image/png")


def _image_kind(data: bytes) -> str:
    for start, kind in ((b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp")):
        if data.startswith(start):
            return kind
    return "image/png"


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
