#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/buf.h"
#include "core/json.h"
#include "tests/unit/core/tmpdir.h"

static json_t *parse(const char *text)
{
    struct err err = {0};
    json_t *value = NULL;

    cr_assert_eq(json_parse_limited(text, strlen(text), 1 << 20, 32, &value, &err), 0, "%s: %s",
                 text, err.msg);
    return value;
}

/* n bytes must be refused with these words in the text, and leave the out-parameter alone. */
static void refuse_bytes(const char *text, size_t n, const char *words)
{
    struct err err = {0};
    json_t *value = (json_t *)&err;

    cr_assert_eq(json_parse_limited(text, n, 1 << 20, 32, &value, &err), ERR_INVALID, "%s", text);
    cr_assert_eq(value, (json_t *)&err);
    cr_assert_not_null(strstr(err.msg, words), "'%s' is not in '%s'", words, err.msg);
}

static void refuse(const char *text, const char *words)
{
    refuse_bytes(text, strlen(text), words);
}

Test(json, any_value_may_stand_at_the_top)
{
    const char *texts[] = {"{}", "[]", "\"\"", "0", "-1.5e3", "true", "false", "null", " [1] \n"};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        json_decref(parse(texts[i]));
}

Test(json, depth_limit_is_exact)
{
    char text[200] = {0};
    struct err err = {0};
    json_t *value = NULL;

    for (int depth = 31; depth <= 33; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        int rc = json_parse_limited(text, 2 * (size_t)depth, 1000, 32, &value, &err);
        cr_assert_eq(rc, depth > 32 ? ERR_INVALID : 0, "depth %d", depth);
        if (rc == 0)
            json_decref(value);
    }
    cr_assert_str_eq(err.msg, "JSON is nested more than 32 levels deep at column 33");
}

/* Of a single line whoever read it says which one it is. */
Test(json, errors_name_the_line_of_several)
{
    refuse("{\n\"a\": x}", "JSON is not valid at line 2, column 6: ");
    refuse("{\"a\": x}", "JSON is not valid at column 7: ");
}

Test(json, depth_bomb_of_a_megabyte)
{
    size_t n = 1 << 20;
    char *bomb = malloc(n);

    memset(bomb, '[', n);
    refuse_bytes(bomb, n, "levels deep at column 33");
    for (size_t i = 0; i + 5 <= n; i += 5)
        memcpy(bomb + i, "{\"\":\n", 5);
    refuse_bytes(bomb, n, "levels deep at line 33, column 1");
    free(bomb);
}

Test(json, brackets_in_strings_and_siblings_do_not_count)
{
    struct buf text = {0};

    buf_add_str(&text, "[\"");
    for (int i = 0; i < 100; i++)
        buf_add_str(&text, "[{\\\"");
    buf_add_str(&text, "\\\\\"");
    for (int i = 0; i < 100; i++)
        buf_add_str(&text, ",[{}]");
    buf_add_str(&text, "]");
    json_decref(parse(buf_str(&text)));
    buf_fini(&text);
}

Test(json, size_limit_is_exact)
{
    struct err err = {0};
    json_t *value = NULL;

    cr_assert_eq(json_parse_limited("[1]", 3, 3, 32, &value, &err), 0);
    json_decref(value);
    cr_assert_eq(json_parse_limited("[1]", 3, 2, 32, &value, &err), ERR_INVALID);
    cr_assert_not_null(strstr(err.msg, "3 bytes"), "%s", err.msg);
}

Test(json, numbers_that_are_not_finite)
{
    refuse("{\"a\": 1,\n \"b\": 1e999999999}", "line 2, column");
    refuse("[-1e400]", "overflow");
    refuse("[NaN]", "valid at column");
    refuse("[Infinity]", "valid at column");
    refuse("[-Infinity]", "valid at column");
    json_decref(parse("[1e-999999999, 1.7976931348623157e308]"));
}

Test(json, long_numbers)
{
    size_t n = 1 << 20;
    char *digits = malloc(n);

    memset(digits, '9', n);
    digits[0] = '[';
    digits[n - 1] = ']';
    refuse_bytes(digits, n, "valid at column");
    digits[2] = '.';
    struct err err = {0};
    json_t *value = NULL;
    cr_assert_eq(json_parse_limited(digits, n, n, 32, &value, &err), 0, "%s", err.msg);
    cr_assert_eq(json_real_value(json_array_get(value, 0)), 10.0);
    json_decref(value);
    free(digits);
}

