"""Trains a run from wherever it stands until it is done, diverged or asked to stop.

    loop:  the newest sound resume point -> drop later lines from the record -> restore weights,
           optimizer and random states -> one Lightning fit to the end of the segment, whose
           callbacks record, save and, at the end, move the resume point on

Every segment starts from a checkpoint file, in an undisturbed run as in a resumed one, so that
there is one way to start and it is always tested. Bit-exactness rests on that, on data that is a
pure function of the step, and on a learning rate that is as well.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.config.schedule import changes
from scaling.data.loader import DataModule
from scaling.data.prepare import prepare
from scaling.record.checkpoint_files import remove
from scaling.record.checkpoints import Checkpoints
from scaling.record.data_identity import check_data
from scaling.record.environment import environment, memory_peak, peak_flops, reset_memory_peak
from scaling.record.load_model import refuse_misfit
from scaling.record.precision import begun_in, check_precision
from scaling.record.record import ORIGIN, RunRecord, State
from scaling.record.trunk import adopt
from scaling.system import ranks
from scaling.system.background import begin
from scaling.system.claims import StopEvent, watch
from scaling.system.randomness import isolated_random
from scaling.training import parallel
from scaling.training.callbacks import Journal, Recorder
from scaling.training.clock import Clock
from scaling.training.follower import attach
from scaling.training.guard import DivergenceGuard, find_rewinds, write_rewind
from scaling.training.milestones import SegmentEnd
from scaling.training.module import TrainingModule
from scaling.training.norms import Norms
from scaling.training.objective import objective_of
from scaling.training.profiling import Profiler
from scaling.training.progress import Progress
from scaling.training.saving import TokenCheckpoint, save

log = logging.getLogger("linscale")

PATIENCE_SECONDS = 5.0
"""For which a checkpoint waits silently until the shards have been read."""


def run_session(
    config: RunConfig, record: RunRecord, stop_event: StopEvent | None, progress: bool
) -> State:
    """Train until the end of the run or until `stop_event` is set; see
    `scaling.training.train.train`."""
    with parallel.process_settings(config), isolated_random(config.seed):
        parallel.start_process_group(config)
        check_precision(record.path, config)
        config = parallel.decide(config, begun_in(record.path))
        reset_memory_peak(config)
        listeners = attach(record) if ranks.rank() == 0 else nullcontext()
        with listeners, parallel.sequences_split(config):
            return _Session(config, record, stop_event, progress).run()


class _Session:
    """One process's share of a run."""

    def __init__(
        self, config: RunConfig, record: RunRecord, stop_event: StopEvent | None, progress: bool
    ) -> None:
        self._config, self._record, self._progress = config, record, progress
        self._is_main = ranks.rank() == 0
        self._still_ours = watch(record.path)
        self._reading: Future[None] | None = None
        """Reads the shards while the first steps are made."""
        self._looking: Future[None] | None = None
        """Reads the milestones of earlier sessions meanwhile."""
        self._lost: list[str] = []
        """What is wrong with those."""
        self._prepared = prepare(config.data, progress=progress and self._is_main)
        self._validation = DataModule(config, self._prepared).val_dataloader()
        self._checkpoints = self._open_checkpoints()
        self._journal = Journal(
            config=config,
            segments=record.segments,
            record_every=record.record_every,
            bytes_per_token=self._prepared.bytes_per_token,
            peak_flops=peak_flops(config),
            stop_event=stop_event,
        )
        self._profiler = Profiler(self._journal, record)
        self._module: TrainingModule | None = None
        if self._is_main:
            self._checkpoints.sweep()
            found = self._prepared.fingerprint()
            step = self._checkpoints.points[-1].step if self._checkpoints.points else 0
            changed = check_data(record, found, step)
            if not self._checkpoints.points and (told := adopt(record, self._checkpoints, found)):
                record.log(told)
            facts = environment(config, found)
            record.write_environment(facts, changed)
            kernels = str(facts["cpu_kernels"])
            if facts["device"] == "cpu" and kernels.startswith("torch (no"):
                record.log(f"kernels several times slower than compiled ones: {kernels}")
            if config.data.tokenizer_in_file:
                record.write_tokenizer(self._prepared.tokenizer())
            self._reading = begin(self._prepared.verify_changed)
            self._looking = begin(self._look_at_milestones)

    def run(self) -> State:
        """Segment after segment."""
        journal = self._journal
        bar = Progress(journal) if self._progress and self._is_main else None
        with bar or nullcontext():
            while (module := self._restore()) is not None:
                self._fit(module, [bar] if bar else [])
                if journal.diverged:
                    self._end("diverged", journal.diverged)
                    return "diverged"
                if journal.stopping and journal.early:
                    self._end("stopped", journal.early)
                    return "stopped"
                if journal.stopping:
                    self._end("preempted", "asked to stop; run again to continue")
                    return "preempted"
                if journal.rewinding and self._is_main:
                    write_rewind(journal, self._record, self._checkpoints.points[-1].step)
        if self._looking is not None:
            self._looking.result()
        self._end("done", "; ".join(filter(None, [journal.remarks, *self._lost])))
        return "done"

    def _restore(self) -> TrainingModule | None:
        """Put everything to the newest resume point; None when all segments have ended."""
        point, content = None, {}
        if self._is_main:
            point, content = self._checkpoints.newest(self._say)
        if ranks.agree(point is None):
            self._start_afresh()
            if self._is_main:
                point, content = self._checkpoints.newest(self._say)
        if point is not None:
            self._record.truncate(point.segment, point.step)
        ranks.barrier()
        if not self._is_main:
            self._checkpoints = self._open_checkpoints()
            point, content = self._checkpoints.newest(self._say, verify=False)
        assert point is not None
        if point.segment == len(self._record.segments):
            self._journal.index, self._journal.step = point.segment - 1, point.step
            return None
        module = self._module or TrainingModule(self._config)
        self._module = module
        segment = self._record.segments[point.segment]
        objective = objective_of(self._config, segment.objective)
        objective.on_start(module, self._record, self._prepared)
        try:
            module.restore(content, objective)
        except (KeyError, RuntimeError, ValueError) as error:
            refuse_misfit(self._checkpoints.folder / point.file, error)
        module.start(segment, point.step)
        self._journal.begin(
            point.segment,
            point.step,
            point.wall,
            # Losses by one objective are not those by the next.
            [] if point.step in changes(self._config) else content["losses"].tolist(),
            content.get("skipped", 0),
        )
        rewinds = find_rewinds(self._record, point.segment)
        self._journal.rewinds = len(rewinds)
        self._journal.passed_over = sum(rewind.skip for rewind in rewinds)
        if self._is_main and point.step > segment.first:
            self._record.log(f"resuming {segment.name} at step {point.step}")
        return module

    def _open_checkpoints(self) -> Checkpoints:
        record = self._record
        return Checkpoints(
            record.checkpoints,
            record.path.name,
            record.segments,
            self._sound,
            self._config.keeps,
            self._config.budget.keep_trunk and self._config.trunk_id is not None,
        )

    def _start_afresh(self) -> None:
        """Write the checkpoint of step 0, from the seed alone."""
        self._module = TrainingModule(self._config)
        self._journal.begin(0, 0, 0.0, [])
        if self._is_main:
            remove(self._record.path / ORIGIN)
        if not (self._is_main or self._module.sharded):
            return
        first = objective_of(self._config, self._journal.segment.objective)
        first.initialise(self._module, self._record, self._prepared, self._validation)
        save(self._journal, self._record, self._checkpoints, self._module, None)

    def _fit(self, module: TrainingModule, extra: list[pl.Callback]) -> None:
        """Train to the end of the segment, or until divergence or a stop."""
        journal, record = self._journal, self._record
        callbacks: list[pl.Callback] = [
            Clock(journal),
            DivergenceGuard(journal),
            Norms(journal),
            Recorder(journal, record),
            TokenCheckpoint(journal, record, self._checkpoints),
            SegmentEnd(journal, record, self._checkpoints, self._validation),
            self._profiler,
            *extra,
        ]
        steps = journal.segment.last - journal.step
        trainer = parallel.make_trainer(self._config, steps, callbacks)
        first = journal.step + journal.passed_over
        data = DataModule(self._config, self._prepared, start_step=first)
        with _plain_interrupts():
            try:
                trainer.fit(module, datamodule=data)
            except SIGTERMException:
                journal.stopping = True
            except BaseException:
                with suppress(LinscaleError):  # the first error is the one to tell
                    self._checkpoints.wait()
                raise
        self._checkpoints.wait()

    def _sound(self) -> None:
        """Before a checkpoint appears: the run is still this process's, and its data are those that
        were written. What was trained on damaged data is not kept; at step 0 nothing was."""
        self._still_ours()
        if self._reading is None or not self._journal.step:
            return
        if wait([self._reading], PATIENCE_SECONDS).not_done:
            self._say(
                "No checkpoint is kept before the shards have been read against their hashes; this "
                "one waits for that. Killed meanwhile, the run goes on from the one before."
            )
        self._reading.result()

    def _look_at_milestones(self) -> None:
        """Say which weights of earlier sessions are lost: losses stay, models do not."""
        for problem in self._checkpoints.milestone_problems():
            self._lost.append(problem)
            self._say(
                f"{problem} Its loss is in the record; its weights are gone. To have them, restore "
                "the file, or train the run anew in another directory (--out)."
            )

    def _end(self, state: State, reason: str) -> None:
        journal = self._journal
        if not self._is_main:
            return
        finite = [loss for loss in journal.losses if math.isfinite(loss)]
        self._record.write_status(
            state,
            reason=reason,
            tokens=journal.trained_tokens,
            loss=finite[-1] if finite else None,
            memory_peak=memory_peak(self._config),
        )
        self._record.log(f"{state}: {reason}" if reason else state)

    def _say(self, text: str) -> None:
        """Tell what costs work, aloud and in the log."""
        log.warning(text)
        self._record.log(text)


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Lightning turns Ctrl-C into an exit and ignores more of them; pass the interrupt on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
