/*
 * The job spec: everything that defines a fine-tuning job, as a type. It exists in two JSON forms
 * that share one grammar:
 *
 *   request  the body of POST /v1/fine_tuning/jobs: OpenAI's fields plus optional extension objects
 *            (dataset, optimization, precision, parallelism, placement, resources, scheduling,
 *            lora, hub, sample_prompts, sample_tokens). Most members may be absent; some numbers
 *            may be "auto". Hyperparameters stand in method.supervised.hyperparameters or, the old
 *            way, in hyperparameters.
 *   stored   spec.json in the job directory: the same members, every one present, plus v, id,
 *            created_at, resolved, base_model {repo, revision, commit, path}, hub {endpoint,
 *            has_token} and files {training_file, validation_file: {path, filename, bytes, repo,
 *            revision, commit, folder}}.
 *
 * After `castor-worker --plan` has looked at model and data, no "auto" is left and
 * base_model.commit (and that of data on the hub) is known: then the spec is *resolved*, and it
 * fixes everything that can change a bit of the result.
 *
 * Parsing a request reports every fault of the body at once, in a fault list. What this build
 * cannot do is a fault with a code of its own ("unsupported_...", all in api/capability.c), never
 * silently ignored. Unknown keys are faults.
 *
 * Memory: a job_spec owns all its strings; zero-initialise before use, job_spec_fini frees. Not
 * thread-safe. Numbers: tokens, steps and sequences are counts; *_limit are bytes, 0 = no limit
 * (a client may also write "40GiB"); times are seconds.
 */
#ifndef CASTOR_API_JOB_SPEC_H
#define CASTOR_API_JOB_SPEC_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/fault.h"
#include "core/err.h"

enum {
    JOB_SPEC_VERSION = 1,
    JOB_ID_MAX = 40, /* "ftjob-" + 24 hex digits, and the NUL, with room */
    JOB_MAX_SAMPLE_PROMPTS = 8,
    JOB_MAX_SEQ_LENGTH = 1 << 20,
};

/* A number the client may leave to the service. */
struct auto_int {
    bool is_auto;
    int64_t value;
};
struct auto_real {
    bool is_auto;
    double value;
};

enum data_format { DATA_AUTO, DATA_TEXT, DATA_PROMPT, DATA_MESSAGES, DATA_PLAIN };
/* AUTO: a text as a whole; of prompts and conversations what the model is to answer. */
enum loss_on { LOSS_ON_AUTO, LOSS_ON_ALL, LOSS_ON_ASSISTANT };
enum lr_schedule { LR_CONSTANT, LR_LINEAR, LR_COSINE };
enum compute_dtype { COMPUTE_AUTO, COMPUTE_FP32, COMPUTE_BF16, COMPUTE_FP16, COMPUTE_FP8 };
enum state_dtype { STATE_FP32, STATE_BF16 }; /* gradients */
/* BF16: the parameter itself; SPLIT: the parameter and what it lacks of an fp32 master. */
enum master_kind { MASTER_FP32, MASTER_BF16, MASTER_SPLIT };
/* FP8: 8-bit floats, of which a block has an exponent. */
enum moment_kind { MOMENTS_FP32, MOMENTS_BF16, MOMENTS_FP8 };
enum tensor_mode { TENSOR_1D, TENSOR_2D, TENSOR_2P5D, TENSOR_3D };
enum pipeline_schedule { PIPELINE_1F1B, PIPELINE_GPIPE };
enum placement_policy { PLACE_AUTO, PLACE_CUDA, PLACE_CPU };
enum job_backend { BACKEND_LOCAL, BACKEND_SLURM };
enum export_choice { EXPORT_LAST, EXPORT_BEST }; /* whose weights a job leaves */
/* What a job with adapters leaves: the adapters alone, a whole model, or both. */
enum lora_export { LORA_EXPORT_ADAPTER, LORA_EXPORT_MERGED, LORA_EXPORT_BOTH };
enum base_quantization { BASE_QUANTIZE_NONE, BASE_QUANTIZE_NF4, BASE_QUANTIZE_INT8 };
enum job_device { DEVICE_AUTO, DEVICE_ONLY_CPU, DEVICE_ONLY_GPU };

