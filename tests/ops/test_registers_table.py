"""benchmarks/registers.py reads what ptxas says."""

import registers

SAID = """
ptxas info    : Compiling entry function '_ZN8histokit37_GLOBAL__N__25ebfb4a_25_x_cu_46dfc4b17key_mmaINS0_4PlanI13__nv_bfloat16Li1ELi128ELi2ELi64EEEEEvNS_6ParamsEb' for 'sm_80'
ptxas info    : Function properties for _ZN8histokit
    128 bytes stack frame, 368 bytes spill stores, 364 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 128 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compile time = 5017.438 ms
ptxas info    : Compiling entry function '_ZN8histokit37_GLOBAL__N__25ebfb4a_25_x_cu_46dfc4b17key_mmaINS0_4PlanI6__halfLi1ELi64ELi2ELi64EEEEEvNS_6ParamsEb' for 'sm_80'
ptxas info    : Function properties for _ZN8histokit
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 250 registers, used 1 barriers
ptxas info    : Compiling entry function '_ZN8histokit43_GLOBAL__N__0085fba7_10_csr_mma_cu_58c8487513densified_mmaINS0_4PlanIfLi3ELi64ELi1ELi32EEEiEEvNS_9CsrParamsEb' for 'sm_80'
ptxas info    : Function properties for _ZN8histokit
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 159 registers, used 1 barriers
"""  # noqa: E501


def test_a_row_for_each_kernel():
    sparse, first, second = (row.split("  ") for row in registers.rows(SAID, "sm_80"))
    assert [sparse[0], first[0], second[0]] == [
        "densified_mma<float, 3, 64, 1, 32, int>",
        "key_mma<bfloat16, 1, 128, 2, 64>",
        "key_mma<half, 1, 64, 2, 64>",
    ]
    assert " ".join(first[1:]).split() == ["sm_80", "255", "32", "368", "364"]
    assert " ".join(second[1:]).split() == ["sm_80", "250", "0", "0", "0"]
