"""Helios' sequence of tokens: the frames before a chunk, and the chunk itself. Where they are, and
which row of modulation parameters each of them has.

The older frames are, the larger are the patches that become tokens: short-term history has those of
the chunk, mid-term history twice and long-term history four times their side, in time, too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .rope import filled_windows

__all__ = ["Older", "Stream", "joined", "modulation_rows", "pixels"]


class Older(NamedTuple):
    """Frames before the chunk."""

    term: str
    window: int  # how many times larger than the chunk's their patches are: 1, 2 or 4
    patches: nn.Module
    latents: Tensor  # (B, C, n, H, W)
    frames: Tensor  # their points in time, (B|1, n)


class Stream(NamedTuple):
    """All tokens, the oldest first."""

    x: Tensor  # (B, S, D)
    table: Tensor  # of `rope.py`, (B|1, S, 2 * head dim)
    history: int  # so many of the first tokens are not of the chunk
    grid: tuple[int, ...]  # of the chunk's tokens: frames, rows, columns


def joined(
    patches: nn.Module,
    latents: Tensor,
    frames: Tensor,
    history: Sequence[Older],
    table: Callable[[Tensor, int, int, int], Tensor],
) -> Stream:
    """The tokens of a chunk's latents (B, C, F, H, W) behind those of its history.

    history: short-term first, whose rows and columns are those of the tables of the others, too;
    table: `rotary_table` of frames, rows, columns and a window. Raises ValueError where tokens and
    table of a term differ.
    """
    chunk = patches(latents)
    grid = tuple(chunk.shape[2:])
    parts, tables = [_tokens(chunk)], [table(frames.to(latents.device), *grid[1:], 1)]
    sides: tuple[int, ...] = ()
    for term, window, larger, older, times in history:
        tokens = larger(filled_windows(older, larger.kernel_size) if window > 1 else older)
        if window == 1:
            sides = tuple(tokens.shape[3:])
        if not sides:
            raise ValueError(f"latents_history_{term} needs latents_history_short.")
        parts.insert(0, _tokens(tokens))
        tables.insert(0, table(times.to(latents.device), *sides, window))
        if tables[0].shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"latents_history_{term} of {tuple(older.shape)} are {parts[0].shape[1]} tokens; "
                f"{times.shape[1]} frames of the short-term history's height and width are "
                f"{tables[0].shape[1]}."
            )
    x = torch.cat(parts, dim=1)
    return Stream(x, torch.cat(tables, dim=1), x.shape[1] - parts[-1].shape[1], grid)


def modulation_rows(
    rows: Tensor, of_history: Tensor | None, stream: Stream
) -> tuple[Tensor, Tensor | None]:
    """Rows of modulation parameters in fp32, (R, 6, D), and the row of each token, (B, S).

    rows: of each sample, (B, 6, D); of_history: the one that history has, (1, 6, D): the first row,
    behind which sample b has its own. Without it, or without history, rows need no index.
    """
    if of_history is None or not stream.history:
        return rows.float(), None
    batch, tokens = stream.x.shape[:2]
    index = torch.zeros(batch, tokens, dtype=torch.int32, device=rows.device)
    samples = torch.arange(1, batch + 1, dtype=torch.int32, device=rows.device)
    index[:, stream.history :] = samples.unsqueeze(1)
    return torch.cat([of_history, rows]).float(), index


def pixels(x: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Tokens (B, F*H*W, patch * C) as latents (B, C, F', H', W')."""
    x = x.unflatten(2, (*patch, -1)).unflatten(1, tuple(grid))
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _tokens(x: Tensor) -> Tensor:
    """(B, D, F, H, W) as (B, F*H*W, D)."""
    return x.flatten(2).transpose(1, 2)
