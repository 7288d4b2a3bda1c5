/* The wrapper on the host, against a witx module of its own: `cc -Wall -Wextra -Werror -I.. test.c -o test && ./test` */
#include "fnctl.h"

static int failures;
#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                       \
      failures++;                                                                            \
    }                                                                                        \
  } while (0)

/* The module: one model "double", whose output "y" is twice its input "x" and whose "sum" is an i64. */
static struct {
  uint32_t dimensions[4], rank, type, count, set_index;
  float elements[16];
  uint32_t compute_errno;
} host;

uint32_t fnctl_witx_load_by_name(const char *name, uint32_t length, uint32_t *graph) {
  *graph = 7;
  return length == 6 && memcmp(name, "double", 6) == 0 ? 0 : 8;
}

uint32_t fnctl_witx_init_execution_context(uint32_t graph, uint32_t *context) {
  *context = 9;
  return graph == 7 ? 0 : 1;
}

uint32_t fnctl_witx_set_input(uint32_t context, uint32_t index, const fnctl_witx_tensor *tensor) {
  if (context != 9 || tensor->rank > 4 || tensor->length > sizeof host.elements) return 1;
  host.set_index = index, host.rank = tensor->rank, host.type = tensor->type, host.count = tensor->length / 4;
  memcpy(host.dimensions, tensor->dimensions, tensor->rank * 4);
  memcpy(host.elements, tensor->data, tensor->length);
  return 0;
}

uint32_t fnctl_witx_compute(uint32_t context) { return context == 9 ? host.compute_errno : 1; }

uint32_t fnctl_witx_get_output(uint32_t context, uint32_t index, uint8_t *buffer, uint32_t capacity, uint32_t *written) {
  float doubled[16];
  int64_t sum = 0;
  for (uint32_t i = 0; i < host.count; i++) doubled[i] = 2 * host.elements[i], sum += (int64_t)host.elements[i];
  *written = index == 0 ? host.count * 4 : 8;
  if (context != 9 || *written > capacity) return 7;
  memcpy(buffer, index == 0 ? (void *)doubled : (void *)&sum, *written);
  return 0;
}

static const char *const inputs[] = {"other", "x", NULL};
static const char *const outputs[] = {"y", "sum", NULL};

int main(void) {
  fnctl_error error = {0};
  fnctl_model model = {.name = "double", .inputs = inputs, .outputs = outputs};
  float x[6] = {1, 2, 3, 4, 5, 6};
  float y[8];
  int64_t sum;

  fnctl_tensor in[] = {fnctl_f32("x", x, 6, 2, (uint32_t[]){2, 3})};
  CHECK(!fnctl_run(&model, in, 1, NULL, 0, &error) && strstr(error.message, "call fnctl_load first"));
  CHECK(fnctl_load(&model, &error));

  /* Names become positions; types and shapes go over as they are; an open dimension comes back filled. */
  fnctl_tensor out[] = {fnctl_i64("sum", &sum, 1, 0, NULL), fnctl_f32("y", y, 8, 2, (uint32_t[]){0, 3})};
  CHECK(fnctl_run(&model, in, 1, out, 2, &error));
  CHECK(host.set_index == 1 && host.type == FNCTL_FP32 && host.rank == 2 && host.dimensions[0] == 2 && host.dimensions[1] == 3);
  CHECK(y[0] == 2 && y[5] == 12 && sum == 21);
  CHECK(out[1].count == 6 && out[1].dimensions[0] == 2 && out[1].dimensions[1] == 3 && out[0].count == 1);

  /* Shapes are checked on this side. */
  fnctl_tensor wrong = fnctl_f32("x", x, 5, 2, (uint32_t[]){2, 3});
  CHECK(!fnctl_run(&model, &wrong, 1, NULL, 0, &error) && strcmp(error.kind, "invalid-argument") == 0);
  CHECK(strstr(error.message, "do not fill the shape of 'x'; check its dimensions"));
  wrong = fnctl_f32("x", x, 6, 2, (uint32_t[]){65536, 65537});
  CHECK(!fnctl_run(&model, &wrong, 1, NULL, 0, &error));
  wrong = fnctl_f32("x", x, 6, FNCTL_MAX_RANK + 1, (uint32_t[]){1, 1, 1, 1, 1, 1, 1, 1, 6});
  CHECK(!fnctl_run(&model, &wrong, 1, NULL, 0, &error));
  fnctl_tensor square = fnctl_f32("y", y, 8, 2, (uint32_t[]){2, 2});
  CHECK(!fnctl_run(&model, in, 1, &square, 1, &error) && strstr(error.message, "the shape of 'y'"));
  fnctl_tensor open = fnctl_f32("y", y, 8, 2, (uint32_t[]){0, 0});
  CHECK(!fnctl_run(&model, in, 1, &open, 1, &error));

  /* Errors have a kind and a next step. */
  wrong = fnctl_f32("z", x, 6, 1, (uint32_t[]){6});
  CHECK(!fnctl_run(&model, &wrong, 1, NULL, 0, &error) && strstr(error.message, "no input 'z'; list it"));
  fnctl_tensor small = fnctl_f32("y", y, 2, 2, (uint32_t[]){2, 3});
  CHECK(!fnctl_run(&model, in, 1, &small, 1, &error) && strcmp(error.kind, "too-large") == 0);
  host.compute_errno = 5;
  CHECK(!fnctl_run(&model, in, 1, NULL, 0, &error) && strcmp(error.kind, "runtime-error") == 0);
  fnctl_model absent = {.name = "absent", .inputs = inputs, .outputs = outputs};
  CHECK(!fnctl_load(&absent, &error) && !absent.loaded);
  CHECK(strcmp(error.message, "not-found: the model 'absent'; declare the model under [models] in function.toml and deploy again") == 0);

  if (failures == 0) puts("ok");
  return failures != 0;
}