Test(json, integers_beyond_64_bits)
{
    json_t *value = parse("[9223372036854775807, -9223372036854775808]");

    cr_assert_eq(json_integer_value(json_array_get(value, 0)), INT64_MAX);
    cr_assert_eq(json_integer_value(json_array_get(value, 1)), INT64_MIN);
    json_decref(value);
    refuse("[9223372036854775808]", "too big integer");
    refuse("[-9223372036854775809]", "too big negative integer");
}

Test(json, duplicate_keys)
{
    refuse("{\"a\": 1,\n\"b\": {\"c\": 1, \"c\": 2}}", "line 2, column");
    refuse("{\"a\": 1, \"\\u0061\": 2}", "duplicate");
}

Test(json, bad_utf8)
{
    refuse("[\"\xFF\"]", "valid at column");
    refuse("[\"\xC0\xAF\"]", "unable to decode"); /* '/' in two bytes */
    refuse("[\"\xED\xA0\x80\"]", "unable to decode");
    refuse("[\"\xF4\x90\x80\x80\"]", "unable to decode");
    refuse("[\"\xE2\x82", "valid at column");
    refuse("[\"\\ud800\"]", "valid at column");
    json_decref(parse("[\"\xF0\x9F\x98\x80 \\ud83d\\ude00\"]"));
}

Test(json, nul)
{
    refuse("[\"a\\u0000b\"]", "u0000");
    refuse("{\"a\\u0000b\": 1}", "NUL byte");
    refuse_bytes("[\"a\0b\"]", 7, "valid at column");
    refuse_bytes("[1]\0", 4, "valid at column");
}

Test(json, garbage)
{
    const char *texts[] = {"",         " ",    "{",         "[1",  "[1]]", "[1] x",
                           "{'a': 1}", "[1,]", "{\"a\" 1}", "\"a", "\"\\", "\"a\nb\"",
                           "tru",      "01",   "[\"\\x\"]", "]"};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        refuse(texts[i], "column ");
}

/* The text is logged, and what is near a syntax error may be a token. */
Test(json, errors_do_not_quote_the_input)
{
    struct err err = {0};
    json_t *value = NULL;
    const char *text = "{\"token\": \"hf_secret\" \"hf_secret\"}";

    cr_assert_eq(json_parse_limited(text, strlen(text), 1000, 32, &value, &err), ERR_INVALID);
    cr_assert_null(strstr(err.msg, "secret"), "%s", err.msg);
}

Test(json, file)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "config.json");
    struct err err = {0};
    json_t *value = NULL;

    tmpdir_put(path, "{\"a\": [1]}\n");
    cr_assert_eq(json_parse_file(path, 100, 64, &value, &err), 0);
    cr_assert(json_is_object(value));
    json_decref(value);
    cr_assert_eq(json_parse_file(path, 100, 1, &value, &err), ERR_INVALID);
    cr_assert_not_null(strstr(err.msg, path));
    err_clear(&err);
    cr_assert_eq(json_parse_file(path, 5, 64, &value, &err), ERR_INVALID);
    cr_assert_not_null(strstr(err.msg, path));
    err_clear(&err);
    cr_assert_eq(json_parse_file(tmpdir_at(&d, "none"), 5, 64, &value, &err), ERR_NOT_FOUND);
    tmpdir_put(path, "");
    err_clear(&err);
    cr_assert_eq(json_parse_file(path, 5, 64, &value, &err), ERR_INVALID);
    tmpdir_fini(&d);
}

Test(json, to_line_is_compact_ordered_and_one_line)
{
    json_t *value = parse("{ \"b\": [1, 2.5], \"a\": \"x\\ny\\u2028\", \"c\": null }");
    char *line = json_to_line(value);

    cr_assert_str_eq(line, "{\"b\":[1,2.5],\"a\":\"x\\ny\xE2\x80\xA8\",\"c\":null}");
    free(line);
    line = json_to_line(json_object_get(value, "a"));
    cr_assert_str_eq(line, "\"x\\ny\xE2\x80\xA8\"");
    free(line);
    json_decref(value);
}

Test(json, to_line_keeps_doubles_exactly)
{
    double rows[] = {0.1, 1.0 / 3, DBL_MAX, DBL_MIN, 5e-324, -0.0, 1e15, 123456789.123456789};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_t *value = json_real(rows[i]);
        char *line = json_to_line(value);
        json_t *again = parse(line);
        double back = json_real_value(again);
        cr_assert(json_is_real(again));
        cr_assert_eq(memcmp(&back, &rows[i], sizeof(back)), 0, "%s", line);
        free(line);
        json_decref(value);
        json_decref(again);
    }
}

