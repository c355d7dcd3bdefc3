# Test targets. A unit test directory tests/unit/<folder> becomes one Criterion program, linked with the archives
# that folder may use and nothing else.
UNIT_DIRS := $(filter-out tests/unit,$(patsubst %/,%,$(sort $(dir $(wildcard tests/unit/*/*.c tests/unit/*/*/*.c)))))
unit_folder = $(patsubst tests/unit/%,%,$(1))
unit_bin = $(B)/tests/unit/$(subst /,_,$(call unit_folder,$(1)))
UNIT_BINS := $(foreach d,$(UNIT_DIRS),$(call unit_bin,$(d)))

define unit_rules
$(call unit_bin,$(1)): $(call objs,$(wildcard $(1)/*.c)) $(call uses_libs,$(USES_$(call unit_folder,$(1))))
	@mkdir -p $$(@D)
	$(CC) $(LDFLAGS) -o $$@ $$^ $(call uses_sys,$(USES_$(call unit_folder,$(1)))) -lcriterion
endef
$(foreach d,$(UNIT_DIRS),$(eval $(call unit_rules,$(d))))

unit: $(UNIT_BINS)  ## unit tests only
	@for t in $^; do echo "== $$t"; $$t || exit 1; done
.PHONY: unit

# Op tests: one program a concern in tests/ops/, on every op table that this machine has.
OPS_BINS := $(patsubst tests/ops/test_%.c,$(B)/tests/ops/test_%,$(wildcard tests/ops/test_*.c))
$(OPS_BINS): $(B)/tests/ops/%: $(B)/obj/tests/ops/%.c.o $(B)/obj/tests/ops/harness.c.o $(call uses_libs,$(USES_kernels))
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(call uses_sys,$(USES_kernels))

ops-tests: $(OPS_BINS)  ## ops: gradients in double, and every op table against the double one
	@for t in $^; do echo "== $$t"; $$t || exit 1; done
.PHONY: ops-tests
TEST_SUITES += ops-tests
