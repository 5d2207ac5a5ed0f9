"""Which code this is: the commit, whether it differs from it, and by what. Git is asked; a snapshot knows by itself."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from crisscross.utils.files import read_json

logger = logging.getLogger(__name__)
CODE_ROOT = Path(__file__).resolve().parents[2]
"""Where this code is: a checkout, a snapshot (launch/slurm/snapshot.py) or an installation."""

CODE = ("crisscross", "experiments", "launch", "analysis", "pyproject.toml")
"""What of the project a result can depend on, less ``DOCUMENTS``; tests and documents do not make a checkout dirty."""

DOCUMENTS = ":(exclude,glob)**/*.md"
"""A pathspec that leaves the README files out."""

MAX_DIFF_BYTES = 2**20
"""What a run from a working tree keeps of uncommitted changes (chosen by us); a snapshot has its diff anyway."""


def git_state(root: Path = CODE_ROOT) -> dict[str, Any]:
    """Return which code this is: ``commit``, ``dirty`` (code differs from it), ``snapshot`` where it is one.

    Empty where it is neither a checkout nor a snapshot. Asked once a process, which goes on with the code that it has
    imported, whatever becomes of the checkout.
    """
    return dict(_git_state(root))


@functools.cache
def _git_state(root: Path) -> dict[str, Any]:
    about = read_json(root / "snapshot.json")
    if about is not None:  # the repository around it, if any, has moved on
        known = {"commit": about["commit"], "dirty": about["dirty"]} if about["commit"] else {}
        return {**known, "snapshot": about["snapshot"]}
    try:
        if not git(root, "ls-files", "-co", "--exclude-standard", "--", CODE[0]):
            return {}  # an installation that a repository around it ignores
        # The last option because a user may have set it to "no".
        status = git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal", "--", *CODE, DOCUMENTS)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = status.decode(errors="replace").splitlines()
    commit = next(line.split()[-1] for line in lines if line.startswith("# branch.oid "))
    return {} if commit == "(initial)" else {"commit": commit, "dirty": any(line[0] != "#" for line in lines)}


def git(root: Path, *arguments: str, index: Path | None = None) -> bytes:
    """Ask git about the checkout in a folder, without locking it for those who work there.

    Args:
        root: where git is called.
        *arguments: of git.
        index: index to use and change instead of the checkout's own.

    Raises:
        OSError: when there is no git.
        SubprocessError: when it fails, or takes more than 10 seconds.
    """
    # Whoever calls us from a hook of another repository has these set.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    variables = {name: value for name, value in os.environ.items() if name not in elsewhere}
    variables |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index is not None:
        variables["GIT_INDEX_FILE"] = str(index)
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, check=True, timeout=10).stdout


def uncommitted_changes(root: Path = CODE_ROOT) -> bytes:
    """Return what the code that runs adds to its commit; empty, with a warning, where that is too much or unknown."""
    state = git_state(root)
    if not state.get("dirty"):
        return b""
    try:
        if "snapshot" in state:
            return (root / "code.diff").read_bytes()
        diff = code_diff(root, state["commit"])
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("uncommitted changes of the code are not recorded: %s", error)
        return b""
    if len(diff) > MAX_DIFF_BYTES:
        size, limit = len(diff) / 2**20, MAX_DIFF_BYTES / 2**20
        logger.warning("uncommitted changes of the code are not recorded: %.1f MiB, at most %.0f MiB", size, limit)
        return b""
    return diff


def code_diff(root: Path, commit: str) -> bytes:
    """Return what the code in a checkout adds to a commit, files that git does not know yet included.

    Args:
        root: where the packages are.
        commit: what to compare with.

    Returns:
        What ``git apply`` takes, binary files included; empty when there is no difference. Ignored files are left out.

    Raises:
        OSError, SubprocessError: when git is not there or fails.
    """
    own_index = root / os.fsdecode(git(root, "rev-parse", "--git-path", "index")).removesuffix("\n")
    new = os.fsdecode(git(root, "ls-files", "-o", "--exclude-standard", "-z", "--", *CODE, DOCUMENTS)).split("\0")[:-1]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"  # a copy: what somebody is about to commit there is not ours to change
        if own_index.is_file():
            shutil.copyfile(own_index, index)
        if new:
            git(root, "--literal-pathspecs", "add", "--intent-to-add", "--", *new, index=index)
        # Spelled out, because a user's settings could make it something that git apply does not take.
        style = ["--binary", "--unified=3", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"]
        style += ["--src-prefix=a/", "--dst-prefix=b/"]
        return git(root, "-c", "diff.relative=false", "diff", *style, commit, "--", *CODE, DOCUMENTS, index=index)