Test(json, getters_take_what_is_there)
{
    json_t *obj = parse("{\"i\": 5, \"w\": 3.0, \"e\": 1e3, \"d\": 2.5, \"b\": true, \"f\": false, "
                        "\"s\": \"x\", \"n\": null}");
    struct err err = {0};
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;

    cr_assert_eq(json_get_int64(obj, "", "i", true, 0, 10, &i, &err), 0);
    cr_assert_eq(i, 5);
    cr_assert_eq(json_get_int64(obj, "", "w", true, 0, 10, &i, &err), 0);
    cr_assert_eq(i, 3);
    cr_assert_eq(json_get_int64(obj, "", "e", true, 0, 1000, &i, &err), 0);
    cr_assert_eq(i, 1000);
    cr_assert_eq(json_get_double(obj, "", "d", true, 0, 10, &d, &err), 0);
    cr_assert_eq(d, 2.5);
    cr_assert_eq(json_get_double(obj, "", "i", true, 0, 10, &d, &err), 0);
    cr_assert_eq(d, 5.0);
    cr_assert_eq(json_get_bool(obj, "", "b", true, &b, &err), 0);
    cr_assert_eq(b, true);
    cr_assert_eq(json_get_bool(obj, "", "f", true, &b, &err), 0);
    cr_assert_eq(b, false);
    cr_assert_eq(json_get_string(obj, "", "s", true, &s, &err), 0);
    cr_assert_str_eq(s, "x");
    json_decref(obj);
}

Test(json, getters_leave_the_default_alone)
{
    json_t *obj = parse("{\"n\": null}");
    const char *keys[] = {"n", "missing"};
    int64_t i = 7;
    double d = 7;
    bool b = true;
    const char *s = "seven";

    for (int k = 0; k < 2; k++) {
        cr_assert_eq(json_get_int64(obj, "", keys[k], false, 0, 1, &i, NULL), 0);
        cr_assert_eq(json_get_double(obj, "", keys[k], false, 0, 1, &d, NULL), 0);
        cr_assert_eq(json_get_bool(obj, "", keys[k], false, &b, NULL), 0);
        cr_assert_eq(json_get_string(obj, "", keys[k], false, &s, NULL), 0);
        cr_assert_eq(json_get_int64(obj, "", keys[k], true, 0, 1, &i, NULL), ERR_INVALID);
        cr_assert_eq(json_get_double(obj, "", keys[k], true, 0, 1, &d, NULL), ERR_INVALID);
        cr_assert_eq(json_get_bool(obj, "", keys[k], true, &b, NULL), ERR_INVALID);
        cr_assert_eq(json_get_string(obj, "", keys[k], true, &s, NULL), ERR_INVALID);
    }
    /* An absent parent has no members. */
    cr_assert_eq(json_get_int64(NULL, "", "x", false, 0, 1, &i, NULL), 0);
    cr_assert_eq(json_get_int64(NULL, "", "x", true, 0, 1, &i, NULL), ERR_INVALID);
    cr_assert(i == 7 && d == 7 && b && strcmp(s, "seven") == 0);
    json_decref(obj);
}

Test(json, getters_refuse_wrong_kinds_and_name_the_path)
{
    json_t *obj = parse("{\"s\": \"5\", \"t\": true, \"r\": 2.5, \"h\": 1e300, \"a\": []}");
    struct err err = {0};
    int64_t i = 7;
    double d = 7;
    bool b = true;
    const char *s = "seven";

    cr_assert_eq(json_get_int64(obj, "method.sft", "s", true, 0, 9, &i, &err), ERR_INVALID);
    cr_assert_str_eq(err.param, "method.sft.s");
    cr_assert_str_eq(err.msg, "method.sft.s must be a whole number, not a string");
    err_clear(&err);
    cr_assert_eq(json_get_int64(obj, "", "t", true, 0, 9, &i, &err), ERR_INVALID);
    cr_assert_str_eq(err.param, "t");
    cr_assert_eq(json_get_int64(obj, "", "r", true, 0, 9, &i, NULL), ERR_INVALID);
    cr_assert_eq(json_get_int64(obj, "", "h", true, INT64_MIN, INT64_MAX, &i, NULL), ERR_INVALID);
    cr_assert_eq(json_get_double(obj, "", "s", true, 0, 9, &d, NULL), ERR_INVALID);
    cr_assert_eq(json_get_double(obj, "", "t", true, 0, 9, &d, NULL), ERR_INVALID);
    cr_assert_eq(json_get_bool(obj, "", "s", true, &b, NULL), ERR_INVALID);
    cr_assert_eq(json_get_string(obj, "", "a", true, &s, NULL), ERR_INVALID);
    err_clear(&err);
    cr_assert_eq(json_get_string(json_object_get(obj, "a"), "a", "x", false, &s, &err),
                 ERR_INVALID);
    cr_assert_str_eq(err.param, "a");
    cr_assert_str_eq(err.msg, "a must be an object, not an array");
    cr_assert(i == 7 && d == 7 && b && strcmp(s, "seven") == 0);
    json_decref(obj);
}

