import sys

import numpy as np
import pytest

from benchmarks.artefacts import Workshop, run


def test_peak_memory_is_the_commands_and_not_that_of_whoever_starts_it() -> None:
    held = np.ones(64 << 20, np.uint8)  # the child of a large process must not look large
    small = run([sys.executable, "-c", "pass"])
    large = run([sys.executable, "-c", "x = b'1' * (96 << 20)"])
    assert 0 < small.peak_bytes < len(held)
    assert 96 << 20 < large.peak_bytes < 192 << 20


def test_output_and_exit_code_are_the_commands() -> None:
    ran = run([sys.executable, "-c", "import sys; print('said'); print('why', file=sys.stderr); sys.exit(5)"])
    assert (ran.code, ran.stdout, ran.complaint) == (5, "said\n", "why")


@pytest.mark.timeout(60)
def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    nested = "import subprocess, sys; subprocess.call([sys.executable, '-c', 'import time; time.sleep(600)'])"
    ran = run([sys.executable, "-c", nested], timeout_s=1)
    assert ran.code == 124
    assert ran.complaint == "not done within 1 s"
    assert ran.seconds < 30


def test_a_workshop_makes_a_thing_once(tmp_path) -> None:
    workshop, made = Workshop(tmp_path), iter("abc")
    asked = [workshop.once(("thing", key), lambda: next(made)) for key in ("one", "two", "one")]
    assert asked == ["a", "b", "a"]
