"""Checkpoints of a run, and the manifest that makes them trustworthy.

    checkpoints/
        manifest.json                        size and SHA-256 of every file; resume points
        milestone-<tokens>.pt                weights at a horizon, kept
        resume-<trunk or branch>-<step>.pt   weights, optimizer, random states; kept while of use
        resume-<trunk or branch>-<step>.dcp  the same of a sharded model: a folder, with a file for
                                             each rank (scaling.record.sharded_state)

A file counts only when the manifest names it, and the manifest is replaced as a whole, so a run
killed while it writes has lost nothing but an orphan. Files hold tensors and plain containers and
are read with `weights_only=True` after their SHA-256 has been checked.

A resume point is written while training goes on: `save_resume` copies the tensors into host memory,
and a thread writes and hashes the file and then replaces the manifest
(`scaling.system.background`). Every rank of a sharded model has such a thread. They meet in a
process group of their own (gloo), so that their messages are never mixed with those of training;
rank 0 replaces the manifest when the shares of all have been flushed and hashed. That is
`torch.distributed.checkpoint.async_save` with the hashes in the same thread. Methods that change
the manifest or read a file wait for the threads.

A resume point says with which file, at which step of which segment, training goes on. When a decay
branch has ended, the next point is the file from which the branch left the trunk; nothing is
copied. Kept are the last two files of the trunk and the last one of the current branch, so that a
damaged file costs the way back to the file before it, and never the run. Those of the trunk that
`budget.keep_every_tokens` asks for are kept for good, and the last one where a longer run may go on
from it (`scaling.record.trunk`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.config.schedule import TRUNK, Segment
from scaling.record.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    Entry,
    Manifest,
    ResumePoint,
    flush,
    read_checkpoint,
    read_manifest,
    remove,
    verify_file,
    write_checkpoint,
    write_manifest,
)
from scaling.system.files import DiskError, disk_errors
from scaling.system.ranks import host_group

if TYPE_CHECKING:
    from scaling.system.background import Background
    from scaling.system.snapshot import Snapshots


class Checkpoints:
    """The checkpoints folder of one run."""

    def __init__(
        self,
        folder: Path,
        run_id: str,
        segments: tuple[Segment, ...],
        check: Callable[[], None] | None = None,
        keeps: Callable[[int], bool] = lambda step: False,
        keep_trunk: bool = False,
    ) -> None:
        """Open it.

        Args:
            folder: the checkpoints of the run.
            run_id: the run.
            segments: its segments.
            check: called before anything that was written appears, on whatever thread; raises
                `scaling.system.claims.ClaimLost` when the run is another's by then.
            keeps: whether the trunk's checkpoint of a step is kept for good.
            keep_trunk: whether the last one of the trunk stays when all segments have ended.

        Raises:
            CheckpointError: the manifest cannot be read, or is that of another run.
        """
        self.folder = folder
        self.run_id = run_id
        self.segments = segments
        manifest = read_manifest(folder / MANIFEST)
        if manifest.run_id not in (run_id, None):
            raise CheckpointError(
                f"{folder}: these are the checkpoints of {manifest.run_id}, not of {run_id}; "
                "put the run's own back, or delete the folder to start this run again."
            )
        self.files: dict[str, Entry] = manifest.files
        self.points: list[ResumePoint] = manifest.resume
        self._check, self._keeps, self._keep_trunk = check, keeps, keep_trunk
        self._writing: Background | None = None
        self._snapshots: Snapshots | None = None
        """Of `save_resume`, which waits until the one before has been written."""

    def wait(self) -> None:
        """Return when no checkpoint is being written.

        Raises:
            DiskError: the last one could not be written.
        """
        if self._writing is not None:
            self._writing.wait()

    def newest(
        self, say: Callable[[str], None], *, verify: bool = True
    ) -> tuple[ResumePoint | None, dict[str, Any]]:
        """The last resume point whose file is sound, with its content; (None, {}) to start afresh.

        A damaged file is forgotten, and so is every point that needs it; it stays on the disk, for
        somebody to look at or restore.

        Args:
            say: receives a sentence for each damaged file.
            verify: check the shares of a sharded model, which another rank may have done.
        """
        self.wait()
        while self.points:
            point = self.points[-1]
            if not point.file:
                return point, {}
            try:
                if point.file.partition("/")[0] not in {n.partition("/")[0] for n in self.files}:
                    raise CheckpointError(
                        f"{self.folder / point.file}: the manifest has no hash of it."
                    )
                content = self._read(point.file, verify)
                self._check_place(point, content)
                return point, content
            except CheckpointError as error:
                bad = point.file
                self.points = [p for p in self.points if bad not in (p.file, p.trunk_file)]
                self._forget(bad)
                self._write()
                back = self.points[-1] if self.points else None
                where = f"step {back.step} ({back.file})" if back else "the very beginning"
                stays = " It stays there, unused." if (self.folder / bad).exists() else ""
                say(f"{error}{stays} Falling back to {where}.")
        return None, {}

    def save_resume(self, segment: int, step: int, wall: float, content: dict[str, Any]) -> None:
        """Write a checkpoint of step `step` and make it the resume point.

        At the end of a trunk segment this is also where the next one starts. All ranks of a sharded
        model must call it; rank 0 sets the point. It returns when `content` is copied.

        Raises:
            DiskError: this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        part = self.segments[segment]
        on_trunk = not part.is_branch or step == part.first
        kind = "dcp" if "shares" in content else "pt"
        name = f"resume-{TRUNK if on_trunk else part.name}-{step}.{kind}"
        trunk = name if on_trunk else self.points[-1].trunk_file
        after = segment + 1 if step == part.last else segment
        point = ResumePoint(segment=after, step=step, file=name, wall=wall, trunk_file=trunk)
        from scaling.system.background import Background
        from scaling.system.snapshot import Snapshots

        self._snapshots = self._snapshots or Snapshots()
        copy = self._snapshots.take(content)
        if kind == "dcp":
            self._make_room(name)

        def write() -> None:
            if kind == "pt":
                self.files[name] = write_checkpoint(self.folder / name, copy, self._check)
            elif not self._write_shares(name, copy):
                return  # rank 0 sets the point
            self._set_point(point)

        self._writing = self._writing or Background()
        self._writing.start(write)

    def save_milestone(self, tokens: int, content: dict[str, Any]) -> tuple[str, str]:
        """Write the weights of a horizon; returns the file name and its SHA-256."""
        self.wait()
        name = f"milestone-{tokens}.pt"
        self.files[name] = write_checkpoint(self.folder / name, content, self._check)
        self._write()
        return name, self.files[name]["sha256"]

    def milestone_problems(self) -> list[str]:
        """What is wrong with the milestones that the manifest names, a sentence each."""
        problems: list[str] = []
        for name, entry in list(self.files.items()):
            if name.startswith("milestone-"):
                try:
                    verify_file(self.folder / name, entry)
                except CheckpointError as error:
                    problems.append(str(error))
        return problems

    def finish_segment(self, segment: int, wall: float) -> None:
        """The milestone at the end of a segment is recorded: go on with the next one, or finish.

        After a branch this is the trunk's file again. After the last segment nothing is needed any
        more, and the resume files are removed.
        """
        self.wait()
        if segment + 1 == len(self.segments):
            step = self.segments[segment].last
            point = ResumePoint(segment=segment + 1, step=step, file="", wall=wall, trunk_file="")
        else:
            trunk = self.points[-1].trunk_file
            step = self.segments[segment].first
            point = ResumePoint(
                segment=segment + 1, step=step, file=trunk, wall=wall, trunk_file=trunk
            )
        self._set_point(point)

    def sweep(self) -> None:
        """Remove files that the manifest does not name: what a kill left behind."""
        self.wait()
        named = {name.partition("/")[0] for name in self.files}
        for path in self.folder.iterdir():
            if path.name != MANIFEST and path.name not in named:
                remove(path)

    def take_over(self, files: dict[str, Entry], point: ResumePoint) -> None:
        """Begin with the files of another run, which lie in the folder, at this point."""
        self.files |= files
        self._set_point(point)

    def _set_point(self, point: ResumePoint) -> None:
        last_trunk = self.points[-1].trunk_file if self.points else point.trunk_file
        self.points.append(point)
        kept: list[ResumePoint] = []
        trunk_files: list[str] = []
        branch_files: list[str] = []
        for old in reversed(self.points):
            if point.file == "":
                kept = [point]
                break
            files, most = (trunk_files, 2) if old.file == old.trunk_file else (branch_files, 1)
            current = old.file == old.trunk_file or old.segment == point.segment
            if current and (old.file in files or len(files) < most):
                files.append(old.file)
                kept.append(old)
        self.points = kept[::-1]
        used = {name for p in self.points for name in (p.file, p.trunk_file)}
        if self._keep_trunk:
            used.add(last_trunk)
        resume = {n.partition("/")[0] for n in self.files if n.startswith("resume-")}
        useless = {name for name in resume - used if not self._is_kept(name)}
        for name in useless:
            self._forget(name)
        self._write()
        for name in useless:
            remove(self.folder / name)

    def _is_kept(self, name: str) -> bool:
        """Whether a resume file is to stay, of use or not: `resume-trunk-<step>`."""
        _, segment, step = name.partition(".")[0].split("-", 2)
        return segment == TRUNK and self._keeps(int(step))

    def _forget(self, name: str) -> None:
        """Drop a file, or a folder with its files, from the manifest to be written."""
        self.files = {n: e for n, e in self.files.items() if n.partition("/")[0] != name}

    def _check_place(self, point: ResumePoint, content: dict[str, Any]) -> None:
        """Compare what the manifest says of a resume point with the checkpoint and the segments.

        Raises:
            CheckpointError: they differ.
        """
        path = self.folder / point.file
        if content.get("step") != point.step:
            raise CheckpointError(
                f"{path}: is of step {content.get('step')}, the manifest says {point.step}."
            )
        segment = self.segments[point.segment] if point.segment < len(self.segments) else None
        if segment is None or not segment.first <= point.step < segment.last:
            raise CheckpointError(
                f"{path}: step {point.step} is not in segment {point.segment} of the manifest."
            )
        if point.file != point.trunk_file and content.get("segment") not in (None, segment.name):
            raise CheckpointError(
                f"{path}: is of segment {content['segment']}, the manifest says {segment.name}."
            )

    def _read(self, name: str, verify: bool) -> dict[str, Any]:
        """The content of a resume file or, with its `folder`, the common part of a sharded one."""
        path = self.folder / name
        if path.suffix != ".dcp":
            if name not in self.files:
                raise CheckpointError(f"{path}: the manifest does not name this file.")
            return read_checkpoint(path, self.files[name])
        from scaling.record.sharded_reader import METADATA, read_metadata
        from scaling.record.sharded_state import COMMON

        shares = {n: e for n, e in self.files.items() if n.startswith(f"{name}/")}
        if path.is_dir() and (more := {f"{name}/{p.name}" for p in path.iterdir()} - set(shares)):
            raise CheckpointError(
                f"{self.folder / min(more)}: the manifest does not name this file."
            )
        if verify:
            with ThreadPoolExecutor() as pool:  # hashing runs outside the interpreter's lock
                list(
                    pool.map(
                        lambda item: verify_file(self.folder / item[0], item[1]), shares.items()
                    )
                )
        common = f"{name}/{COMMON}"
        for needed in (common, f"{name}/{METADATA}"):
            if needed not in shares:
                raise CheckpointError(f"{path}: the manifest names no {needed}.")
        read_metadata(path)
        return read_checkpoint(self.folder / common, shares[common]) | {"folder": str(path)}

    def _make_room(self, name: str) -> None:
        """An empty folder for a sharded model's state; all ranks call it together."""
        import torch.distributed as dist

        folder = self.folder / name
        if dist.get_rank() == 0:
            if self._check is not None:
                self._check()
            remove(folder)  # of a save that was killed
            with disk_errors(folder):
                folder.mkdir()
        dist.barrier()
        host_group()  # made here, where all ranks are at the same place

    def _write_shares(self, name: str, content: dict[str, Any]) -> bool:
        """Write a sharded model's state with the other ranks; returns whether this is rank 0.

        Raises:
            DiskError: a rank could not write; all ranks raise.
        """
        import torch.distributed as dist

        from scaling.record import sharded_state
        from scaling.record.sharded_reader import METADATA

        folder, rank, group = self.folder / name, dist.get_rank(), host_group()
        with disk_errors(folder):
            sharded_state.save(content.pop("shares"), folder, group)
        mine: dict[str, Entry] | DiskError = {}
        try:
            for path in folder.glob(f"__{rank}_*"):
                mine[f"{name}/{path.name}"] = flush(path)
            if rank == 0:
                mine[f"{name}/{METADATA}"] = flush(folder / METADATA)
                common = folder / sharded_state.COMMON
                mine[f"{name}/{common.name}"] = write_checkpoint(common, content)
        except DiskError as error:
            mine = error
        gathered: list[dict[str, Entry] | DiskError] = [mine] * dist.get_world_size(group)
        dist.all_gather_object(gathered, mine, group)
        for entries in gathered:
            if isinstance(entries, DiskError):
                raise entries
            if rank == 0:
                self.files |= entries
        return rank == 0

    def _write(self) -> None:
        manifest = Manifest(run_id=self.run_id, files=self.files, resume=self.points)
        write_manifest(self.folder, manifest, self._check)
