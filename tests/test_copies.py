# SPDX-License-Identifier: Apache-2.0
"""A copy of a loaded process behaves as a process that was started."""

import os
import sys
import time

import pytest

from tests.copies import Copy, sauce_in_a_copy


def tell(word):
    """Say what there is, and end badly."""
    sys.stdout.write(f"{word} {os.environ.get('MINE')} {os.environ.get('LEFT')}\n")
    sys.stderr.write(f"{os.getpid() == os.getpgid(0)} {'torch' in sys.modules}\n")
    sys.exit(3)


def test_it_has_the_environment_of_whoever_starts_it(monkeypatch):
    """Also of what was set or left out since the first copy was made."""
    for left in ("there", None):
        if left is None:
            monkeypatch.delenv("LEFT")
        else:
            monkeypatch.setenv("LEFT", left)
        done = Copy(tell, "hello", env={"MINE": 7}).wait()
        assert (done.exit_code, done.stdout) == (3, f"hello 7 {left}\n")
        assert done.stderr == "True True\n"


def test_what_does_not_end_is_told():
    copy = Copy(time.sleep, 600, env={})
    with pytest.raises(AssertionError, match="did not end"):
        copy.wait(timeout_s=-1)
    copy.process.kill()


def test_a_command_ends_as_it_would():
    done = sauce_in_a_copy("pull", "not-a-name", env={})
    assert done.exit_code == 2 and "org/name" in done.stderr
