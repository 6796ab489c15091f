# The compiled kernels; included by the Makefile, which defines PY and READY.
#
# make build           build the kernels in place (CUDA too where nvcc is found)
# make sanitize        the ops' tests on CPU kernels built with AddressSanitizer and UBSan
# make registers       registers and spills of the tensor core kernels, by ptxas (no GPU)
# make bench           verify and time every op; writes benchmarks/results/ops-*.csv
# make format-cpp      clang-format all C++ and CUDA; lint-cpp only checks

.PHONY: build sanitize registers bench format-cpp lint-cpp

CPP_FILES = $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
OP_TESTS := tests/ops/test_cancer_cross_attention.py tests/ops/test_prototype_attention.py \
	tests/ops/test_distance_attention.py tests/ops/test_pearson_update.py tests/ops/test_linear_ops.py

build: $(READY)
	$(PY) setup.py --quiet build_ext --inplace

# The instrumented library is built apart, beside a link to the package's Python files. Leaks are
# not looked for: the interpreter's own would drown ours.
SANITIZED := build/sanitized
sanitize: $(READY)
	mkdir -p $(SANITIZED)/histokit
	cp -r histokit $(SANITIZED)/ && rm -f $(SANITIZED)/histokit/*.so
	HISTOKIT_SANITIZE=1 HISTOKIT_CUDA=0 $(PY) setup.py --quiet build_ext \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)/temp
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) \
	  $(PY) -m pytest -o pythonpath=$(SANITIZED) -p no:cacheprovider $(OP_TESTS)

registers: $(READY)
	$(PY) benchmarks/registers.py $(wildcard csrc/cuda/*_mma*.cu)

bench: $(READY)
	$(PY) benchmarks/bench_ops.py

format-cpp: $(READY)
	$(VENV)/bin/clang-format -i $(CPP_FILES)

lint-cpp: $(READY)
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)
