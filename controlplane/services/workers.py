"""Worker processes for everything that opens model files, bounded in number, time and memory."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controlplane.sandbox import Sandbox
from controlplane.services.operations import Reporter
from controlplane.settings import ConversionSettings
from converters.jobs import Job, WorkerEvent, WorkerResult
from converters.runner import run_worker


class Workers:
    """Runs the converters' worker processes.

    Args:
        settings: Their number and limits.
        work_root: Where their temporary folders are made; its owner removes what a killed process left.
        sandbox: How they are confined.
    """

    def __init__(self, settings: ConversionSettings, work_root: Path, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._work_root = work_root
        # A pool of its own: one thread waits for each worker, and the event loop's default threads serve reads.
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="worker")

    async def run(self, job: Job, reporter: Reporter) -> WorkerResult:
        """Run a job once a worker is free.

        Raises:
            ControlPlaneError: The job's own error: `InvalidArtifactError`, `ConversionFailedError`, `ParityError`, ….
        """

        def on_event(event: WorkerEvent) -> None:
            reporter.stage(event.stage, event.message, fraction=event.fraction)

        cancel = threading.Event()

        def work() -> WorkerResult:
            return run_worker(
                job,
                timeout_seconds=self._settings.timeout_seconds,
                memory_bytes=self._settings.memory_bytes,
                on_event=on_event,
                cancel=cancel,
                work_root=self._work_root,
                sandbox=self._sandbox,
            )

        reporter.stage("queue", "waiting in the queue")
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel.set()
            if not future.cancel():
                await asyncio.wait([future])
            raise

    def close(self) -> None:
        """Accept no more jobs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
