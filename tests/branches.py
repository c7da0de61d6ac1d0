"""Small projects under git and DVC, made for a test."""

import os
import subprocess
import sys
from pathlib import Path


def sh(folder, *command):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder, *args):
    return sh(folder, sys.executable, "-m", "dvc", *args)


def new_project(folder, branch):
    """Make FOLDER a project of git and DVC, with BRANCH checked out and nothing committed."""
    sh(folder, "git", "init", "--quiet", "--initial-branch", branch)
    sh(folder, "git", "config", "user.name", "Somebody")
    sh(folder, "git", "config", "user.email", "somebody@example.org")
    dvc(folder, "init", "--quiet")
    dvc(folder, "config", "core.analytics", "false")


def commit(folder, message):
    sh(folder, "git", "add", "--all")
    sh(folder, "git", "commit", "--quiet", "--message", message)
