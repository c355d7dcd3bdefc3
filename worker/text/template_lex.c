#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text/template_parse.h"
#include "worker/text/utf8.h"

struct lexer {
    struct tv_arena *a;
    const char *text; /* line ends are \n */
    size_t n, at;
    int line;
    bool line_starts; /* the last tag ended with a newline, or nothing was before */
    struct token_seq *out;
};

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_name_start(char c)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool starts_with(const struct lexer *x, size_t at, const char *s)
{
    size_t n = strlen(s);

    return n <= x->n - at && memcmp(x->text + at, s, n) == 0;
}

static void add_token(struct lexer *x, enum token_kind kind, struct tv value)
{
    struct token_seq *s = x->out;

    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 256;
        struct token *items = tv_alloc(x->a, cap * sizeof(*items));
        if (!items)
            return;
        if (s->n)
            memcpy(items, s->items, s->n * sizeof(*items));
        s->items = items;
        s->cap = cap;
    }
    s->items[s->n++] = (struct token){kind, x->line, value};
}

/* Go to `to`, counting lines. */
static void advance(struct lexer *x, size_t to)
{
    for (; x->at < to; x->at++)
        x->line += x->text[x->at] == '\n';
    x->a->line = x->line;
}

/* The text from x->at to `end`, where a tag begins (or the template ends, then tag is 0). */
static void add_text(struct lexer *x, size_t end, char tag, char sign)
{
    size_t from = x->at, to = end;

    if (sign == '-') {
        while (to > from && is_space(x->text[to - 1]))
            to--;
    } else if (sign != '+' && (tag == '%' || tag == '#')) {
        size_t start = to;
        while (start > from && is_space(x->text[start - 1]) && x->text[start - 1] != '\n')
            start--;
        if (start > from ? x->text[start - 1] == '\n' : x->line_starts)
            to = start;
    }
    if (to > from)
        add_token(x, TOKEN_TEXT, tv_string(x->text + from, to - from));
    advance(x, end);
}

/* Behind a tag whose closing characters end at `end`; `sign` stands before them. */
static void end_tag(struct lexer *x, size_t end, char sign, bool trim)
{
    if (sign == '-')
        while (end < x->n && is_space(x->text[end]))
            end++;
    else if (sign != '+' && trim && end < x->n && x->text[end] == '\n')
        end++;
    advance(x, end);
    x->line_starts = end > 0 && x->text[end - 1] == '\n';
}

/* --- inside tags --- */

