"""The version of the running code: commit, uncommitted changes, snapshot."""

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
"""The root of the code: a checkout, a snapshot (launch/slurm/snapshot.py) or an installation."""

CODE = ("crisscross", "experiments", "launch", "analysis", "pyproject.toml")
"""Paths that can affect a result, without ``DOCUMENTS``; changes of others do not make a checkout dirty."""

DOCUMENTS = ":(exclude,glob)**/*.md"
"""A pathspec that excludes the README files."""

MAX_DIFF_BYTES = 2**20  # ours
"""Largest diff of uncommitted changes that a run from a working tree records; a snapshot always has its diff."""


def git_state(root: Path = CODE_ROOT) -> dict[str, Any]:
    """Return the version of the code.

    Its keys are ``commit``, ``dirty`` (whether the code differs from the commit), and ``snapshot`` if it is one. Empty
    if the code is neither a checkout nor a snapshot. The result is cached: later changes of the checkout do not affect
    the modules that this process has imported.
    """
    return dict(_git_state(root))


@functools.cache
def _git_state(root: Path) -> dict[str, Any]:
    about = read_json(root / "snapshot.json")
    if about is not None:  # an enclosing repository may have another commit by now
        known = {"commit": about["commit"], "dirty": about["dirty"]} if about["commit"] else {}
        return {**known, "snapshot": about["snapshot"]}
    try:
        if not git(root, "ls-files", "-co", "--exclude-standard", "--", CODE[0]):
            return {}  # an installation that an enclosing repository ignores
        # --untracked-files because a user's git config may set it to "no".
        status = git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=normal", "--", *CODE, DOCUMENTS)
    except (OSError, subprocess.SubprocessError) as error:
        if (root / ".git").exists():
            said = getattr(error, "stderr", None) or str(error).encode()
            reason = said.decode(errors="replace").strip().partition("\n")[0]
            logger.warning("the commit of the code is not recorded, as git fails in %s: %s", root, reason)
        return {}
    lines = status.decode(errors="replace").splitlines()
    commit = next(line.split()[-1] for line in lines if line.startswith("# branch.oid "))
    return {} if commit == "(initial)" else {"commit": commit, "dirty": any(line[0] != "#" for line in lines)}


def git(root: Path, *arguments: str, index: Path | None = None) -> bytes:
    """Run git in a checkout without its locks and return the output.

    Args:
        root: working directory of git.
        *arguments: arguments of git.
        index: index file to use and change instead of the checkout's own.

    Raises:
        OSError: if git is not installed.
        SubprocessError: if git fails, or takes more than 10 seconds.
    """
    # Git sets these when it runs a hook of another repository.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    variables = {name: value for name, value in os.environ.items() if name not in elsewhere}
    variables |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index is not None:
        variables["GIT_INDEX_FILE"] = str(index)
    # Git refuses a checkout that belongs to another user. Its code runs here already, so its version may be read.
    command = ["git", "-c", f"safe.directory={root.resolve()}", *arguments]
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, check=True, timeout=10).stdout


def uncommitted_changes(root: Path = CODE_ROOT) -> bytes:
    """Return the diff of the running code to its commit.

    Empty, with a warning, if the diff is too large or git fails.
    """
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
    """Return the diff of a checkout's code to a commit.

    Untracked files are included.

    Args:
        root: the checkout.
        commit: commit to compare with.

    Returns:
        A diff for ``git apply``, with binary files and without ignored files; empty if there is no difference.

    Raises:
        OSError: if git is not installed.
        SubprocessError: if git fails.
    """
    own_index = root / os.fsdecode(git(root, "rev-parse", "--git-path", "index")).removesuffix("\n")
    new = os.fsdecode(git(root, "ls-files", "-o", "--exclude-standard", "-z", "--", *CODE, DOCUMENTS)).split("\0")[:-1]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"  # a copy: the checkout's own index must not change
        if own_index.is_file():
            shutil.copyfile(own_index, index)
        if new:
            git(root, "--literal-pathspecs", "add", "--intent-to-add", "--", *new, index=index)
        # Explicit options, because a user's git config may change the format to one that git apply cannot read.
        style = ["--binary", "--unified=3", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"]
        style += ["--src-prefix=a/", "--dst-prefix=b/"]
        return git(root, "-c", "diff.relative=false", "diff", *style, commit, "--", *CODE, DOCUMENTS, index=index)
