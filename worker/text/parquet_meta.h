/*
 * A Parquet file's footer: its schema and where the columns of each row group lie. Private to
 * worker/text/parquet*.c.
 *
 * The footer is untrusted: it may have at most PARQUET_MAX_FOOTER bytes, PARQUET_MAX_NODES columns
 * and groups nested PARQUET_MAX_DEPTH deep, every column chunk lies between the first and the last
 * magic number, chunks do not overlap, and a column's entries are in some proportion to the file.
 * Fields that are not known are passed over, as Thrift intends.
 *
 * Source: Apache Parquet format 2.11, parquet.thrift, "Nested encoding", "Logical types".
 */
#ifndef CASTOR_WORKER_TEXT_PARQUET_META_H
#define CASTOR_WORKER_TEXT_PARQUET_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum {
    PARQUET_MAX_FOOTER = 64 << 20,
    PARQUET_MAX_NODES = 8192,
    PARQUET_MAX_DEPTH = 24,
};

enum parquet_type { /* of a leaf, as stored */
                    PARQUET_BOOLEAN,
                    PARQUET_INT32,
                    PARQUET_INT64,
                    PARQUET_INT96,
                    PARQUET_FLOAT,
                    PARQUET_DOUBLE,
                    PARQUET_BYTES,
                    PARQUET_FIXED_BYTES,
};

enum parquet_repetition { PARQUET_REQUIRED, PARQUET_OPTIONAL, PARQUET_REPEATED };

enum parquet_kind {
    PARQUET_LEAF,
    PARQUET_STRUCT,
    PARQUET_LIST, /* a group around one repeated child; see `element` */
    PARQUET_MAP,
};

/* A node of the schema; nodes lie in depth-first order, node 0 is the root. */
struct parquet_node {
    char *name;
    enum parquet_kind kind;
    enum parquet_repetition repetition;
    int end;      /* one behind the last node below it; its first child is the next node */
    int def, rep; /* levels at which a value of it is there */
    int leaf;     /* its number among the leaves, or that of the first one below it */
    int n_leaves; /* below it; 1 for a leaf */
    int element;  /* of a list: the node that is an element (the repeated one or its only child) */
    enum parquet_type type; /* of a leaf */
};

/* A column's part of a row group. */
struct parquet_chunk {
    int64_t offset, bytes, values;
    int codec;
};

struct parquet_group {
    int64_t rows;
    struct parquet_chunk *chunks; /* [n_leaves] */
};

struct parquet_meta {
    struct parquet_node *nodes;
    int n_nodes, n_leaves;
    struct parquet_group *groups;
    int64_t n_groups, rows;
};

/* Read the footer of an open file. ERR_CORRUPT, ERR_UNSUPPORTED (encrypted), ERR_IO. */
int parquet_meta_read(int fd, int64_t file_bytes, struct parquet_meta *out, struct err *err);
void parquet_meta_fini(struct parquet_meta *m);

/* ERR_CORRUPT: "the Parquet file is damaged: ..., upload it again". */
int parquet_corrupt(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