static int hex_value(char c)
{
    return is_digit(c)            ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* One escape of a string; x->at is behind the backslash. */
static void add_escape(struct lexer *x, struct buf *out)
{
    static const char letters[] = "abfnrtv\\'\"", meant[] = "\a\b\f\n\r\t\v\\'\"";
    char c = x->text[x->at++], bytes[4];
    const char *letter = c ? strchr(letters, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;

    if (letter) {
        buf_add_char(out, meant[letter - letters]);
    } else if (c == '\n') {
        x->line++;
    } else if (digits) {
        for (int i = 0; i < digits; i++, x->at++) {
            int v = x->at < x->n ? hex_value(x->text[x->at]) : -1;
            if (v < 0 || code > 0x10FFFF) {
                tv_fail(x->a, "a string has a bad \\%c", c);
                return;
            }
            code = code * 16 + (uint32_t)v;
        }
        if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
            tv_fail(x->a, "a string has a bad \\%c", c);
        else
            buf_add(out, bytes, utf8_write(code, bytes));
    } else {
        buf_add_char(out, '\\');
        buf_add_char(out, c);
    }
}

static void lex_string(struct lexer *x)
{
    struct buf out = {0};
    char quote = x->text[x->at++];

    while (x->at < x->n && x->text[x->at] != quote && !x->a->failed) {
        char c = x->text[x->at++];
        if (c == '\\' && x->at < x->n) {
            add_escape(x, &out);
        } else {
            x->line += c == '\n';
            buf_add_char(&out, c);
        }
    }
    if (x->at >= x->n)
        tv_fail(x->a, "a string does not end");
    x->at++;
    add_token(x, TOKEN_CONST, tv_take_buf(x->a, &out));
}

static void lex_number(struct lexer *x)
{
    char text[64];
    size_t n = 0;
    bool real = false;

    while (x->at < x->n && n + 1 < sizeof(text)) {
        char c = x->text[x->at];
        bool next_digit = x->at + 1 < x->n && is_digit(x->text[x->at + 1]);
        bool sign =
            x->at + 2 < x->n && strchr("+-", x->text[x->at + 1]) && is_digit(x->text[x->at + 2]);
        if (c == '_' && next_digit) {
            x->at++;
            continue;
        }
        if (!is_digit(c) && !(c == '.' && next_digit && !real) &&
            !((c == 'e' || c == 'E') && (next_digit || sign)))
            break;
        real |= !is_digit(c);
        text[n++] = c;
        x->at++;
        if ((c == 'e' || c == 'E') && sign)
            text[n++] = x->text[x->at++];
    }
    text[n] = '\0';
    errno = 0;
    struct tv v = real ? (struct tv){.kind = TV_FLOAT, .f = strtod(text, NULL)}
                       : tv_int(strtoll(text, NULL, 10));
    if (errno || n + 2 >= sizeof(text))
        tv_fail(x->a, "the number %s is too large", text);
    add_token(x, TOKEN_CONST, v);
}

static void lex_operator(struct lexer *x, int *depth)
{
    static const char *const two[] = {"//", "**", "==", "!=", "<=", ">=", NULL};
    static const char one[] = "+-/*%~[](){}=<>.:|,;";
    char c = x->text[x->at];
    size_t n = 1;

    for (int i = 0; two[i]; i++)
        if (starts_with(x, x->at, two[i]))
            n = 2;
    if (n == 1 && (!c || !strchr(one, c))) {
        tv_fail(x->a, "the character '%c' has no meaning in a tag", c > ' ' && c < 127 ? c : '?');
        return;
    }
    *depth += n == 1 && strchr("([{", c) ? 1 : n == 1 && strchr(")]}", c) ? -1 : 0;
    add_token(x, TOKEN_OP, tv_string(x->text + x->at, n));
    x->at += n;
}

/* The content of a tag up to its end, which is `close` with an optional sign in front. */
static void lex_tag(struct lexer *x, const char *close, enum token_kind end_kind)
{
    int depth = 0;

    while (!x->a->failed) {
        while (x->at < x->n && is_space(x->text[x->at]))
            advance(x, x->at + 1);
        if (x->at >= x->n) {
            tv_fail(x->a, "a tag does not end with %s", close);
            return;
        }
        char c = x->text[x->at], sign = strchr("-+", c) ? c : '\0';
        bool is_block = end_kind == TOKEN_BLOCK_END;
        if (depth <= 0 && !(sign == '+' && !is_block) &&
            starts_with(x, x->at + (sign != 0), close)) {
            add_token(x, end_kind, TV_NOTHING);
            end_tag(x, x->at + (sign != 0) + 2, sign, is_block);
            return;
        }
        if (c == '"' || c == '\'') {
            lex_string(x);
        } else if (is_digit(c)) {
            lex_number(x);
        } else if (is_name_start(c)) {
            size_t from = x->at;
            while (x->at < x->n && (is_name_start(x->text[x->at]) || is_digit(x->text[x->at])))
                x->at++;
            add_token(x, TOKEN_NAME, tv_copy_string(x->a, x->text + from, x->at - from));
        } else {
            lex_operator(x, &depth);
        }
    }
}

/* --- raw and comments --- */

/* At "{%": where a tag of nothing but `word` ends behind "%}", or 0. Its signs go out. */
static size_t word_tag(const struct lexer *x, size_t at, const char *word, char *left, char *right)
{
    size_t n = strlen(word);

    at += 2;
    *left = at < x->n && strchr("-+", x->text[at]) ? x->text[at] : '\0';
    at += *left != '\0';
    while (at < x->n && is_space(x->text[at]))
        at++;
    if (!starts_with(x, at, word))
        return 0;
    at += n;
    while (at < x->n && is_space(x->text[at]))
        at++;
    *right = at < x->n && strchr("-+", x->text[at]) ? x->text[at] : '\0';
    at += *right != '\0';
    return starts_with(x, at, "%}") ? at + 2 : 0;
}

/* Behind {% raw %}: everything up to {% endraw %} is text. */
static void lex_raw(struct lexer *x)
{
    char left, right;

    for (size_t at = x->at; at + 1 < x->n; at++) {
        size_t end = starts_with(x, at, "{%") ? word_tag(x, at, "endraw", &left, &right) : 0;
        if (end) {
            add_text(x, at, '%', left);
            end_tag(x, end, right, true);
            return;
        }
    }
    tv_fail(x->a, "{%% raw %%} has no {%% endraw %%}");
}

static void lex_comment(struct lexer *x, char sign)
{
    size_t from = x->at + 2 + (sign != '\0');

    for (size_t at = from; at + 1 < x->n; at++)
        if (starts_with(x, at, "#}")) {
            char before = at > from ? x->text[at - 1] : '\0';
            end_tag(x, at + 2, before == '-' || before == '+' ? before : '\0', true);
            return;
        }
    tv_fail(x->a, "a comment does not end with #}");
}

/* --- the whole --- */

static void lex_one_tag(struct lexer *x, char tag, char sign)
{
    char left, right;
    size_t raw_end = tag == '%' ? word_tag(x, x->at, "raw", &left, &right) : 0;

    if (raw_end) {
        end_tag(x, raw_end, right, false);
        lex_raw(x);
    } else if (tag == '#') {
        lex_comment(x, sign);
    } else {
        add_token(x, tag == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_PRINT_BEGIN, TV_NOTHING);
        advance(x, x->at + 2 + (sign != '\0'));
        lex_tag(x, tag == '%' ? "%}" : "}}", tag == '%' ? TOKEN_BLOCK_END : TOKEN_PRINT_END);
    }
}

/* Line ends become \n, and the last one is dropped. */
static bool normalize_lines(struct lexer *x, const char *text, size_t n)
{
    char *copy = tv_alloc(x->a, n + 1);

    if (!copy)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n')
            continue;
        copy[x->n++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (x->n > 0 && copy[x->n - 1] == '\n')
        x->n--;
    copy[x->n] = '\0';
    x->text = copy;
    return true;
}

void template_lex(struct tv_arena *a, const char *text, size_t n, struct token_seq *out)
{
    struct lexer x = {.a = a, .line = 1, .line_starts = true, .out = out};

    a->line = 1;
    if (n > TEMPLATE_MAX_BYTES)
        tv_fail(a, "it is longer than %d KiB", TEMPLATE_MAX_BYTES >> 10);
    else if (utf8_check(text, n) < n || memchr(text, '\0', n))
        tv_fail(a, "it is not a text in UTF-8");
    if (a->failed || !normalize_lines(&x, text, n))
        return;
    for (size_t at = 0; at + 1 < x.n && !a->failed;) {
        char tag = x.text[at] == '{' ? x.text[at + 1] : '\0';
        if (tag != '%' && tag != '{' && tag != '#') {
            at++;
            continue;
        }
        char sign = at + 2 < x.n && strchr("-+", x.text[at + 2]) ? x.text[at + 2] : '\0';
        if (sign == '+' && tag == '{')
            sign = '\0'; /* {{+x}} is the number +x */
        add_text(&x, at, tag, sign);
        lex_one_tag(&x, tag, sign);
        at = x.at;
    }
    if (!a->failed)
        add_text(&x, x.n, '\0', '\0');
    add_token(&x, TOKEN_EOF, TV_NOTHING);
}
