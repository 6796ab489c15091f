"""Run op tests with histokit._C replaced by the build of :func:`build_extension`.

python tests/ops/cuda_host/run_op_tests.py LIBRARY [pytest arguments]
"""

import importlib.machinery
import importlib.util
import sys

import pytest
import torch

loader = importlib.machinery.ExtensionFileLoader("histokit._C", sys.argv[1])
spec = importlib.util.spec_from_loader("histokit._C", loader)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["histokit._C"] = module

from histokit.ops import targets  # noqa: E402  after the library that it shall find

library = torch.library.Library("histokit", "IMPL")
library.impl("csr_transpose_matmul", targets._csr_transpose_cuda, "CPU", allow_override=True)
sys.exit(pytest.main(sys.argv[2:]))
