# What this machine can build. deploy/probe finds out and writes $(FOUND); this file asks it and includes the answer.
NVCC ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
NVCC := $(NVCC)
CUDA ?= auto

# Targets that need to know nothing about the machine.
ifneq ($(filter-out help clean deps check-format,$(or $(MAKECMDGOALS),all)),)
FOUND := $(B)/found.mk
ifneq ($(shell deploy/probe '$(FOUND)' '$(CC)' '$(NVCC)' '$(CUDA)' '$(ARCHS)' || echo failed),)
$(error deploy/probe could not write $(FOUND))
endif
include $(FOUND)
endif

BLAS_LIBS := -ldnnl
CONFIG_TEXT := CUDA $(CONFIG_CUDA)
