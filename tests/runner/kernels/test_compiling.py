"""Functions as C functions: what is compiled says what Python says, and is found on disk again."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import tsconvert
from tsconvert.runner.kernels import parameters
from tsconvert.runner.kernels.compiling import compile_c, signature_of
from tsconvert.runner.kernels.parameters import Parameters, Tensor

FIRST, SECOND, THIRD = 2, 4, 9


def compiled(function):
    """The function as the step's functions are compiled, for Python; records by their address."""
    hints = list(function.__annotations__.values())[:-1]
    made = compile_c(function, signature_of(function))
    kinds = [ctypes.c_float if hint is float else ctypes.c_int64 if hint is int else ctypes.c_void_p for hint in hints]
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(made.address)
    call.made = made
    return call


def in_constants(params: Parameters, x: int, y: int, z: float) -> int:
    found = 1 if x in (2, 4) else 0
    found += 2 if x in (2, 4, 9) else 0
    found += 4 if x in (FIRST, SECOND) else 0
    found += 8 if x in (FIRST, SECOND, THIRD) else 0
    return found + (16 if x not in (SECOND, FIRST) else 0)


def in_variables(params: Parameters, x: int, y: int, z: float) -> int:
    found = 1 if x in (y, FIRST) else 0
    found += 2 if x in (SECOND, y) else 0
    found += 4 if x in (y, y + 3) else 0
    found += 8 if x in (params.width, params.layers) else 0
    return found + (16 if z in (1.5, 2.0) else 0)


def in_loops(params: Parameters, x: int, y: int, z: float) -> int:
    found = 0
    for role in (FIRST, SECOND, THIRD):
        if role in (FIRST, THIRD):
            found += 1
        if x in (role, SECOND):
            found += 10
        if role not in (x, y):
            found += 100
    wanted = x if x in (FIRST, SECOND) else -y
    for t in range(3):
        if t in (x, y) and wanted in (SECOND, -THIRD):
            found += 1000
    return found


@pytest.mark.parametrize("function", [in_constants, in_variables, in_loops])
def test_in_a_tuple_means_what_it_means_in_python(function):
    """Under the compiler that this one replaced it had come out wrong, in silence (docs/decisions.md)."""

    class Fields:
        width, layers = 4, 6

    record, ours = parameters.new_parameters(width=4, layers=6), compiled(function)
    for x, y, z in itertools.product(range(-1, 11), range(-1, 11), (1.0, 1.5, 2.0)):
        assert ours(record.ctypes.data, x, y, z) == function(Fields, x, y, z), (x, y, z)


def test_fields_are_read_by_name_where_numpy_has_put_them():
    def fields(params: Parameters, tensor: Tensor) -> int:
        return params.width + 10 * params.output.type.kind + 100 * tensor.columns + 1000 * tensor.type.add

    record, tensor = parameters.new_parameters(width=7), np.zeros((), parameters.TENSOR)
    record["output"]["type"]["kind"], tensor["columns"], tensor["type"]["add"] = 3, 5, 8
    assert compiled(fields)(record.ctypes.data, tensor.ctypes.data) == 7 + 30 + 500 + 8000


def test_every_function_is_in_the_table():
    from tsconvert.runner.kernels import step  # noqa: F401
    from tsconvert.runner.kernels.compiling import _known, function_table

    ours = {name for name, each in _known.items() if each._function.__module__.startswith("tsconvert.")}
    assert set(parameters.FUNCTIONS.names) == ours - {"steps", "call_members"}  # which Python calls
    table = function_table()
    assert len({int(table[name]) for name in parameters.FUNCTIONS.names}) == len(parameters.FUNCTIONS.names)


PROGRAM = """
from tsconvert.runner.kernels.residual import clear
clear.address
print(clear._made.cache_hits)
"""


def test_a_function_is_compiled_once_and_found_on_disk(tmp_path):
    for hits in ("0\n", "1\n"):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
        assert (done.stderr, done.stdout) == ("", hits)


def test_other_sources_are_other_signatures():
    """Numba's cache on disk has one entry a signature; a record with the hash of all sources is in each."""
    names = parameters.PARAMETERS.names
    (stamp,) = (name for name in names if name.startswith("sources_"))
    fields = [("sources_x" if name == stamp else name, parameters.PARAMETERS.fields[name][0]) for name in names]
    other = numba.from_dtype(np.dtype(fields, align=True))
    assert other != numba.from_dtype(parameters.PARAMETERS)
    assert numba.from_dtype(parameters.PARAMETERS) in signature_of(in_loops).args


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a copy of the package, whose sources a test may change."""
    source = Path(tsconvert.__path__[0])
    for name in ("common", "model", "quant", "runner"):
        shutil.copytree(source / name, tmp_path / "tsconvert" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "__init__.py", tmp_path / "tsconvert")
    return tmp_path


def test_sources_that_are_edited_between_import_and_first_use_do_not_file_old_code_under_the_new(package: Path):
    """The old compiler hashed the files when a kernel was first needed: an edit since the import was never seen."""
    edited = package / "tsconvert" / "runner" / "kernels" / "residual.py"
    edit = f"from pathlib import Path; file = Path({str(edited)!r}); file.write_text(file.read_text() + '# edited\\n')"
    first, use, tell = PROGRAM.strip().split("\n")
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(package / "cache")}
    for program in ("\n".join((first, edit, use, tell)), PROGRAM):
        command = [sys.executable, "-B", "-c", program]
        done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True)
        assert (done.stderr, done.stdout) == ("", "0\n")


def test_without_a_folder_to_write_to_functions_are_compiled_uncached(package: Path):
    """Neither the asked-for folder, nor the sources', nor the user's: nothing is kept, nothing fails."""
    blocked = package / "file"
    blocked.write_text("")
    (package / "tsconvert" / "runner" / "kernels" / "__pycache__").write_text("")
    environment = {
        **os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(blocked), "XDG_CACHE_HOME": str(blocked),
        "HOME": str(blocked),
    }  # fmt: skip
    for _ in range(2):
        command = [sys.executable, "-B", "-c", PROGRAM]
        done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True)
        assert (done.stderr, done.stdout) == ("", "0\n")
