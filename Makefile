# Castor. `make help` lists the targets, `make config` says what was found on this machine.
#
#   CUDA=0       leave the CUDA table out even where nvcc is there (objects go to build/cpu)
#   SAN=address  AddressSanitizer + UBSan (build/asan); SAN=thread ThreadSanitizer (build/tsan)
#   DEVELOPER=1  warnings are errors
#   ARCHS=...    CUDA targets: default what this machine's GPU is, sm_90a where there is none
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules

include deploy/probe.mk

B ?= build$(if $(SAN),/$(if $(filter thread,$(SAN)),tsan,asan))$(if $(filter 0,$(HAVE_CUDA)),$(if $(NVCC),/cpu))

ifeq ($(origin CC),default)
CC := gcc
endif
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
endif
NVCCFLAGS := -I. -O3 -std=c++17 --fmad=true -Xcompiler -fno-omit-frame-pointer \
	--expt-relaxed-constexpr $(CUDA_GENCODE)

# One archive a folder, listed from the roof to the ground floor: a folder may use what stands behind it.
FOLDERS := server scheduler worker/train worker/plan worker/parallel worker/memory worker/model \
	worker/text worker/hub kernels api core
lib = $(B)/lib/lib$(subst /,_,$(1)).a
LIBS_core := -ljansson -lnettle -lm
LIBS_api :=
LIBS_kernels := $(BLAS_LIBS) $(CUDA_LIBS) -fopenmp
LIBS_worker/hub := -lcurl
LIBS_worker/text := -lonig -lutf8proc
LIBS_scheduler := -lsqlite3
LIBS_server := -lmicrohttpd

# Folders that each folder may use (DESIGN's "needs"); tests of a folder link these and no more.
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
USES_scheduler := scheduler api core
USES_server := server scheduler api core
uses_libs = $(foreach f,$(1),$(call lib,$(f)))
uses_sys = $(foreach f,$(1),$(LIBS_$(f)))

# The programs' own main files are not part of the archives.
MAINS := server/main.c worker/main.c worker/supervisor.c worker/check.c worker/probe.c
WORKER_MAIN := $(filter-out server/main.c,$(wildcard $(MAINS)))
kernel_dirs := kernels kernels/cpu $(if $(filter 1,$(HAVE_CUDA)),kernels/cuda)
srcs = $(filter-out $(MAINS),$(wildcard $(addsuffix /*.c,$(if $(filter kernels,$(1)),$(kernel_dirs),$(1)))) \
	$(if $(filter kernels,$(1)),$(if $(filter 1,$(HAVE_CUDA)),$(wildcard kernels/cuda/*.cu))))
objs = $(patsubst %,$(B)/obj/%.o,$(1))

all: $(B)/castord $(B)/castor-worker  ## build the programs for what this machine has
	@echo "built $^ ($(CONFIG_TEXT))"

config:  ## say what the build found on this machine
	@echo "$(CONFIG_TEXT)"

# --- objects: a changed flag or compiler rebuilds, an idle build does nothing -------------------------
FLAGS_TEXT := $(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(NVCC) $(NVCCFLAGS) $(CONFIG_TEXT)
$(B)/flags: FORCE
	@mkdir -p $(@D); echo '$(FLAGS_TEXT)' | cmp -s - $@ || echo '$(FLAGS_TEXT)' > $@
FORCE:

$(B)/obj/%.c.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CPPFLAGS_$(<D)) $(CFLAGS) $(CFLAGS_$(<)) -MMD -MP -c $< -o $@
$(B)/obj/%.cu.o: %.cu $(B)/flags
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

CPPFLAGS_kernels := $(if $(filter 1,$(HAVE_CUDA)),-DCASTOR_CUDA=1)
CPPFLAGS_kernels/cuda := $(CUDA_INCLUDES)
# Fast ops and their pool use OpenMP; the reference ops do not.
CFLAGS_kernels/cpu/fast.c := -fopenmp

define folder_rules
$(call lib,$(1)): $(call objs,$(call srcs,$(1)))
	@mkdir -p $$(@D)
	@rm -f $$@; $(AR) rcs $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rules,$(f))))

$(B)/castord: $(call objs,server/main.c) $(call uses_libs,$(USES_server))
	$(CC) $(LDFLAGS) -o $@ $^ $(call uses_sys,$(USES_server))
$(B)/castor-worker: $(call objs,$(WORKER_MAIN)) $(call uses_libs,$(USES_worker/train))
	$(CC) $(LDFLAGS) -o $@ $^ $(call uses_sys,$(USES_worker/train))

include tests/tests.mk

help:  ## list the targets
	@awk -F':.*## ' '/^[a-zA-Z_-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean:  ## remove everything that was built
	rm -rf build

.PHONY: all config help clean FORCE
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
