"""Functions as C functions: what is compiled says what Python says, and is found on disk again."""

import ctypes
import itertools
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

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

    assert set(parameters.FUNCTIONS.names) == set(_known) - {"step"}
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


def test_without_a_folder_to_write_to_functions_are_compiled_uncached(tmp_path):
    """Neither the sources' folder nor the user's: nothing is kept, nothing fails."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(blocked)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "0\n")
