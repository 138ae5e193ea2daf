"""The command `ringleader`: what it prints, where, and the exit codes that its help promises."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from actors import Handler, Message, Topology, handle
from actors.cli import app
from actors.rundir import RunDirectory, list_systems
from actors.stale import remove_segments
from actors.status import read_status
from actors.status_types import Condition, Health
from bus import Text

from .faked import SECOND, FakeSystem, ended_process, process, send
from .waiting import until

ROOT = Path(__file__).parents[2]
NOBODY = 65534

Fake = Callable[..., FakeSystem]
