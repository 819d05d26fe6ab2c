# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Extension modules, header probes, and the C headers that the wheel carries."""

import os
import subprocess
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CORE = "pplx_async/_core"
INCLUDE_DIRS = ["include", f"{CORE}/csrc"]
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-D_GNU_SOURCE="]
# Headers that make a provider more than a stub: pkg-config's name, macro, headers.
PROBES = [
    ("libfabric", "PPLX_HAVE_LIBFABRIC", ["rdma/fabric.h", "rdma/fi_domain.h", "rdma/fi_rma.h"]),
    ("libibverbs", "PPLX_HAVE_LIBIBVERBS", ["infiniband/verbs.h"]),
]
# What was found and asked for at the last build; when that changes, all is compiled again.
CONFIGURATION = Path("build/configuration")


def extension(path: str) -> Extension:
    """Only `rt` links the C core, so that its statics exist once; the others cimport from it."""
    core = sorted(glob(f"{CORE}/csrc/*.c")) if Path(path).stem == "rt" else []
    name = path.removesuffix(".pyx").replace("/", ".")
    return Extension(name, [path, *core], INCLUDE_DIRS, libraries=["dl", "pthread"] if core else [])


class BuildExt(build_ext):
    """Probe for headers with the compiler that will be used; a missing one never fails the build."""

    def build_extensions(self) -> None:
        flags = list(FLAGS)
        for package, macro, headers in PROBES:
            query = subprocess.run(f"pkg-config --cflags {package}", shell=True, capture_output=True, text=True)
            command = [*self.compiler.compiler_so, *query.stdout.split(), "-E", "-x", "c", "-o", os.devnull, "-"]
            source = "".join(f"#include <{header}>\n" for header in headers)
            found = subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0
            flags += [f"-D{macro}={found:d}", *(query.stdout.split() if found else [])]
        sanitizer = os.environ.get("PPLX_ASYNC_SANITIZE")
        careful = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
        sanitize = [f"-fsanitize={sanitizer}", *careful] if sanitizer else []
        CONFIGURATION.parent.mkdir(exist_ok=True)
        if not CONFIGURATION.exists() or CONFIGURATION.read_text() != " ".join(flags + sanitize):
            CONFIGURATION.write_text(" ".join(flags + sanitize))
        for module in self.extensions:
            module.extra_compile_args += flags + sanitize
            module.extra_link_args += sanitize
            module.depends += [*glob("include/*/*.h"), *glob(f"{CORE}/csrc/*.h"), str(CONFIGURATION)]
        self.parallel = self.parallel or os.cpu_count()
        # What Cython makes draws warnings that say nothing about our own lines.
        compile_one = self.compiler._compile
        self.compiler._compile = lambda obj, src, ext, args, extra, pp: compile_one(
            obj, src, ext, args, [*extra, "-w"] if src.startswith("build/") else extra, pp
        )
        super().build_extensions()


class BuildPy(build_py):
    """Carry include/ into the wheel; an editable install leaves it where it is."""

    def run(self) -> None:
        super().run()
        for header in [] if self.editable_mode else glob("include/pplx_async/*.*h"):
            target = Path(self.build_lib, "pplx_async", header)
            self.mkpath(str(target.parent))
            self.copy_file(header, str(target))


if __name__ == "__main__":  # where children of cythonize() start afresh, they read this file, too
    # The Makefile builds in place, incrementally, and then installs the metadata only.
    prebuilt = os.environ.get("PPLX_ASYNC_PREBUILT")
    modules = [] if prebuilt else [extension(path) for path in sorted(glob(f"{CORE}/*.pyx"))]
    setup(
        ext_modules=cythonize(modules, nthreads=os.cpu_count() or 1, build_dir="build/cython", language_level=3),
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    )
