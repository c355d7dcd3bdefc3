/* Rows of the store, apart from any database. */
#include <stdlib.h>
#include <string.h>

#include "scheduler/store.h"

void store_file_fini(struct store_file *f)
{
    free(f->id);
    free(f->filename);
    free(f->purpose);
    free(f->status);
    free(f->status_details);
    free(f->path);
    free(f->job_id);
    memset(f, 0, sizeof(*f));
}

void store_event_fini(struct store_event *e)
{
    free(e->id);
    free(e->job_id);
    free(e->level);
    free(e->type);
    free(e->message);
    json_decref(e->data);
    memset(e, 0, sizeof(*e));
}

void store_checkpoint_fini(struct store_checkpoint *c)
{
    free(c->id);
    free(c->job_id);
    free(c->model);
    free(c->path);
    json_decref(c->metrics);
    memset(c, 0, sizeof(*c));
}

void store_model_fini(struct store_model *m)
{
    free(m->id);
    free(m->job_id);
    free(m->base);
    free(m->path);
    memset(m, 0, sizeof(*m));
}
