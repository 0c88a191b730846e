# SPDX-License-Identifier: Apache-2.0
"""Who has a lock is told from a file system that has none."""

import errno

import pytest

from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.files import lock_folder


def test_another_run_is_named(tmp_path):
    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open("w") as theirs:
        lock_folder(theirs, tmp_path, wait=False, error=ConfigError)
        with pytest.raises(ConfigError, match="another run is writing to"):
            lock_folder(mine, tmp_path, wait=False, error=ConfigError)
        theirs.close()
        lock_folder(mine, tmp_path, wait=False, error=ConfigError)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number, wait):
    def flock(file, how):
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        (tmp_path / "lock").open("w") as file,
        pytest.raises(ActivationsError, match="cannot be locked .No locks avail") as e,
    ):
        lock_folder(file, tmp_path, wait=wait, error=ActivationsError)
    assert "another run" not in str(e.value)
