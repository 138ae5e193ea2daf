"""What pyproject.toml cannot say: the C parts are optional, and built against the stable ABI where there is one."""

import os
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
SANITIZE = os.environ.get("RINGLEADER_SANITIZE", "")  # for example "address,undefined"

flags = ["-std=c11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"]
link: list[str] = []
if SANITIZE:
    flags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    link += [f"-fsanitize={SANITIZE}"]


def extension(name: str, *parts: str) -> Extension:
    """`bus.name` of its own source and of these parts."""
    return Extension(
        f"bus.{name}",
        sources=[f"bus/{name}.c", *(f"bus/{part}" for part in parts if part.endswith(".c"))],
        depends=[f"bus/{part}" for part in parts if part.endswith(".h")],
        optional=not os.environ.get("RINGLEADER_REQUIRE_C"),
        py_limited_api=not FREE_THREADED,
        define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=flags,
        extra_link_args=link,
    )


class StableAbiWheel(bdist_wheel):
    def finalize_options(self) -> None:
        if not FREE_THREADED:
            self.py_limited_api = "cp311"
        super().finalize_options()


FAILPOINT = ("_failpoint.c", "_failpoint.h")
RING = (
    "_ring_object.c", "_ring_looks.c", "_doorbell_object.c",
    "_binding.h", "_ring_object.h", "_ring_core.h", "_doorbell_core.h", *FAILPOINT,
)  # fmt: skip
FIELD = ("_field.c", "_field.h")
setup(
    ext_modules=[
        extension("_ring", *RING),
        extension("_progress", "_run.c", "_run.h", *FIELD),
        extension("_send", *FAILPOINT, *FIELD),
    ],
    cmdclass={"bdist_wheel": StableAbiWheel},
)
