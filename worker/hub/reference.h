/*
 * What may be a repository, a revision, a commit, a path in a repository. Every string from outside
 * passes here before it becomes part of a URL or of a path in the cache. Pure functions.
 *
 * Grammar of repositories: huggingface_hub's validate_repo_id. Revisions: git's rules for ref
 * names (git-check-ref-format), because a revision becomes the path refs/<revision> in the cache.
 */
#ifndef CASTOR_WORKER_HUB_REFERENCE_H
#define CASTOR_WORKER_HUB_REFERENCE_H

#include <stdbool.h>

#include "core/buf.h"
#include "core/err.h"

/* A repository's address, as the hub's own URLs have it: "name" or "org/name" of a model,
 * "datasets/org/name" of a data set. */
int reference_check_repo(const char *repo, struct err *err);
int reference_check_revision(const char *revision, struct err *err);

#define REFERENCE_DATASETS "datasets/"
bool reference_is_dataset(const char *repo);
const char *reference_kind(const char *repo); /* "model" or "data set" */

bool reference_is_sha1(const char *text);   /* 40 lower-case hex digits: a commit, a git blob */
bool reference_is_sha256(const char *text); /* 64 */

/* A relative path that stays below where it is joined: no empty, "." or ".." segment (whether
 * separated by '/' or by '\'), not absolute, no drive letter, no control character. */
bool reference_path_is_safe(const char *path);

/* Append text percent-encoded, leaving '/' as it is when keep_slash. */
void reference_add_encoded(struct buf *out, const char *text, bool keep_slash);

#endif
