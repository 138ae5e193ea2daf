"""`python -m tests.bus.sanitize`: the bus tests with the C ring under the address and undefined-behaviour sanitizers.

Copies what the tests need to a directory of its own and builds there, so that no other build is touched or picked up;
then once more without a futex, for the doorbell's fallback, and once with a mistake, which must be found: a record may
be longer than the ring is from there on. Arguments go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bus.variants import Edit, copy_sources
from tests.side_by_side import own_shm

ROOT = Path(__file__).parents[2]
SANITIZERS = "address,undefined"
PLACES = ("bus", "tests/bus")
# No C there, or builds of their own, or much of what is here in little.
ELSEWHERE = ("streams", "test_memory_order.py", "test_ring_failpoints.py", "test_stress.py", "test_tsan.py")
OVER_READ = Edit("_ring_core.h", " && index + total <= end->capacity &&", " &&")
FILES = ("setup.py", "pyproject.toml", "LICENSE", "tests/__init__.py", "tests/conftest.py")


def library(name: str) -> str:
    """Where the compiler's runtime for a sanitizer is; the interpreter, which was built without, has to preload it."""
    compiler = os.environ.get("CC", "gcc").split()[0]
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        sys.exit(f"{compiler} has no {name}: the sanitizers' runtime libraries are not installed")
    return found


def copy_to(place: Path) -> None:
    for name in PLACES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    project = place / "pyproject.toml"  # the build here is of the extension alone
    project.write_text(project.read_text().replace('readme = "README.md"\n', ""))


def run(place: Path, command: list[str], **changes: str) -> None:
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=place, env=os.environ | changes, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def build(place: Path, **building: str) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    run(place, command, RINGLEADER_SANITIZE=SANITIZERS, RINGLEADER_REQUIRE_C="1", **building)


def environment(place: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(place),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def pytest(*arguments: str) -> list[str]:
    """Every test looks whether it has left a segment behind: those of systems that run beside it are none of its."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *arguments]
    return [*own_shm(), *command]


def build_and_test(place: Path, arguments: list[str], **building: str) -> None:
    build(place, **building)
    testing = environment(place)
    where = "import bus._ring, sys; sys.exit(not bus._ring.__file__.startswith(sys.argv[1]))"
    run(place, [sys.executable, "-c", where, str(place)], **testing)
    run(place, pytest(*arguments), **testing)


def find_the_mistake(place: Path) -> None:
    """What proves that an over-read would be found."""
    copy_sources(place / "bus", [OVER_READ])
    build(place)
    command = pytest("tests/bus/test_frame_fuzz.py", "-x")
    print("+", *command, "(with an over-read built in)", flush=True)
    done = subprocess.run(
        command, cwd=place, env=os.environ | environment(place), capture_output=True, text=True, check=False
    )
    if done.returncode == 0 or "AddressSanitizer: heap-buffer-overflow" not in done.stderr:
        sys.exit(f"an over-read was not found: {done.stdout}\n{done.stderr}")
    print("found")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ringleader-sanitize-") as directory:
        place = Path(directory).resolve()
        copy_to(place)
        build_and_test(place, sys.argv[1:] or ["tests/bus", *(f"--ignore=tests/bus/{name}" for name in ELSEWHERE)])
        # Python has a futex here: a mixed pair would be one that sleeps in it and one that wakes nobody.
        alone = ["tests/bus/test_doorbell.py", "-k", "not python-c and not c-python"]
        build_and_test(place, alone, CFLAGS="-DRINGLEADER_NO_FUTEX")
        find_the_mistake(place)


if __name__ == "__main__":
    main()
