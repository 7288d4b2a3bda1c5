/* What a function written in C includes: models by name, with named and typed tensors.
 *
 * A function in C is a WASI preview 1 command: the request's body is on stdin, CGI variables are in the environment
 * (REQUEST_METHOD, PATH_INFO, QUERY_STRING, CONTENT_TYPE, HTTP_...), the answer goes to stdout, and exit code 0 makes it
 * a 200, or what `fnctl_status` said. What goes to stderr is logged with the request's id.
 *
 *     static const char *const inputs[] = {"features", NULL};              // in the model's order
 *     static const char *const outputs[] = {"fraud_probability", NULL};
 *
 *     fnctl_model model = {.name = "fraud", .inputs = inputs, .outputs = outputs};
 *     float features[16], probability;
 *     fnctl_tensor in[] = {fnctl_f32("features", features, 16, 2, (uint32_t[]){1, 16})};
 *     fnctl_tensor out[] = {fnctl_f32("fraud_probability", &probability, 1, 2, (uint32_t[]){1, 1})};
 *     fnctl_error error;
 *     if (!fnctl_load(&model, &error) || !fnctl_run(&model, in, 1, out, 1, &error)) fnctl_exit(&error);
 *
 * The witx module `wasi_ephemeral_nn` addresses tensors by position and tells neither names nor shapes of outputs. So the
 * model's names are declared here, in its order, and shapes are checked on this side: `fnctl deploy` prints both.
 *
 * Header only. For tests on the host, define the five functions of `wasi_ephemeral_nn` below yourself; see test/test.c.
 * Licence: Apache-2.0.
 */
#ifndef FNCTL_H
#define FNCTL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Most dimensions of a tensor here. */
#define FNCTL_MAX_RANK 8

/* The element types of the witx module, with its numbers. Half precision is raw 16-bit words. */
typedef enum { FNCTL_FP16 = 0, FNCTL_FP32 = 1, FNCTL_FP64 = 2, FNCTL_U8 = 3, FNCTL_I32 = 4, FNCTL_I64 = 5 } fnctl_type;

/* A tensor over the caller's memory: elements row by row, as C has them (Wasm is little-endian).
 *
 * Input: `count` must be the product of the dimensions. Output: `count` is how many elements `data` has room for, and
 * becomes how many there are; one dimension may be 0, and becomes what the model gave. */
typedef struct {
  const char *name;
  fnctl_type type;
  uint32_t rank;
  uint32_t dimensions[FNCTL_MAX_RANK];
  void *data;
  size_t count;
} fnctl_tensor;

/* A model. Set `name` (as function.toml declares it) and the NULL-terminated names of inputs and outputs. */
typedef struct {
  const char *name;
  const char *const *inputs;
  const char *const *outputs;
  uint32_t context;
  bool loaded;
} fnctl_model;

/* Why something failed: a kind such as "not-found", and a text that ends with the next step. */
typedef struct {
  const char *kind;
  char message[320];
} fnctl_error;

/* The witx module. */
typedef struct {
  const uint32_t *dimensions;
  uint32_t rank;
  uint8_t type;
  const uint8_t *data;
  uint32_t length;
} fnctl_witx_tensor;

#ifdef __wasm__
#define FNCTL_IMPORT(function) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#function)))
_Static_assert(sizeof(fnctl_witx_tensor) == 20, "the witx layout: dimensions at 0, type at 8, data at 12");
#else
#define FNCTL_IMPORT(function)
#endif
FNCTL_IMPORT(load_by_name) extern uint32_t fnctl_witx_load_by_name(const char *name, uint32_t length, uint32_t *graph);
FNCTL_IMPORT(init_execution_context) extern uint32_t fnctl_witx_init_execution_context(uint32_t graph, uint32_t *context);
FNCTL_IMPORT(set_input) extern uint32_t fnctl_witx_set_input(uint32_t context, uint32_t index, const fnctl_witx_tensor *);
FNCTL_IMPORT(compute) extern uint32_t fnctl_witx_compute(uint32_t context);
FNCTL_IMPORT(get_output)
extern uint32_t fnctl_witx_get_output(uint32_t context, uint32_t index, uint8_t *buffer, uint32_t capacity, uint32_t *written);

/* Bytes of one element. */
static inline size_t fnctl_size(fnctl_type type) {
  switch (type) {
    case FNCTL_U8: return 1;
    case FNCTL_FP16: return 2;
    case FNCTL_FP32: case FNCTL_I32: return 4;
    case FNCTL_FP64: case FNCTL_I64: return 8;
  }
  return 0;
}

