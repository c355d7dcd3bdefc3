# What this machine can build, found by compiling three-line programs rather than by looking for files.
NVCC ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
CUDA ?= auto
ifeq ($(CUDA),0)
HAVE_CUDA := 0
else
HAVE_CUDA := $(if $(NVCC),1,0)
endif
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(NVCC))
CUDA_INCLUDES := -I$(CUDA_HOME)/include
ifeq ($(HAVE_CUDA),1)
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcudart -ldl -lstdc++
endif

# Default: what the machine's GPU is; sm_90a where there is none. ARCHS=all builds for every supported card.
ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | \
	sed 's/\.//; s/^90$$/90a/' | tr '\n' ' '),90a)
ifeq ($(ARCHS),all)
override ARCHS := 75 80 86 89 90a
CUDA_PTX := -gencode arch=compute_90,code=compute_90
endif
CUDA_GENCODE := $(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) $(CUDA_PTX)

BLAS_LIBS := -lopenblas
CONFIG_TEXT := CUDA $(if $(filter 1,$(HAVE_CUDA)),for sm_$(strip $(ARCHS)),left out$(if $(NVCC),: CUDA=0,: no nvcc)); BLAS OpenBLAS
