"""The record that every compiled function has as its first argument."""

import numpy as np
import pytest

from tsconvert.runner.kernels import parameters, step  # noqa: F401  step imports every function
from tsconvert.runner.kernels.compiling import function_table


@pytest.fixture(scope="session")
def params_of():
    """The address of a record with these fields; arrays become buffers."""
    functions, kept = function_table(), []

    def make(**fields):
        record = parameters.new_parameters(functions=functions.ctypes.data, **{"threads": 1, **fields})
        kept.append((record, fields))
        return record.ctypes.data

    return make


@pytest.fixture
def layer_of():
    """The same of a layer's record."""
    kept = []

    def make(**fields):
        record = np.zeros((), parameters.LAYER)
        for name, value in fields.items():
            record[name] = value
        kept.append(record)
        return record.ctypes.data

    return make
