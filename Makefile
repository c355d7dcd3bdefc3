# Castor. `make help` lists the targets, `make config` says what was found on this machine.
#
#   CUDA=0       leave the CUDA table out even where nvcc is there (objects go to build/cpu)
#   SAN=address  AddressSanitizer + UBSan (build/asan); SAN=thread ThreadSanitizer (build/tsan); SAN=fuzz what
#                `make fuzz` builds with: clang's libFuzzer, AddressSanitizer and UBSan (build/fuzz)
#   DEVELOPER=1  warnings are errors
#   ARCHS=...    CUDA targets, as in ARCHS="80 90a", or all: default what this machine's GPU is, sm_90a where there is none
#   B=DIR        build there
#   V=1          show every command
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

ifeq ($(origin CC),default)
CC := gcc
endif
SAN_DIR_address := asan
SAN_DIR_thread := tsan
B ?= build$(if $(SAN),/$(or $(SAN_DIR_$(SAN)),$(SAN)))$(if $(filter 0,$(CUDA)),$(if $(NVCC),/cpu))

include deploy/probe.mk

CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS := -std=c11 -O3 -g -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer -pthread \
	-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers \
	$(if $(DEVELOPER),-Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith)
LDFLAGS := -pthread
ifeq ($(SAN),address)
CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -O1
LDFLAGS += -fsanitize=address,undefined
else ifeq ($(SAN),thread)
CFLAGS += -fsanitize=thread -O1
LDFLAGS += -fsanitize=thread
else ifeq ($(SAN),fuzz)
CFLAGS += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -O1
LDFLAGS += -fsanitize=address,undefined
else ifneq ($(SAN),)
$(error SAN=$(SAN) is not known: address, thread or fuzz)
endif
NVCCFLAGS := -I. -O3 -std=c++17 --fmad=true -Xcompiler -fno-omit-frame-pointer \
	--expt-relaxed-constexpr $(CUDA_GENCODE)

# One archive a folder, listed from the roof to the ground floor: a folder may use what stands behind it.
FOLDERS := server scheduler worker/train worker/plan worker/parallel worker/memory worker/model \
	worker/text worker/hub kernels api core
lib = $(B)/lib/lib$(subst /,_,$(1)).a
LIBS_core := -ljansson -lnettle -lm
LIBS_api :=
OPENMP := $(if $(filter fuzz,$(SAN)),,-fopenmp)
LIBS_kernels := $(BLAS_LIBS) $(CUDA_LIBS) $(or $(OPENMP),-lgomp)
LIBS_worker/hub := -lcurl -lyaml
LIBS_worker/memory := -luring
LIBS_worker/text := -lonig -lutf8proc -lz -lzstd -lsnappy -llz4 -lbrotlidec
LIBS_scheduler := -lsqlite3
LIBS_server := -lmicrohttpd

# Folders that each folder may use: its tests link these and no more, and `make check-deps` reads this table.
USES_core := core
USES_api := api core
USES_kernels := kernels core
USES_worker/hub := worker/hub api core
USES_worker/text := worker/text api core
USES_worker/model := worker/model kernels api core
USES_worker/memory := worker/memory kernels core
USES_worker/parallel := worker/parallel worker/memory kernels core
USES_worker/plan := worker/plan worker/parallel worker/memory worker/model kernels api core
USES_worker/train := worker/train worker/plan worker/parallel worker/memory worker/model worker/text \
	worker/hub kernels api core
USES_worker := worker $(USES_worker/train)
USES_scheduler := scheduler api core
USES_server := server scheduler api core
uses_libs = $(foreach f,$(1),$(call lib,$(f)))
uses_sys = $(foreach f,$(1),$(LIBS_$(f)))