/* What the job starts from. */
struct spec_model {
    char *name; /* as the client sent it: "org/name[@revision]", "hf://org/name[@rev]", "/path" when
                   allowed */
    char *repo; /* "org/name"; NULL for a local path           */
    char *revision; /* "main" unless given; NULL for a local path  */
    char *commit;   /* 40 hex digits once resolved, else NULL      */
    char *path;     /* local directory, NULL for the hub           */
};

/* Data: an uploaded file, or a data set on the hub, which has a repo. */
struct spec_file {
    char *id;       /* as the client sent it: "file-...", "hf://datasets/org/name[@rev][/path]" */
    char *path;     /* of an upload: absolute; written by castord, NULL in a request */
    char *filename; /* the client's name for an upload, for messages */
    int64_t bytes;
    char *repo;     /* "name" or "org/name" */
    char *revision; /* "main" unless given; of the converter's branch once its copy is used */
    char *commit;   /* 40 hex digits once resolved */
    char *folder;   /* a folder or a file of the repository, or NULL */
};

struct spec_hyper {
    struct auto_int n_epochs;   /* 1..50                                             */
    struct auto_int batch_size; /* sequences an optimizer step, 1..4096 (OpenAI: 256) */
    struct auto_real learning_rate_multiplier; /* > 0; times the model's default learning rate */
};

/* The members that a training example may have, ending with NULL: what column_mapping may name, and
 * what worker/text/shapes.h knows. */
extern const char *const example_members[];

struct spec_dataset {
    enum data_format format;
    enum loss_on loss_on;
    int64_t max_seq_length; /* 0 = auto: what the model and the data suggest */
    bool packing;           /* several examples a row, attention and positions restarting at each */
    int64_t max_examples;   /* 0 = all */
    int64_t min_examples;   /* fewer is an error (default 10)   */
    json_t
        *column_mapping; /* object, member of a shape to column (worker/text/columns.h), or NULL */
    /* Of data sets on the hub; NULL: their default one, "train", and none (but "validation" of a
     * validation_file on the hub). */
    char *config, *split, *validation_split;
    double validation_fraction; /* split off when there is no validation file; 0..0.5 */
};

struct spec_early_stopping {
    int64_t patience; /* evaluations without improvement before the job stops; 0 = never */
    double min_delta;
};

struct spec_optimization {
    struct auto_real learning_rate;   /* peak; wins over the multiplier                    */
    double beta1, beta2, epsilon;     /* AdamW: 0.9, 0.999, 1e-8                             */
    double weight_decay;              /* 0; applied to matrices, not to biases and norms       */
    enum lr_schedule schedule;        /* linear                                                */
    double warmup_ratio;              /* share of all steps, 0..1                              */
    double max_grad_norm;             /* 1.0; 0 = no clipping                                  */
    int64_t max_steps;                /* 0 = by epochs                                          */
    struct auto_int micro_batch_size; /* sequences a forward pass, divides the step's batch by
                                         padding the last; auto: those of the fastest plan */
    int64_t eval_interval;            /* steps; 0 = at the end of each epoch                    */
    int64_t checkpoint_interval;      /* steps; 0 = at the end of each epoch                   */
    int64_t keep_checkpoints;         /* newest kept besides the best; 3                       */
    struct spec_early_stopping early_stopping;
    enum export_choice export; /* last; best: the checkpoint of the lowest validation loss, as
                                  always when training stops early */
    struct auto_real dropout;  /* auto = what the model's config says */
};

struct spec_precision {
    enum compute_dtype compute;
    enum master_kind master;
    enum state_dtype gradients; /* of layers */
    enum moment_kind optimizer_state;
};

struct spec_parallelism {
    bool is_auto; /* then the planner fills the rest */
    int64_t data;
    enum tensor_mode tensor_mode;
    int64_t tensor_size, tensor_depth;
    int64_t pipeline_stages;
    enum pipeline_schedule pipeline_schedule;
    int64_t context; /* ranks one sequence is split over */
    int64_t zero;    /* 0..3 */
};

struct spec_placement {
    enum placement_policy policy;
    int64_t gpu_memory_limit, host_memory_limit, nvme_limit; /* bytes, 0 = what there is */
    char *nvme_path;        /* name of a volume the administrator declared, or NULL */
    char *nvme_directory;   /* where that is, from castord's configuration; NULL without it */
    int64_t prefetch_depth; /* 0 = planner's choice */
};