/* A tensor of any type; the typed ones below are safer. `dimensions` has `rank` numbers, or is NULL for a scalar. */
static inline fnctl_tensor fnctl_any(const char *name, fnctl_type type, void *data, size_t count, uint32_t rank,
                                     const uint32_t *dimensions) {
  fnctl_tensor tensor = {.name = name, .type = type, .rank = rank, .data = data, .count = count};
  for (uint32_t i = 0; i < rank && i < FNCTL_MAX_RANK; i++) tensor.dimensions[i] = dimensions[i];
  return tensor;
}

#define FNCTL_TYPED(function, element, type)                                                                          \
  static inline fnctl_tensor function(const char *name, element *data, size_t count, uint32_t rank,             \
                                      const uint32_t *dimensions) {                                                   \
    return fnctl_any(name, type, data, count, rank, dimensions);                                                      \
  }
FNCTL_TYPED(fnctl_f32, float, FNCTL_FP32)
FNCTL_TYPED(fnctl_f64, double, FNCTL_FP64)
FNCTL_TYPED(fnctl_u8, uint8_t, FNCTL_U8)
FNCTL_TYPED(fnctl_i32, int32_t, FNCTL_I32)
FNCTL_TYPED(fnctl_i64, int64_t, FNCTL_I64)
#undef FNCTL_TYPED

/* Fills in an error; always false, so that a function can return it. */
static inline bool fnctl_failed(fnctl_error *error, const char *kind, const char *what, const char *name, const char *step) {
  error->kind = kind;
  snprintf(error->message, sizeof error->message, "%s: %s '%s'; %s", kind, what, name ? name : "?", step);
  return false;
}

/* Turns an errno of the witx module into an error; true for success. */
static inline bool fnctl_check(uint32_t code, const char *what, const char *name, fnctl_error *error) {
  switch (code) {
    case 0: return true;
    case 1: return fnctl_failed(error, "invalid-argument", what, name, "give each input the name, type and shape that the model declares");
    case 2: return fnctl_failed(error, "invalid-encoding", what, name, "the platform runs ONNX models; export the model to ONNX");
    case 3: return fnctl_failed(error, "missing-memory", what, name, "build with a toolchain that exports the memory, such as zig cc");
    case 6: return fnctl_failed(error, "unsupported-operation", what, name, "use a model and a target that the platform supports (ONNX, cpu)");
    case 7: return fnctl_failed(error, "too-large", what, name, "make the buffer larger, or raise `memory` in function.toml");
    case 8: return fnctl_failed(error, "not-found", what, name, "declare the model under [models] in function.toml and deploy again");
    default: return fnctl_failed(error, "runtime-error", what, name, "read the function's log lines of this request");
  }
}

/* The model that function.toml declares under this name. Cheap: the platform has it resident and shares it. */
static inline bool fnctl_load(fnctl_model *model, fnctl_error *error) {
  uint32_t graph = 0;
  model->loaded = fnctl_check(fnctl_witx_load_by_name(model->name, (uint32_t)strlen(model->name), &graph), "the model",
                              model->name, error) &&
                  fnctl_check(fnctl_witx_init_execution_context(graph, &model->context), "the model", model->name, error);
  return model->loaded;
}

/* The position of a name in a NULL-terminated list, or -1. */
static inline int64_t fnctl_position(const char *const *names, const char *name) {
  for (uint32_t i = 0; names[i]; i++)
    if (strcmp(names[i], name) == 0) return i;
  return -1;
}

/* The product of the dimensions, and how many of them are 0 (open); false if it is no size. */
static inline bool fnctl_product(const fnctl_tensor *tensor, uint64_t *product, uint32_t *open) {
  *product = 1, *open = 0;
  if (tensor->rank > FNCTL_MAX_RANK) return false;
  for (uint32_t i = 0; i < tensor->rank; i++) {
    if (tensor->dimensions[i] == 0) *open += 1;
    else if (*product > UINT32_MAX / tensor->dimensions[i]) return false;
    else *product *= tensor->dimensions[i];
  }
  return *product * fnctl_size(tensor->type) <= UINT32_MAX;
}

