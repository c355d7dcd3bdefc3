/*
 * Which files of a data set are which split, by their names alone: the conventions of the Python
 * library `datasets` (its data_files.py), first of these that finds a file Castor can read:
 *
 *   1. data/SPLIT-00000-of-00002.parquet: any split
 *   2. a folder named by a keyword of train, validation or test ("dev", "my-val-2024")
 *   3. a file whose name has one ("train.jsonl", "questions_test.csv")
 *   4. everything is train
 *
 * Keywords are whole words between -._ digits and spaces. In the branch refs/convert/parquet the
 * hub's converter has a folder a configuration, in it one a split, in it 0000.parquet.
 *
 * Files that are no data (README.md, config.json), hidden ones, and those of a format that Castor
 * does not read are passed over; where several formats are mixed, the one with the most files is
 * the data set's. Pure functions over a listing; results borrow from it.
 */
#ifndef CASTOR_WORKER_HUB_SPLITS_H
#define CASTOR_WORKER_HUB_SPLITS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/buf.h"
#include "worker/hub/listing.h"

/* The formats that Castor reads, for messages. */
#define SPLITS_FORMATS "Parquet, JSON lines, CSV, plain text, also .gz and .zst"

struct split_files {
    const struct listing_file **files; /* by path */
    int64_t n;
};
void split_files_fini(struct split_files *s);

/* Whether the name's end is that of a format that Castor reads. */
bool splits_is_data(const char *path);

/* The files of `split` below `folder` ("" = all). n = 0: there is none; then *known are the splits
 * that there are, with commas, empty where nothing is data. */
void splits_by_name(const struct listing *l, const char *folder, const char *split,
                    struct split_files *out, struct buf *known);
/* The same by a card's patterns (worker/hub/card.h): {"train": [patterns], ...}. */
void splits_by_pattern(const struct listing *l, const char *folder, const json_t *patterns,
                       const char *split, struct split_files *out, struct buf *known);
/* The same for a configuration of the converter's branch; config NULL: "default", or the only one.
 * *configs are those that there are when it is none of them. */
void splits_converted(const struct listing *l, const char *config, const char *split,
                      struct split_files *out, struct buf *known, struct buf *configs);

#endif
