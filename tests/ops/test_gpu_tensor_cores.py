"""benchmarks/gpu_tensor_cores.py, on the CPU: what it verifies, and what it says."""

import gpu_tensor_cores as script
import pytest
from op_checks import needs_kernels

CPU = script.Options(device="cpu", rows=40, spots=20, repeat=1)


@needs_kernels
def test_equal_kernels_are_verified(capsys):
    script.main(CPU)
    said = capsys.readouterr().out
    assert said.count("verified") == 4  # of two ops float32 in three products and in one
    assert "HISTOKIT_TENSOR_CORES" in said.splitlines()[-1]


@needs_kernels
@pytest.mark.parametrize("result", range(5))
def test_one_wrong_row_of_one_result_is_found(monkeypatch, capsys, result):
    sound = script.by_kernels

    def broken(given, products):
        found = [t.clone() for t in sound(given, products)]
        found[result][-1] = found[result][-1] * 1.3 + 0.01
        return found

    monkeypatch.setattr(script, "by_kernels", broken)
    with pytest.raises(SystemExit, match=r"wrong: distance_attention float32, .* TF32$"):
        script.main(CPU)
    assert f"{script.RESULTS[result]}: worst row off by" in capsys.readouterr().out


@needs_kernels
@pytest.mark.parametrize("result", range(2))
def test_one_wrong_row_of_one_product_is_found(monkeypatch, capsys, result):
    sound = script.sparse_calls

    def broken(given):
        def call(products):
            found = [t.clone() for t in sound(given)(products)]
            found[result][-1] = found[result][-1] * 1.3 + 0.01
            return found

        return call

    monkeypatch.setattr(script, "sparse_calls", broken)
    with pytest.raises(SystemExit, match=r"wrong: csr_matmul float32, csr_matmul TF32$"):
        script.main(CPU)
    assert f"{script.SPARSE_RESULTS[result]}: worst row off by" in capsys.readouterr().out
