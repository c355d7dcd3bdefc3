#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/fs.h"
#include "worker/hub/hub.h"
#include "worker/hub/settings.h"

static void clear_environment(void)
{
    static const char *const names[] = {"HF_ENDPOINT",
                                        "HF_TOKEN",
                                        "HUGGING_FACE_HUB_TOKEN",
                                        "HF_TOKEN_PATH",
                                        "HF_HOME",
                                        "HF_HUB_CACHE",
                                        "HUGGINGFACE_HUB_CACHE",
                                        "XDG_CACHE_HOME",
                                        "HF_HUB_OFFLINE",
                                        "TRANSFORMERS_OFFLINE",
                                        "HF_HUB_DISABLE_IMPLICIT_TOKEN"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unsetenv(names[i]);
    setenv("HOME", "/nowhere", 1);
}

static void expect_text(char *text, const char *expected)
{
    cr_expect_str_eq(text, expected);
    free(text);
}

Test(settings, find_the_cache)
{
    clear_environment();
    expect_text(settings_cache_root(), "/nowhere/.cache/huggingface/hub");
    setenv("XDG_CACHE_HOME", "/xdg", 1);
    expect_text(settings_cache_root(), "/xdg/huggingface/hub");
    setenv("HF_HOME", "~/hf", 1);
    expect_text(settings_cache_root(), "/nowhere/hf/hub");
    setenv("HUGGINGFACE_HUB_CACHE", "/old", 1);
    expect_text(settings_cache_root(), "/old");
    setenv("DISK", "/mnt/a", 1);
    setenv("HF_HUB_CACHE", "$DISK/${DISK}x/$NOT_SET_HERE/~", 1);
    expect_text(settings_cache_root(), "/mnt/a//mnt/ax/$NOT_SET_HERE/~");
}

Test(settings, find_the_token)
{
    char path[] = "/tmp/castor-token-XXXXXX";
    int fd = mkstemp(path);

    clear_environment();
    cr_expect_null(settings_token());
    cr_assert_geq(fd, 0);
    cr_assert_eq(fs_write_all(fd, "hf_file\r\n", 9, path, NULL), 0);
    close(fd);
    setenv("HF_TOKEN_PATH", path, 1);
    expect_text(settings_token(), "hf_file");
    setenv("HUGGING_FACE_HUB_TOKEN", "hf_old", 1);
    expect_text(settings_token(), "hf_old");
    setenv("HF_TOKEN", " hf_new\n", 1);
    expect_text(settings_token(), "hf_new");
    setenv("HF_TOKEN", "\n", 1);
    expect_text(settings_token(), "hf_old");
    setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "True", 1);
    cr_expect_null(settings_token());
    unlink(path);
}

Test(settings, know_offline_and_endpoint)
{
    clear_environment();
    cr_expect(!settings_offline());
    setenv("TRANSFORMERS_OFFLINE", "yes", 1);
    cr_expect(settings_offline());
    setenv("HF_HUB_OFFLINE", "0", 1);
    cr_expect(!settings_offline());
    setenv("HF_HUB_OFFLINE", "1", 1);
    cr_expect(settings_offline());
    expect_text(settings_endpoint(), "https://huggingface.co");
    setenv("HF_ENDPOINT", "http://127.0.0.1:1/", 1);
    expect_text(settings_endpoint(), "http://127.0.0.1:1/");
}

Test(settings, refuse_what_cannot_be_a_hub)
{
    static const char *const endpoints[] = {
        "huggingface.co",     "ftp://x",     "file:///etc", "", "http://",
        "http://user:pass@x", "http://x?a=b"};
    struct hub *hub = NULL;

    clear_environment();
    for (size_t i = 0; i < sizeof(endpoints) / sizeof(endpoints[0]); i++) {
        struct hub_config config = {.endpoint = endpoints[i]};
        cr_expect_eq(hub_create(&config, &hub, NULL), ERR_INVALID, "'%s'", endpoints[i]);
    }
    struct hub_config config = {.endpoint = "http://x", .token = "a\r\nX-Other: header"};
    struct err err = {0};
    cr_expect_eq(hub_create(&config, &hub, &err), ERR_INVALID);
    cr_expect_null(strstr(err.msg, "X-Other"), "the token is in the error: %s", err.msg);
    cr_expect_null(hub);
}
