"""What the searcher makes of the exceptions of tries."""

import errno
import os

import pytest
from ray.exceptions import RayTaskError

from orchestrator.execution.searcher import _first_line, _kind_of


def task_error(cause):
    """As Ray hands on what a worker raised: the text of the traceback, and the cause."""
    return RayTaskError("train", f"ray::train()\n{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "full"),
        (RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'), "full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "full"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "unreachable"),
        (RuntimeError("it broke (os error 280)"), "raised"),
    ],
)
def test_a_full_disk_is_told_from_other_failures(cause, kind):
    assert _kind_of(task_error(cause)) == kind


def test_a_worker_s_exception_is_told_with_the_place_where_it_was_raised():
    text = (
        'ray::train()\n  File "/a/worker.py", line 3, in train\n    step()\n  File "/b/model.py", line 52, in step\n'
        "    weights['head']\nKeyError: 'head'\n"
    )
    assert _first_line(RayTaskError("train", text, KeyError("head"))) == "KeyError: 'head', model.py line 52"
    assert _first_line(RayTaskError("train", "ray::train()\nKeyError: 'head'", KeyError("head"))) == "KeyError: 'head'"