Test(json, getters_check_ranges_inclusively)
{
    json_t *obj = parse("{\"i\": 5, \"d\": 0.5, \"max\": 9223372036854775807}");
    struct err err = {0};
    int64_t i = 7;
    double d = 7;

    cr_assert_eq(json_get_int64(obj, "", "i", true, 5, 5, &i, &err), 0);
    cr_assert_eq(json_get_int64(obj, "", "max", true, 0, INT64_MAX, &i, &err), 0);
    cr_assert_eq(i, INT64_MAX);
    cr_assert_eq(json_get_int64(obj, "", "i", true, 1, 4, &i, &err), ERR_INVALID);
    cr_assert_str_eq(err.msg, "i must be from 1 to 4, not 5");
    err_clear(&err);
    cr_assert_eq(json_get_int64(obj, "", "i", true, 6, INT64_MAX, &i, &err), ERR_INVALID);
    cr_assert_str_eq(err.msg, "i must be at least 6, not 5");
    cr_assert_eq(json_get_double(obj, "", "d", true, 0.5, 0.5, &d, NULL), 0);
    err_clear(&err);
    cr_assert_eq(json_get_double(obj, "", "d", true, 0, 0.25, &d, &err), ERR_INVALID);
    cr_assert_str_eq(err.msg, "d must be from 0 to 0.25, not 0.5");
    err_clear(&err);
    cr_assert_eq(json_get_double(obj, "", "d", true, 1, INFINITY, &d, &err), ERR_INVALID);
    cr_assert_str_eq(err.msg, "d must be at least 1, not 0.5");
    json_decref(obj);
}

Test(json, unknown_keys_are_named)
{
    static const char *const known[] = {"model", "seed", "method", NULL};
    static const char *const none[] = {NULL};
    json_t *obj = parse("{\"model\": 1, \"sead\": 2}");
    json_t *fine = parse("{\"seed\": 1}");
    struct err err = {0};

    cr_assert_eq(json_refuse_unknown(fine, "", known, &err), 0);
    cr_assert_eq(json_refuse_unknown(NULL, "", known, &err), 0);
    cr_assert_eq(json_refuse_unknown(obj, "castor", known, &err), ERR_INVALID);
    cr_assert_str_eq(err.param, "castor.sead");
    cr_assert_str_eq(err.reason, "unknown_parameter");
    cr_assert_str_eq(err.msg, "castor.sead is not known here; use model, seed or method");
    err_clear(&err);
    cr_assert_eq(json_refuse_unknown(fine, "", none, &err), ERR_INVALID);
    err_clear(&err);
    cr_assert_eq(json_refuse_unknown(json_object_get(fine, "seed"), "x", known, &err), ERR_INVALID);
    cr_assert_str_eq(err.param, "x");
    json_decref(obj);
    json_decref(fine);
}

Test(json, paths_longer_than_param_are_cut)
{
    char key[300];
    struct err err = {0};
    int64_t i;

    memset(key, 'k', sizeof(key) - 1);
    key[sizeof(key) - 1] = '\0';
    cr_assert_eq(json_get_int64(NULL, key, key, true, 0, 1, &i, &err), ERR_INVALID);
    cr_assert_eq(strlen(err.param), sizeof(err.param) - 1);
}

/* What is too large for memory is not called damaged. */
Test(json, no_memory_is_no_fault_of_the_text)
{
#ifdef __SANITIZE_ADDRESS__
    cr_skip_test("AddressSanitizer ends the process instead");
#else
    struct rlimit limit = {64 << 20, 64 << 20};
    struct err err = {0};
    json_t *value = NULL;
    size_t n = 16 << 20;
    char *text = malloc(n);

    for (size_t i = 0; i < n; i += 2) /* [0,0,...,0 ] */
        memcpy(text + i, i == 0 ? "[0" : ",0", 2);
    text[n - 2] = ' ';
    text[n - 1] = ']';
    cr_assert_eq(setrlimit(RLIMIT_DATA, &limit), 0);
    cr_expect_eq(json_parse_limited(text, n, n, 32, &value, &err), ERR_NOMEM, "%s", err.msg);
    cr_expect_not_null(strstr(err.msg, "needs more memory"), "%s", err.msg);
    cr_expect_null(value);
    free(text);
#endif
}
