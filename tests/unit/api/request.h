/* Request bodies of tests. */
#ifndef CASTOR_TESTS_UNIT_API_REQUEST_H
#define CASTOR_TESTS_UNIT_API_REQUEST_H

#include "api/job_spec.h"

/* Asserts that the text is JSON. */
json_t *request_parse(const char *text);
/* What job_spec_from_request makes of {"model","training_file"} and `more`, which begins with a
 * comma or is empty. */
int request_read(const char *more, struct job_spec *spec, struct fault_list *faults);

#endif
