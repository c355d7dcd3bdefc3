#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "tests/unit/core/tmpdir.h"

static const char sha256_empty[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/* FIPS 180-2, appendices B.1 and B.3. */
static const char sha256_abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char sha256_million_a[] =
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

Test(hash, sha256_known_answers)
{
    struct hash h;
    char hex[65];

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, NULL, 0);
    hash_final_hex(&h, hex);
    cr_assert_str_eq(hex, sha256_empty);
    hash_init(&h, HASH_SHA256, 3);
    hash_update(&h, "abc", 3);
    hash_final_hex(&h, hex);
    cr_assert_str_eq(hex, sha256_abc);
}

Test(hash, pieces_equal_the_whole)
{
    struct hash h;
    char hex[65];
    char *a = malloc(1000000);
    size_t at = 0;

    memset(a, 'a', 1000000);
    hash_init(&h, HASH_SHA256, 1000000);
    for (size_t n = 1; at < 1000000; at += n, n = n * 3 + 1) {
        n = n < 1000000 - at ? n : 1000000 - at;
        hash_update(&h, a + at, n);
    }
    hash_final_hex(&h, hex);
    cr_assert_str_eq(hex, sha256_million_a);
    free(a);
}

/* `git hash-object` of an empty file and of "hello\n". */
Test(hash, git_blob_known_answers)
{
    struct hash h;
    char hex[65];

    hash_init(&h, HASH_GIT_BLOB_SHA1, 0);
    hash_final_hex(&h, hex);
    cr_assert_str_eq(hex, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    hash_init(&h, HASH_GIT_BLOB_SHA1, 6);
    hash_update(&h, "hel", 3);
    hash_update(&h, "lo\n", 3);
    hash_final_hex(&h, hex);
    cr_assert_str_eq(hex, "ce013625030ba8dba906f756967f9e9ca394464a");
}

Test(hash, random_hex)
{
    char a[401], b[401];

    hash_random_hex(a, 0);
    cr_assert_str_eq(a, "");
    for (size_t n = 1; n <= 200; n += 33) {
        memset(a, '!', sizeof(a));
        hash_random_hex(a, n);
        cr_assert_eq(strlen(a), 2 * n);
        cr_assert_eq(strspn(a, "0123456789abcdef"), 2 * n);
    }
    hash_random_hex(a, 200);
    hash_random_hex(b, 200);
    cr_assert_str_neq(a, b);
    cr_assert_neq(memcmp(a, a + 128, 128), 0, "each piece is drawn anew");
}
