/*
 * The one table from err_code to HTTP status and OpenAI's error object:
 *   {"error":{"message":...,"type":...,"param":...|null,"code":...|null,"details":[faults]}}
 * `details` is there only when a request had several faults.
 */
#ifndef CASTOR_API_API_ERROR_H
#define CASTOR_API_API_ERROR_H

#include <jansson.h>

#include "api/fault.h"
#include "core/err.h"

unsigned api_error_status(enum err_code code); /* 400, 401, 404, 409, ... */
/* err->reason, where set, becomes `code`. */
json_t *api_error_to_json(const struct err *err);
/* The first fault is the message; all of them are in details. Status 400. */
json_t *api_error_from_faults(const struct fault_list *faults);

#endif