static inline bool fnctl_give(fnctl_model *model, const fnctl_tensor *tensor, fnctl_error *error) {
  int64_t index = fnctl_position(model->inputs, tensor->name);
  if (index < 0) return fnctl_failed(error, "invalid-argument", "no input", tensor->name, "list it in the model's inputs");
  uint64_t product;
  uint32_t open;
  if (!fnctl_product(tensor, &product, &open) || (open ? 0 : product) != tensor->count)
    return fnctl_failed(error, "invalid-argument", "the elements do not fill the shape of", tensor->name, "check its dimensions");
  fnctl_witx_tensor witx = {.dimensions = tensor->dimensions, .rank = tensor->rank, .type = (uint8_t)tensor->type,
                            .data = tensor->data, .length = (uint32_t)(tensor->count * fnctl_size(tensor->type))};
  return fnctl_check(fnctl_witx_set_input(model->context, (uint32_t)index, &witx), "the input", tensor->name, error);
}

static inline bool fnctl_take(fnctl_model *model, fnctl_tensor *tensor, fnctl_error *error) {
  int64_t index = fnctl_position(model->outputs, tensor->name);
  if (index < 0) return fnctl_failed(error, "invalid-argument", "no output", tensor->name, "list it in the model's outputs");
  size_t size = fnctl_size(tensor->type);
  uint64_t product;
  uint32_t open, written = 0;
  if (!fnctl_product(tensor, &product, &open) || open > 1)
    return fnctl_failed(error, "invalid-argument", "no shape for", tensor->name, "give its dimensions, at most one of them 0");
  uint64_t capacity = (uint64_t)tensor->count * size;
  if (!fnctl_check(fnctl_witx_get_output(model->context, (uint32_t)index, tensor->data,
                                         capacity > UINT32_MAX ? UINT32_MAX : (uint32_t)capacity, &written),
                   "the output", tensor->name, error))
    return false;
  uint64_t count = written / size;
  if (written % size || (open ? count % product : count != product))
    return fnctl_failed(error, "invalid-argument", "the model's elements do not fill the shape of", tensor->name, "check its type and dimensions");
  for (uint32_t i = 0; i < tensor->rank; i++)
    if (tensor->dimensions[i] == 0) tensor->dimensions[i] = (uint32_t)(count / product);
  tensor->count = (size_t)count;
  return true;
}

/* Computes: inputs by name in, outputs by name out. */
static inline bool fnctl_run(fnctl_model *model, const fnctl_tensor *inputs, size_t input_count, fnctl_tensor *outputs,
                             size_t output_count, fnctl_error *error) {
  if (!model->loaded) return fnctl_failed(error, "invalid-argument", "not loaded is the model", model->name, "call fnctl_load first");
  for (size_t i = 0; i < input_count; i++)
    if (!fnctl_give(model, &inputs[i], error)) return false;
  if (!fnctl_check(fnctl_witx_compute(model->context), "the model", model->name, error)) return false;
  for (size_t i = 0; i < output_count; i++)
    if (!fnctl_take(model, &outputs[i], error)) return false;
  return true;
}

/* Reads the request's body from stdin, with a NUL behind it; the caller frees it. NULL if it is longer than `limit`
 * bytes or cannot be kept. */
static inline char *fnctl_body(size_t limit, size_t *length, fnctl_error *error) {
  size_t capacity = 4096, used = 0;
  char *body = malloc(capacity + 1);
  while (body) {
    used += fread(body + used, 1, capacity - used, stdin);
    if (used > limit) {
      free(body);
      fnctl_failed(error, "too-large", "longer than the function takes is", "the body", "send less");
      return NULL;
    }
    if (used < capacity) break;
    capacity *= 2;
    char *larger = realloc(body, capacity + 1);
    if (!larger) free(body);
    body = larger;
  }
  if (!body) {
    fnctl_failed(error, "too-large", "no memory for", "the body", "raise `memory` in function.toml");
    return NULL;
  }
  body[used] = 0;
  *length = used;
  return body;
}

/* Sets the answer's status, 200 to 599, and content type. Call it before anything is written to stdout. */
static inline void fnctl_status(int status, const char *content_type) {
  printf("Status: %d\r\nContent-Type: %s\r\n\r\n", status, content_type);
}

/* Logs an error and ends the request: the caller reads a 502 with the request's id, the log has the text. */
__attribute__((noreturn)) static inline void fnctl_exit(const fnctl_error *error) {
  fprintf(stderr, "%s\n", error->message);
  exit(1);
}

#endif