# The programs' own main files are not part of the archives.
WORKER_MAIN := $(wildcard worker/*.c)
MAINS := server/main.c $(WORKER_MAIN)
PROGRAMS := $(if $(wildcard server/main.c),$(B)/castord) $(if $(wildcard worker/main.c),$(B)/castor-worker)
kernel_dirs := kernels kernels/cpu $(if $(filter 1,$(HAVE_CUDA)),kernels/cuda)
srcs = $(filter-out $(MAINS),$(wildcard $(addsuffix /*.c,$(if $(filter kernels,$(1)),$(kernel_dirs),$(1)))) \
	$(if $(filter kernels,$(1)),$(if $(filter 1,$(HAVE_CUDA)),$(wildcard kernels/cuda/*.cu))))
objs = $(patsubst %,$(B)/obj/%.o,$(1))

all: $(PROGRAMS)  ## build the programs for what this machine has
	@echo "built: $(or $^,nothing) (CUDA $(CONFIG_CUDA))"

config:  ## say what the build found on this machine, and what it leaves out
	@echo 'compiler   $(CC), nvcc $(or $(NVCC),none)'
	@echo 'libraries  $(or $(CONFIG_LIBS),none)'
	$(if $(CONFIG_MISSING),@echo 'missing    $(CONFIG_MISSING): deploy/install-deps installs them')
	@echo 'CUDA       $(CONFIG_CUDA)'
	@echo 'tests      $(CONFIG_TESTS)'
	@echo 'sanitizer  $(or $(SAN),none)'
	@echo 'build in   $(B)'
	@echo 'programs   $(or $(notdir $(PROGRAMS)),none yet)'

deps:  ## install what is missing of Debian's packages (root or sudo)
	@deploy/install-deps

# --- stamps: a changed flag, compiler or list of sources rebuilds, an idle build does nothing ---------
# A stamp file's content is the variable STAMP_<file>. Make compares; the shell only runs where they differ.
FLAGS_TEXT := $(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(NVCC) $(NVCCFLAGS) CUDA=$(HAVE_CUDA)
STAMPS := $(B)/flags
STAMP_$(B)/flags := $(FLAGS_TEXT)
differs = $(subst x$(strip $(1)),,x$(strip $(2)))$(subst x$(strip $(2)),,x$(strip $(1)))
write_stamp = mkdir -p $(dir $(1)) && printf '%s\n' '$(strip $(STAMP_$(1)))' > $(1);
# target, its objects: it is made again when one of them is taken away, too.
define made_of
STAMPS += $(1).list
STAMP_$(1).list := $(2)
$(1): $(2) $(1).list
endef

say = $(if $(V),,@echo '  $(1)  $(2)'; )
$(B)/obj/%.c.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC  ,$<)$(CC) $(CPPFLAGS) $(CPPFLAGS_$(<D)) $(CFLAGS) $(openmp) -MMD -MP -c $< -o $@
$(B)/obj/%.cu.o: %.cu $(B)/flags
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

# .incbin: the compiler does not know of it.
$(B)/obj/server/openapi.c.o: api/openapi.json

# The fast ops and their pool use OpenMP; the reference ops do not.
openmp = $(if $(filter kernels/cpu/fast%,$<),$(OPENMP))
CPPFLAGS_kernels := $(if $(filter 1,$(HAVE_CUDA)),-DCASTOR_CUDA=1)
CPPFLAGS_kernels/cuda := $(CUDA_INCLUDES)

define archive_rules # folder
$(call made_of,$(call lib,$(1)),$(call objs,$(call srcs,$(1))))
	@mkdir -p $$(@D)
	@rm -f $$@; $(AR) rcs $$@ $$(filter %.o,$$^)
endef
$(foreach f,$(FOLDERS),$(eval $(call archive_rules,$(f))))

define program_rules # program, its sources, the folder whose USES_ row it links, further libraries
$(call made_of,$(1),$(call objs,$(2)))
$(1): $(call uses_libs,$(USES_$(3)))
	@mkdir -p $$(@D)
	$$(call say,LINK,$$@)$(CC) $(LDFLAGS) -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(call uses_sys,$(USES_$(3))) $(4)
endef
$(eval $(call program_rules,$(B)/castord,server/main.c,server))
$(eval $(call program_rules,$(B)/castor-worker,$(WORKER_MAIN),worker/train))

include tests/tests.mk

$(STAMPS) &: FORCE
	$(if $(CONFIG_MISSING),@echo >&2 'missing: $(CONFIG_MISSING). deploy/install-deps installs it (root or sudo).'; exit 1)
	@$(foreach s,$(STAMPS),$(if $(call differs,$(file <$(s)),$(STAMP_$(s))),$(call write_stamp,$(s)))):
FORCE:

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(filter Makefile deploy/% tests/%,$(MAKEFILE_LIST))
	@echo 'Variables: CUDA=0 SAN=address|thread|fuzz DEVELOPER=1 ARCHS=... B=DIR V=1 (see the top of Makefile)'

clean:  ## remove everything that was built
	rm -rf build

.PHONY: all config deps help clean FORCE
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
