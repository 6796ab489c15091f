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

from histokit.ops import csr, dispatch  # noqa: E402  after the library that they shall find

library = torch.library.Library("histokit", "IMPL")
dispatch.on_cuda = lambda tensor: True
library.impl("csr_transpose_matmul", csr._csr_transpose_cuda, "CPU", allow_override=True)
sys.exit(pytest.main(sys.argv[2:]))
