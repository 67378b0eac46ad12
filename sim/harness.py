"""The Python end of harness.cpp: a fast simulation of the whole accelerator behind the Transport protocol."""

import os
import selectors
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sim.verilator import MisbehaviourError, Progress, SimError, XInitial, build_harness

RESET, WRITE, READ, SEND, RECEIVE, WAIT, STALL, CYCLES, TRACE, SYNC, IDLE, LIMIT, QUIT = range(13)
BEAT_BYTES = 4
WALL_SECONDS = 900.0


class Harness:
    """A running simulation; a context manager and a Transport.

    Writes and sends are not answered: an error in them is raised by the next call that is (read_register, receive,
    wait_done, cycles, sync), and again by each later one until reset.

    Args:
        executable: From sim.verilator.build_harness.
        seed: Of the initial contents of an x_initial="unique" build; None leaves all zero.
        wall_seconds: Longest time to wait for one answer; then the simulation is killed.
    """

    def __init__(self, executable: Path, *, seed: int | None = None, wall_seconds: float = WALL_SECONDS) -> None:
        self._wall_seconds = wall_seconds
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        random = [] if seed is None else ["+verilator+rand+reset+2", f"+verilator+seed+{seed % (2**31 - 1) + 1}"]
        self._process = subprocess.Popen([str(executable), *random], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, bufsize=1 << 16)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    @classmethod
    def from_verilog(
        cls, verilog: Path | str, *, x_initial: XInitial = "fast", trace: bool = False, seed: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Build (or take from the cache) and start the simulation of `verilog`."""
        return cls(build_harness(verilog, x_initial=x_initial, trace=trace, progress=progress), seed=seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def reset(self) -> None:
        """Reset the accelerator, the cycle count and the error."""
        self._command(RESET)

    def write_register(self, address: int, value: int) -> None:
        """Write 32 bits at a byte address."""
        self._command(WRITE, address, value & 0xFFFFFFFF)

    def read_register(self, address: int) -> int:
        """The 32 bits at a byte address."""
        self._command(READ, address)
        return int.from_bytes(self._answer(), "little")

    def send(self, data: bytes) -> None:
        """Send whole 32-bit beats on the input stream, tlast with the last."""
        if len(data) % BEAT_BYTES:
            raise ValueError(f"data must be whole beats of {BEAT_BYTES} bytes, not {len(data)} bytes")
        self._command(SEND, len(data) // BEAT_BYTES, data=data)

    def receive(self, size: int) -> bytes:
        """Take `size` bytes (whole beats) from the output stream; tlast must come with the last beat."""
        if size % BEAT_BYTES:
            raise ValueError(f"size must be whole beats of {BEAT_BYTES} bytes, not {size}")
        self._command(RECEIVE, size // BEAT_BYTES)
        return self._answer()

    def wait_done(self, max_cycles: int) -> None:
        """Run until irq is high.

        Raises:
            SimError: It is not after `max_cycles`.
        """
        self._command(WAIT, max_cycles & 0xFFFFFFFF, max_cycles >> 32)
        finished, cycles = struct.unpack("<QQ", self._answer())
        if not finished:
            raise _with_remedy(f"the accelerator was still busy after {cycles} cycles",
                               "read its registers for the state, or write a trace (Harness.trace)", MisbehaviourError)

    def stall(self, probability: float, seed: int = 0) -> None:
        """From now on every bus agent pauses with this probability in each cycle; 0 means never."""
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be in [0, 1), not {probability}")
        self._command(STALL, seed & 0xFFFFFFFF, round(probability * 65536))

    def limit(self, cycles: int) -> None:
        """A handshake that takes longer is an error; 100,000 at the start."""
        self._command(LIMIT, cycles & 0xFFFFFFFF, cycles >> 32)

    def idle(self, cycles: int) -> None:
        """Run with idle buses."""
        self._command(IDLE, cycles & 0xFFFFFFFF, cycles >> 32)

    def trace(self, file: Path) -> None:
        """Write a VCD from now on; needs a build with trace=True."""
        name = os.fsencode(file)
        self._command(TRACE, len(name), data=name)

    @property
    def cycles(self) -> int:
        """Clock cycles since reset."""
        self._command(CYCLES)
        return int.from_bytes(self._answer(), "little")

    def sync(self) -> None:
        """Wait for everything before; raise its error, if any."""
        self._command(SYNC)
        self._answer()

    def close(self) -> None:
        """End the simulation; errors that nobody asked for are lost."""
        try:
            self._command(QUIT)
            self._process.wait(timeout=5)
        except (SimError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._selector.close()
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream:
                    _close_quietly(stream)

    @property
    def _out(self) -> int:
        assert self._process.stdout
        return self._process.stdout.fileno()

    def _command(self, op: int, a: int = 0, b: int = 0, data: bytes = b"") -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(struct.pack("<BII", op, a, b) + data)
            if op in (QUIT, *_ANSWERED):
                self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._death() from error

    def _answer(self) -> bytes:
        deadline = time.monotonic() + self._wall_seconds
        status, size = struct.unpack("<BI", self._read(5, deadline))
        data = self._read(size, deadline)
        if status:
            raise _with_remedy(f"simulation, {data.decode(errors='replace')}",
                               "the hardware or its driver broke a bus rule: repeat with a trace (Harness.trace)",
                               MisbehaviourError)
        return data

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self._process.kill()
                raise _with_remedy(f"the simulation gave no answer for {self._wall_seconds:g} s and was killed",
                                   "a combinational loop, or too small a limit: wall_seconds")
            chunk = os.read(self._out, size - len(data))
            if not chunk:
                raise self._death()
            data += chunk
        return bytes(data)

    def _death(self) -> SimError:
        """Why the process is gone."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()
        return _with_remedy(f"the simulation {how}" + (f":\n{text[-2000:]}" if text else ""),
                            "if it was out of memory or killed from outside, run it again" if code < 0 else
                            "see the message above; a trace shows how it came to this (Harness.trace)")


_ANSWERED = (READ, RECEIVE, WAIT, CYCLES, SYNC)


def _with_remedy(text: str, remedy: str, kind: type[SimError] = SimError) -> SimError:
    error = kind(text)
    error.add_note(f"remedy: {remedy}")
    return error


def _close_quietly(stream: IO[bytes]) -> None:
    with suppress(OSError):  # the other end of the pipe may be gone
        stream.close()
