"""The size of a video or an image, in pixels and frames. Imports no torch."""

import re
from dataclasses import dataclass

__all__ = ["Size"]


@dataclass(frozen=True)
class Size:
    """Height and width in pixels; frames of a video whose length a call decides, else None."""

    height: int
    width: int
    frames: int | None = None

    @classmethod
    def parse(cls, text: str, frames: int | None = None) -> "Size":
        """The size written as "512x768x121", or "512x768" with `frames`. Raises ValueError."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?", text, re.ASCII)
        if match is None or (match[3] and frames is None):
            example = "1024x768" if frames is None else "512x768x121 or 512x768"
            raise ValueError(
                f"size {text!r} is not readable; write HEIGHTxWIDTH in pixels"
                f"{'' if frames is None else ', with or without xFRAMES'}, such as {example}"
            )
        return cls(int(match[1]), int(match[2]), int(match[3]) if match[3] else frames)

    def __str__(self) -> str:
        return "x".join(str(n) for n in (self.height, self.width, self.frames) if n is not None)
