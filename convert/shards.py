"""The weight files of a result, made one after the other, each recorded when it is whole.

A run that was cut short is continued with the first file that is not recorded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from glm_mlx.checkpoint import Checkpoint, RowReader, as_bytes
from glm_mlx.checkpoint.layout import ShardPlan, plan_shards
from glm_mlx.checkpoint.refusal import join
from glm_mlx.checkpoint.writer import ShardWriter
from glm_mlx.convert.pack import Block, Packed, Transform, blocks_of, pack_block, read_block
from glm_mlx.convert.plan import Piece
from glm_mlx.convert.report import TensorReport, tensor_report
from glm_mlx.convert.settings import OnProgress, Progress, Settings
from glm_mlx.convert.staging import Staging
from glm_mlx.errors import NumericError

_MEASURED_ROWS = 16  # of each block; `verify --full` measures all of them


def shards_of(pieces: Sequence[Piece], settings: Settings) -> list[ShardPlan]:
    """Return the weight files that hold the pieces, each matrix with its scales in one of them."""
    return plan_shards(
        [piece.outputs for piece in pieces],
        max_bytes=settings.max_shard_bytes,
        file_format="mlx" if settings.layout == "mlx" else "pt",
    )


class Weights:
    """The weight files of one conversion.

    Attributes:
        shards: what each of them holds, and where.
    """

    def __init__(
        self, checkpoint: Checkpoint, pieces: Sequence[Piece], settings: Settings, staging: Staging
    ) -> None:
        self.shards = shards_of(pieces, settings)
        self._checkpoint = checkpoint
        self._pieces = pieces
        self._settings = settings
        self._staging = staging

    @property
    def missing_bytes(self) -> int:
        """What the shards that are not there yet will take."""
        done = self._staging.done
        return sum(shard.size_bytes for shard in self.shards if shard.file_name not in done)

    @property
    def tensors(self) -> tuple[TensorReport, ...]:
        """What was recorded of every tensor, by this run and earlier ones."""
        entries = [self._staging.done[shard.file_name] for shard in self.shards]
        return tuple(tensor_report(tensor) for entry in entries for tensor in entry["tensors"])

    @property
    def hashes(self) -> dict[str, str]:
        """File name -> sha256."""
        return {s.file_name: str(self._staging.done[s.file_name]["sha256"]) for s in self.shards}

    def write(
        self,
        reader: RowReader,
        transforms: Mapping[str, Transform],
        on_progress: OnProgress | None,
    ) -> None:
        """Make and record every shard that an earlier run did not.

        Raises:
            NumericError: naming every source tensor that is not finite, or every tensor with
                values that the result's format cannot hold.
        """
        total_bytes = sum(piece.size_bytes for piece in self._pieces)
        done_bytes = 0
        for shard in self.shards:
            pieces = self._pieces_of(shard)
            if shard.file_name in self._staging.done:
                done_bytes += sum(piece.size_bytes for piece in pieces)
                continue
            reports = []
            with ShardWriter(self._staging.folder, shard) as writer:
                for piece in pieces:
                    tally = _Tally(piece)
                    for block, packed, bad in _packed(piece, reader, transforms):
                        if bad or (packed.beyond and not self._settings.allow_overflow):
                            raise self._refusal(piece, reader, transforms)
                        for name, part in packed.parts.items():
                            writer.write(name, as_bytes(part))
                        tally.add(packed)
                        done_bytes += block.size_bytes
                        if on_progress is not None:
                            on_progress(Progress("converting", done_bytes, total_bytes, piece.name))
                    reports.append(asdict(tally.report()))
                self._checkpoint.check_unchanged()
                digest = writer.finish()
            self._staging.record(shard.file_name, {"sha256": digest, "tensors": reports})

    def _pieces_of(self, shard: ShardPlan) -> list[Piece]:
        return [piece for piece in self._pieces if piece.outputs[0].name in shard.spans]

    def _refusal(
        self, first: Piece, reader: RowReader, transforms: Mapping[str, Transform]
    ) -> NumericError:
        """Read on from the first bad tensor to the end, so that one error names them all."""
        not_finite: Counter[str] = Counter()
        beyond: Counter[str] = Counter()
        for piece in self._pieces[self._pieces.index(first) :]:
            for block, packed, bad in _packed(piece, reader, transforms):
                not_finite[block.segment.weight.name] += bad
                beyond[piece.name] += packed.beyond
        folder = self._checkpoint.folder
        if bad_names := _counted(not_finite):
            return NumericError(
                f"tensors with NaN or infinite values: {join(bad_names)}; download them again",
                file=folder,
            )
        return NumericError(
            f"tensors with values beyond what the result can hold: {join(_counted(beyond))}; use "
            "bfloat16 or affine quantization, or cut them to the largest with --allow-overflow",
            file=folder,
            field="allow_overflow",
        )


class _Tally:
    """What the blocks of one piece add up to."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self._error = self._norm = 0.0
        self._beyond = 0

    def add(self, packed: Packed) -> None:
        self._error += packed.error
        self._norm += packed.norm
        self._beyond += packed.beyond

    def report(self) -> TensorReport:
        piece = self._piece
        relative = math.sqrt(self._error / self._norm) if self._norm else 0.0
        size_bytes = sum(output.size_bytes for output in piece.outputs)
        return TensorReport(
            piece.name, piece.shape, piece.stored, size_bytes, round(relative, 8), self._beyond
        )


def _packed(
    piece: Piece, reader: RowReader, transforms: Mapping[str, Transform]
) -> Iterator[tuple[Block, Packed, int]]:
    """Yield each block of a piece, what it becomes, and how many of its values are not finite."""
    transform = transforms.get(piece.name)
    for block in blocks_of(piece):
        floats, bad = read_block(reader, block)
        sample = slice(None, None, max(1, (block.stop - block.start) // _MEASURED_ROWS))
        yield block, pack_block(floats, piece, block.first, transform, sample=sample), bad


def _counted(counts: Counter[str]) -> list[str]:
    return [f"{name} ({count:,})" for name, count in counts.items() if count]