struct spec_resources {
    enum job_device device;
    struct auto_int gpus; /* in all */
    int64_t nodes;
    enum job_backend backend;
};

struct spec_scheduling {
    int64_t priority;            /* -100..100 */
    int64_t max_runtime_seconds; /* 0 = none  */
    int64_t max_restarts;        /* after infrastructure failures; 0 */
};

/* Which hub, and as whom. */
struct spec_hub {
    char *endpoint; /* canonical (api/hub_endpoint.h); NULL: as HF_ENDPOINT of the worker says */
    char *token;    /* the job's own, in a request only: no stored form has it */
    bool has_token; /* there is one: it is in the job directory (api/job_dir.h) */
};

/* Low-rank adapters instead of full fine-tuning. */
struct spec_lora {
    bool enabled;
    int64_t rank;          /* 16 */
    double alpha, dropout; /* 32, 0 */
    bool rslora;           /* scale by alpha / sqrt(rank) rather than alpha / rank */
    char **target_modules; /* NULL = auto: the family's own; "all-linear" alone: all of them */
    int64_t n_target_modules;
    enum base_quantization quantize_base; /* none; the matrices of the frozen layers lie so */
    enum lora_export export;              /* adapter */
};

struct job_spec {
    char id[JOB_ID_MAX]; /* "" in a request */
    double created_at;
    bool resolved;
    struct spec_model model;
    struct spec_file training_file, validation_file; /* validation_file.id == NULL: none */
    char *suffix;                                    /* NULL = none */
    int64_t seed;                                    /* chosen at creation when absent */
    json_t *metadata;                                /* object of strings, or NULL */
    struct spec_hyper hyper;
    struct spec_dataset dataset;
    struct spec_optimization optimization;
    struct spec_precision precision;
    struct spec_parallelism parallelism;
    struct spec_placement placement;
    struct spec_resources resources;
    struct spec_scheduling scheduling;
    struct spec_lora lora;
    struct spec_hub hub;
    char *sample_prompts[JOB_MAX_SAMPLE_PROMPTS];
    int64_t n_sample_prompts;
    int64_t sample_tokens; /* new tokens a prompt; 64 */
};

/* Defaults for everything; strings NULL. */
void job_spec_init(struct job_spec *spec);
void job_spec_fini(struct job_spec *spec);

/* Parse a request body. Returns 0 with *spec filled when `faults` stays empty, else ERR_INVALID;
 * every fault is added to `faults`. The body was parsed by json_parse_limited before. `dry_run`
 * (may be NULL) takes the member of that name; it is left alone when there is none. A seed that is
 * absent is drawn. An absolute path as `model` passes here and lands in model.path; whether clients
 * may name local directories is for the caller to decide. */
int job_spec_from_request(const json_t *body, struct job_spec *spec, bool *dry_run,
                          struct fault_list *faults);

/* A deep copy; *to is overwritten without being freed. */
void job_spec_copy(struct job_spec *to, const struct job_spec *from);

/* Split "hf://datasets/org/name[@revision][/path]" into a file that holds nothing yet; false, with
 * why, when the grammar refuses it. A revision with a '/' other than refs/pr/N and refs/convert/X
 * is written with %2F. */
bool spec_file_parse(const char *text, struct spec_file *file, char *why, size_t why_cap);
void spec_file_fini(struct spec_file *file);

/* Wipe hub.token, once it is where it belongs. */
void job_spec_forget_token(struct job_spec *spec);

/* The stored form and back. job_spec_from_json accepts what job_spec_to_json of this release and of
 * those before it writes, strictly: a member that is missing, because the job is older than it, has
 * its default, which must therefore be what jobs did before there was the member. Only v, id and
 * created_at have to be there. */
json_t *job_spec_to_json(const struct job_spec *spec);
int job_spec_from_json(const json_t *stored, struct job_spec *spec, struct err *err);

/* Read and write STATE/jobs/ID/spec.json (atomically). Reading insists on a place where the model
 * is: base_model.path, or a repository with a revision. */
int job_spec_load(const char *path, struct job_spec *spec, struct err *err);
int job_spec_save(const char *path, const struct job_spec *spec, struct err *err);

/* The words of the JSON form: "cuda", "bf16", ... */
const char *placement_policy_name(enum placement_policy policy);
const char *compute_dtype_name(enum compute_dtype dtype);

#endif
